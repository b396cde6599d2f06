"""Files in the formats of public weights, with random numbers.

Names are written out as facts of those formats, not taken from the code under test.
"""

import h5py
import numpy as np
from safetensors.numpy import save_file

CONVS = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg13_bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
}
CHANNELS = {
    "vgg11": (64, 128, 256, 256, 512, 512, 512, 512),
    "vgg13": (64, 64, 128, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": (64, 64, 128, 128) + 3 * (256,) + 6 * (512,),
    "vgg19": (64, 64, 128, 128) + 4 * (256,) + 8 * (512,),
}
KERAS_VGG16 = [
    f"block{block}_conv{conv}"
    for block, depth in enumerate((2, 2, 3, 3, 3), 1)
    for conv in range(1, depth + 1)
]


def torchvision(architecture, seed=0, classifier=False):
    """A state dict as torchvision's, in NumPy."""
    rng = np.random.default_rng(seed)
    tensors, before = {}, 3

    def draw(low, high, *shape):
        return rng.uniform(low, high, shape).astype(np.float32)

    channels = CHANNELS[architecture.removesuffix("_bn")]
    for n, after in zip(CONVS[architecture], channels, strict=True):
        bound = np.sqrt(6 / (9 * before))
        tensors[f"features.{n}.weight"] = draw(-bound, bound, after, before, 3, 3)
        tensors[f"features.{n}.bias"] = draw(-0.2, 0.2, after)
        if architecture.endswith("_bn"):
            norm = f"features.{n + 1}"
            tensors[f"{norm}.weight"] = draw(0.7, 1.3, after)
            tensors[f"{norm}.bias"] = draw(-0.2, 0.2, after)
            tensors[f"{norm}.running_mean"] = draw(-0.2, 0.2, after)
            tensors[f"{norm}.running_var"] = draw(0.7, 1.3, after)
            tensors[f"{norm}.num_batches_tracked"] = np.array(7, np.int64)
        before = after
    if classifier:
        # Those of the public files are 4096 wide; nobody here looks at them.
        tensors["classifier.0.weight"] = draw(-1, 1, 4, 8)
        tensors["classifier.0.bias"] = draw(-1, 1, 4)
    return tensors


def write_safetensors(path, tensors):
    save_file(tensors, path)
    return path


def keras_vgg16(seed=0):
    """Kernels HWIO and biases by layer; inputs are some hundred times torchvision's."""
    tensors = torchvision("vgg16", seed)
    layers = {
        name: (
            np.ascontiguousarray(tensors[f"features.{n}.weight"].transpose(2, 3, 1, 0)),
            tensors[f"features.{n}.bias"],
        )
        for name, n in zip(KERAS_VGG16, CONVS["vgg16"], strict=True)
    }
    kernel, bias = layers["block1_conv1"]
    layers["block1_conv1"] = (kernel / 64, bias)
    return layers


def write_keras(path, layers, names=("{0}_W_1:0", "{0}_b_1:0"), whole_model=False):
    """HDF5 as Keras writes it.

    By default the names of the public file `vgg16_weights_tf_dim_ordering_tf_kernels_
    notop.h5`; Keras 2 itself writes `{0}/kernel:0`.
    """
    order = ["input_1", *layers, "block5_pool"]
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names"] = [name.encode() for name in order]
        root.attrs["backend"] = b"tensorflow"
        root.attrs["keras_version"] = b"2.0.8"
        for layer in order:
            group = root.create_group(layer)
            arrays = layers.get(layer, ())
            given = [name.format(layer) for name in names][: len(arrays)]
            group.attrs["weight_names"] = [name.encode() for name in given]
            for name, array in zip(given, arrays, strict=True):
                group[name] = array
    return path


def write_keras3(path, layers, has_names=True):
    """HDF5 as `save_weights` of Keras 3 writes it; early versions left out the names.

    The groups are numbered by kind of layer, in the order of the network.
    """
    with h5py.File(path, "w") as file:
        file.create_group("vars").attrs["name"] = "vgg16"
        adam = file.create_group("optimizer/vars")
        adam["0"], adam["1"] = np.int64(7), np.float32(1e-3)
        adam["2"] = adam["3"] = np.zeros((3, 3, 3, 64), np.float32)
        for number, (name, arrays) in enumerate(layers.items()):
            kind = f"conv2d_{number}" if number else "conv2d"
            group = file.create_group(f"layers/{kind}/vars")
            if has_names:
                group.attrs["name"] = name
            for index, array in enumerate(arrays):
                group[str(index)] = array
        pool = file.create_group("layers/max_pooling2d/vars")
        pool.attrs["name"] = "block1_pool"
    return path


def resnet34(seed=0):
    """A state dict as that of torchvision's resnet34, in NumPy."""
    rng = np.random.default_rng(seed)
    tensors = {}

    def draw(low, high, *shape):
        return rng.uniform(low, high, shape).astype(np.float32)

    def conv(name, after, before, side):
        bound = np.sqrt(6 / (side * side * before))
        tensors[f"{name}.weight"] = draw(-bound, bound, after, before, side, side)

    def norm(name, width, low=0.7, high=1.3):
        tensors[f"{name}.weight"] = draw(low, high, width)
        tensors[f"{name}.bias"] = draw(-0.2, 0.2, width)
        tensors[f"{name}.running_mean"] = draw(-0.2, 0.2, width)
        tensors[f"{name}.running_var"] = draw(0.7, 1.3, width)
        tensors[f"{name}.num_batches_tracked"] = np.array(7, np.int64)

    conv("conv1", 64, 3, 7)
    norm("bn1", 64)
    before = 64
    for layer, (depth, width) in enumerate(
        ((3, 64), (4, 128), (6, 256), (3, 512)), start=1
    ):
        for block in range(depth):
            name = f"layer{layer}.{block}"
            conv(f"{name}.conv1", width, before, 3)
            norm(f"{name}.bn1", width)
            conv(f"{name}.conv2", width, width, 3)
            # So weak a branch keeps sixteen sums in a row from growing.
            norm(f"{name}.bn2", width, 0.1, 0.3)
            if before != width:
                conv(f"{name}.downsample.0", width, before, 1)
                norm(f"{name}.downsample.1", width)
            before = width
    tensors["fc.weight"] = draw(-0.1, 0.1, 1000, 512)
    tensors["fc.bias"] = draw(-0.1, 0.1, 1000)
    return tensors
