"""The authors' network in PyTorch, written anew, by the names of its checkpoints."""

import collections

import numpy as np

WIDTHS = (64, 128, 256, 512, 512)
DECODER = ((1024, 512, 256), (512, 256, 128), (256, 128, 64), (128, 64, 64))


def original_network(torch, width=1.0):
    """The authors' architecture with random parameters, `width` times as wide."""
    nn = torch.nn

    def block(before, after):
        layers = collections.OrderedDict(
            CONV=nn.Conv2d(before, after, 3, padding=1),
            BN=nn.BatchNorm2d(after, track_running_stats=False),
            ACT=nn.ReLU(),
        )
        module = nn.Module()
        module.conv_block = nn.Sequential(layers)
        return module

    def double(before, middle, after):
        module = nn.Module()
        module.double_conv = nn.ModuleList(
            [block(before, middle), block(middle, after)]
        )
        return module

    def named(**parts):
        module = nn.Module()
        for name, part in parts.items():
            setattr(module, name, part)
        return module

    def scaled(channels):
        return [round(width * count) for count in channels]

    widths = scaled(WIDTHS)
    network = named(
        inc=double(3, widths[0], widths[0]),
        **{
            f"down{i + 1}": named(
                maxpool_conv=nn.ModuleList([nn.MaxPool2d(2), double(a, b, b)])
            )
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        },
        **{f"up{i + 1}": named(conv=double(*scaled(c))) for i, c in enumerate(DECODER)},
        outcs=nn.ModuleList(named(conv=nn.Conv2d(widths[0], 1, 1)) for _ in range(3)),
        outfc=named(fc=nn.Linear(widths[-1], 1)),
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        low, high = (0.7, 1.3) if name.endswith("BN.weight") else (-0.2, 0.2)
        if parameter.ndim == 4:
            high = (6 / parameter[0].numel()) ** 0.5
            low = -high
        with torch.no_grad():
            parameter.uniform_(low, high, generator=generator)
    return network


def forward(torch, network, x, heads=("glaucoma", "disc", "cup", "fovea")):
    """Logits by head, [B] or [B, H, W], of images [B, 3, H, W]; no dropout."""

    def convolve(module, x):
        for part in module.double_conv:
            x = part.conv_block(x)
        return x

    features = [convolve(network.inc, x)]
    for i in range(1, 5):
        pool, conv = getattr(network, f"down{i}").maxpool_conv
        features.append(convolve(conv, pool(features[-1])))
    logits = {}
    if "glaucoma" in heads:
        logits["glaucoma"] = network.outfc.fc(features[4].amax((2, 3)))[:, 0]
    if set(heads) == {"glaucoma"}:
        return logits
    x = features[4]
    for i in range(1, 5):
        x = torch.nn.functional.interpolate(
            x, scale_factor=2, mode="bilinear", align_corners=True
        )
        x = torch.cat([features[4 - i], x], 1)
        x = convolve(getattr(network, f"up{i}").conv, x)
    for name, head in zip(("disc", "cup", "fovea"), network.outcs, strict=True):
        if name in heads:
            logits[name] = head.conv(x)[:, 0]
    return logits


def original_logits(torch, network, images):
    """What the authors' program computes, image by image as its evaluation does."""
    found = collections.defaultdict(list)
    with torch.no_grad():
        for image in images:
            x = torch.tensor(image[None] / np.float32(255)).permute(0, 3, 1, 2)
            for name, values in forward(torch, network, x).items():
                found[name].append(values[0])
    return {name: torch.stack(values).numpy() for name, values in found.items()}
