"""Registers the encoder `small`: compiling is nearly all that most tests cost.

A process that a test starts imports this module first, or runs a script by it:
python tests/small_encoder.py SCRIPT [ARGUMENTS].
"""

import functools
import os
import runpy
import sys

from mtl_jax.models import encoders, vgg

encoders.ENCODERS["small"] = encoders.Encoder(
    functools.partial(vgg.VggEncoder, (1, 1, 1)),
    vgg.WIDTHS[:3],
    4,
    "encoder/block3_conv1/conv/kernel",
)

if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name="__main__")
