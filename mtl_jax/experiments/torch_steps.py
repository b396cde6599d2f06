"""Steps of MTL-IO in PyTorch, which the benchmark times beside ours.

It is the same network with the same losses. A task's step computes only its own route,
and each task has its own Adam, as in the authors' program.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mtl_jax import losses, machine
from mtl_jax.experiments.benchmark import Program, Setting
from mtl_jax.models import vgg
from mtl_jax.tasks import Batch

DENSE = ("disc", "cup", "fovea")


class _Network(nn.Module):
    """The U-Net with a VGG encoder and the four heads, as `models.MultiTaskUNet`."""

    def __init__(self, depths: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        before = (3, *widths)
        self.encoder = nn.ModuleList(
            _convolutions([before[i]] + [width] * depths[i])
            for i, width in enumerate(widths)
        )
        self.decoder = nn.ModuleList(
            _convolutions([2 * widths[i], widths[i], widths[max(i - 1, 0)]])
            for i in reversed(range(len(widths) - 1))
        )
        self.classifier = nn.Sequential(nn.Dropout(0.8), nn.Linear(widths[-1], 1))
        self.heads = nn.ModuleDict({n: nn.Conv2d(widths[0], 1, 1) for n in DENSE})

    def forward(self, x: torch.Tensor, head: str) -> torch.Tensor:
        features: list[torch.Tensor] = []
        for block in self.encoder:
            x = block(F.max_pool2d(features[-1], 2) if features else x)
            features.append(x)
        if head not in self.heads:
            return self.classifier(x.amax((2, 3)))[:, 0]
        for stage, skip in zip(self.decoder, reversed(features[:-1]), strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = stage(torch.cat([skip, x], 1))
        return self.heads[head](x)[:, 0]


def _convolutions(channels: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        layers.append(nn.BatchNorm2d(after, momentum=0.01))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


@dataclasses.dataclass(frozen=True)
class _Form:
    """How a step is made; each form has what the one before it has, and one more."""

    is_last: bool = False
    tf32: bool = False
    fused: bool = False
    autocast: bool = False
    compiled: bool = False


_FORMS = {"torch": _Form(), "torch, channels last": _Form(True)}
# On a GPU, in place of these.
_GPU_FORMS = {
    "torch": _Form(),
    "torch, channels last, TF32": _Form(True, True),
    "... fused Adam": _Form(True, True, True),
    "... autocast": _Form(True, True, True, True),
    "... compiled": _Form(True, True, True, True, True),
}


def programs(setting: Setting, batch: Batch) -> Mapping[str, Program]:
    """Makes PyTorch's forms of a step of MTL-IO.

    Args:
      setting: network and dtype.
      batch: batch of NumPy arrays, images uint8 [B, H, W, 3].

    Returns:
      The plain form and the one with channels last. On a GPU, the plain form and what
      is to be added to it: channels last and TensorFloat-32, a fused Adam, automatic
      mixed precision (if the dtype is bfloat16), and the compiler.
    """
    torch.set_num_threads(machine.num_cores())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    forms = _GPU_FORMS if device == "cuda" else _FORMS
    widths = [max(1, round(setting.width * width)) for width in vgg.WIDTHS]
    found = {}
    for name, form in forms.items():
        if setting.dtype != "bfloat16":
            if form.autocast and not form.compiled:
                continue
            form = dataclasses.replace(form, autocast=False)
        torch.manual_seed(0)
        network = _Network(vgg.DEPTHS[setting.encoder], widths).to(device)
        run = _step(network, batch, device, form)
        size = sum(p.numel() for p in network.parameters())
        found[name] = Program(_started(run), run, size, "independent")
    return found


def convolution_passes(
    x: np.ndarray, kernel: np.ndarray, gradient: np.ndarray
) -> Mapping[str, Callable[[], Any]]:
    """Makes PyTorch's passes of a 3x3 convolution on the CPU, channels last.

    Args:
      x: [B, H, W, Cin].
      kernel: [3, 3, Cin, Cout].
      gradient: [B, H, W, Cout].

    Returns:
      Calls that make the passes of `layer_benchmark.PASSES`.
    """
    torch.set_num_threads(machine.num_cores())
    # What is permuted has its channels last in memory.
    image, pulled = (torch.from_numpy(a).permute(0, 3, 1, 2) for a in (x, gradient))
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1)
    weight = weight.contiguous(memory_format=torch.channels_last)
    of_input = functools.partial(nn.grad.conv2d_input, image.shape, weight, pulled)
    of_weight = functools.partial(nn.grad.conv2d_weight, image, weight.shape, pulled)
    return {
        "forward": functools.partial(F.conv2d, image, weight, padding=1),
        "input gradient": functools.partial(of_input, padding=1),
        "weight gradient": functools.partial(of_weight, padding=1),
    }


def _started(run: Callable[[], None]) -> Callable[[], Mapping[str, float | None]]:
    def start():
        begin = time.perf_counter()
        run()
        return {"compile_seconds": time.perf_counter() - begin}

    return start


def _step(
    network: nn.Module, batch: Batch, device: str, form: _Form
) -> Callable[[], None]:
    layout = torch.channels_last if form.is_last else torch.contiguous_format
    network = network.to(memory_format=layout)
    forward: Callable[..., Any] = torch.compile(network) if form.compiled else network
    optimizers = {
        head: torch.optim.Adam(network.parameters(), lr=1e-4, fused=form.fused)
        for head in ("glaucoma", *DENSE)
    }
    images = torch.from_numpy(batch["image"]).to(device).permute(0, 3, 1, 2)
    side = images.shape[-2:]
    targets = {
        "glaucoma": batch["glaucoma"],
        "disc": batch["disc_mask"].astype("float32"),
        "cup": batch["cup_mask"].astype("float32"),
        "fovea": np.array(losses.fovea_map(batch["fovea_xy"], side)),
    }
    targets = {n: torch.from_numpy(v).to(device) for n, v in targets.items()}
    precision = torch.autocast(device, torch.bfloat16) if form.autocast else None

    def run() -> None:
        # It is global, and the plain form is to run without.
        torch.backends.cuda.matmul.allow_tf32 = form.tf32
        torch.backends.cudnn.allow_tf32 = form.tf32
        x = (images.float() / 255).contiguous(memory_format=layout)
        for head, optimizer in optimizers.items():
            optimizer.zero_grad(set_to_none=True)
            with precision or contextlib.nullcontext():
                logits = forward(x, head)
            _loss(head, logits.float(), targets[head]).backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def _loss(head: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if head == "fovea":
        return (logits.sigmoid() - target).abs().mean()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    if head == "glaucoma":
        # The focal loss, gamma 2.
        return (cross_entropy * (1 - torch.exp(-cross_entropy)) ** 2).mean()
    return cross_entropy.mean()
