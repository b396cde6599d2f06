"""The README's Python runs as written."""

import pathlib
import re

import numpy as np

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_library_example_runs_and_learns():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(blocks) == 1
    namespace = {}
    exec(compile(blocks[0], str(README), "exec"), namespace)
    history = np.array(namespace["history"])
    assert history.shape == (20, 2)
    assert np.isfinite(history).all()
    assert (history[-5:].mean(0) < history[:5].mean(0)).all()
