import hashlib
import pickle
import zipfile

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weight_files
from jax import lax

from mtl_jax import weights
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.vgg import VggEncoder

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DEPTHS = {"vgg13": (2, 2, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(5).random((2, 32, 32, 3), np.float32)


def encoder_features(encoder, images, random_variables, norm=None):
    """Activations of the five blocks inside the network that starts from `encoder`."""
    model = MultiTaskUNet(
        encoder=encoder.encoder,
        norm=norm or encoder.norm,
        dense_heads=(),
        normalize_input=True,
    )
    fresh = random_variables(model)
    weights.check_suitable(encoder, model.encoder, model.norm)
    params, batch_stats = weights.start_from(
        encoder, fresh["params"], fresh["batch_stats"]
    )
    _, found = jax.jit(
        lambda variables, images: model.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: isinstance(module, VggEncoder),
        )
    )({"params": params, "batch_stats": batch_stats}, images)
    return found["intermediates"]["encoder"]["__call__"][0]


def torchvision_twin(tensors, architecture, images):
    """The blocks' activations in torchvision's own layout, NCHW and OIHW."""
    x = jnp.asarray(((images - MEAN) / STD).transpose(0, 3, 1, 2), jnp.float32)
    convs = iter(weight_files.CONVS[architecture])
    features = []
    for block, depth in enumerate(DEPTHS[architecture.removesuffix("_bn")]):
        if block:
            x = lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"
            )
        for n in (next(convs) for _ in range(depth)):
            conv, norm = (
                {
                    name.split(".")[-1]: tensor.reshape(-1, 1, 1)
                    if tensor.ndim == 1
                    else tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"features.{n + i}.")
                }
                for i in range(2)
            )
            x = lax.conv(x, conv["weight"], (1, 1), [(1, 1), (1, 1)]) + conv["bias"]
            if architecture.endswith("_bn"):
                x = (x - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
                x = x * norm["weight"] + norm["bias"]
            x = jax.nn.relu(x)
        features.append(x.transpose(0, 2, 3, 1))
    return features


def assert_same_features(found, wanted):
    assert len(found) == len(wanted) == 5
    for ours, theirs in zip(found, wanted, strict=True):
        theirs = np.asarray(theirs)
        assert 0.1 < theirs.std() < 10
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["vgg13", "vgg13_bn", "vgg16", "vgg16_bn"])
def test_safetensors_activations(architecture, tmp_path, images, random_variables):
    tensors = weight_files.torchvision(architecture)
    path = weight_files.write_safetensors(tmp_path / "a.safetensors", tensors)
    encoder = weights.import_encoder(path, architecture)
    assert encoder.ignored == ()
    weights.save(encoder, tmp_path / "imported")
    assert_same_features(
        encoder_features(weights.load(tmp_path / "imported"), images, random_variables),
        torchvision_twin(tensors, architecture, images),
    )


@pytest.mark.parametrize(
    "form",
    [{}, {"names": ("{0}/kernel:0", "{0}/bias:0")}, {"whole_model": True}],
    ids=["public", "keras2", "model"],
)
def test_keras_activations(form, tmp_path, images, random_variables):
    layers = weight_files.keras_vgg16()
    path = weight_files.write_keras(tmp_path / "a.h5", layers, **form)
    encoder = weights.import_encoder(path, "vgg16")
    x = jnp.asarray(images[..., ::-1] * 255 - [103.939, 116.779, 123.68], jnp.float32)
    wanted = []
    for name, (kernel, bias) in layers.items():
        if name[:6] != "block1" and name.endswith("conv1"):
            wanted.append(x)
            b, h, w, c = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2, c).max((2, 4))
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + bias)
    wanted.append(x)
    # To the border: what is padded with zeros is the image minus Keras' own mean.
    assert_same_features(encoder_features(encoder, images, random_variables), wanted)


@pytest.mark.parametrize("architecture", ["vgg13", "vgg16_bn"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pth_activations(architecture, zipped, tmp_path, images, random_variables):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    nn = torch.nn
    depths = DEPTHS[architecture.removesuffix("_bn")]
    layers, before, ends = [], 3, []
    for depth, width in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            layers.append(nn.Conv2d(before, width, 3, padding=1))
            if architecture.endswith("_bn"):
                layers.append(nn.BatchNorm2d(width))
            layers.append(nn.ReLU())
            before = width
        ends.append(len(layers) - 1)
        layers.append(nn.MaxPool2d(2))
    twin = nn.Module()
    twin.features = nn.Sequential(*layers)
    tensors = weight_files.torchvision(architecture)
    twin.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
    path = tmp_path / "a.pth"
    torch.save(twin.state_dict(), path, _use_new_zipfile_serialization=zipped)

    x = torch.tensor(((images - MEAN) / STD).transpose(0, 3, 1, 2), dtype=torch.float32)
    wanted = []
    with torch.no_grad():
        for i, layer in enumerate(twin.eval().features):
            x = layer(x)
            if i in ends:
                wanted.append(x.permute(0, 2, 3, 1).numpy())
    encoder = weights.import_encoder(path, architecture)
    assert_same_features(encoder_features(encoder, images, random_variables), wanted)


def test_half_precision_is_cast(tmp_path):
    tensors = {
        name: tensor.astype(np.float16)
        for name, tensor in weight_files.torchvision("vgg13").items()
    }
    path = weight_files.write_safetensors(tmp_path / "a.safetensors", tensors)
    encoder = weights.import_encoder(path, "vgg13")
    assert {x.dtype for x in jax.tree.leaves(encoder.params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(
        encoder.params["block1_conv1"]["conv"]["kernel"],
        tensors["features.0.weight"].transpose(2, 3, 1, 0).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("state_dict", "module."),
        ("model", ""),
        ("model_state_dict", "module._orig_mod."),
        ("state_dict", "model."),
        (None, "module."),
    ],
)
def test_wrapped_state_dicts_of_training_programs(wrapper, prefix, tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    tensors = weight_files.torchvision("vgg13_bn")
    named = {f"{prefix}{name}": torch.tensor(x) for name, x in tensors.items()}
    content = {wrapper: named, "epoch": 3, "optimizer": {"lr": 0.1}}
    torch.save(content if wrapper else named, tmp_path / "a.pth")
    found = weights.import_encoder(tmp_path / "a.pth", "vgg13_bn")
    plain = weight_files.write_safetensors(tmp_path / "a.safetensors", tensors)
    expected = weights.import_encoder(plain, "vgg13_bn")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    jax.tree.map(np.testing.assert_array_equal, found.batch_stats, expected.batch_stats)


@pytest.mark.parametrize("has_names", [True, False])
def test_weights_of_keras_3(has_names, tmp_path):
    layers = weight_files.keras_vgg16()
    path = weight_files.write_keras3(tmp_path / "a.weights.h5", layers, has_names)
    found = weights.import_encoder(path, "vgg16")
    path = weight_files.write_keras(tmp_path / "a.h5", layers)
    expected = weights.import_encoder(path, "vgg16")
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert len(found.ignored) == 3


def test_half_precision_pth(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    for dtype in (torch.float16, torch.bfloat16):
        tensors = {
            name: torch.tensor(tensor).to(dtype)
            for name, tensor in weight_files.torchvision("vgg13").items()
        }
        torch.save(tensors, tmp_path / "a.pth")
        encoder = weights.import_encoder(tmp_path / "a.pth", "vgg13")
        np.testing.assert_array_equal(
            encoder.params["block1_conv2"]["conv"]["bias"],
            tensors["features.2.bias"].float().numpy(),
        )


def test_classifier_layers_are_ignored_and_said(tmp_path):
    tensors = weight_files.torchvision("vgg13", classifier=True)
    path = weight_files.write_safetensors(tmp_path / "a.safetensors", tensors)
    encoder = weights.import_encoder(path, "vgg13")
    assert encoder.ignored == ("classifier.0.bias", "classifier.0.weight")


@pytest.mark.parametrize(
    ("theirs", "wanted", "said"),
    [
        ("vgg16_bn", "vgg16", "has no features.2.weight, and looks like .* vgg16_bn;"),
        ("vgg16", "vgg16_bn", "has no features.1.weight, and looks like .* vgg16;"),
        ("vgg13", "vgg16", "has no features.14.weight, and looks like .* vgg13;"),
        ("vgg11", "vgg13", "has (no )?features.*, and looks like .* vgg11;"),
        ("vgg19", "vgg16", "has .*features.*, and looks like .* vgg19;"),
    ],
)
def test_another_architecture(theirs, wanted, said, tmp_path):
    path = weight_files.write_safetensors(
        tmp_path / "a.safetensors", weight_files.torchvision(theirs)
    )
    with pytest.raises(UserError, match=f"architecture {wanted}: it {said}"):
        weights.import_encoder(path, wanted)


def test_a_resnet_and_a_misshapen_layer(tmp_path):
    resnet = {
        "conv1.weight": np.zeros((64, 3, 7, 7), np.float32),
        "layer3.5.conv2.weight": np.zeros((256, 256, 3, 3), np.float32),
    }
    path = weight_files.write_safetensors(tmp_path / "r.safetensors", resnet)
    with pytest.raises(UserError, match=r"no features\.0\.weight.*resnet34"):
        weights.import_encoder(path, "vgg16")
    narrow = weight_files.torchvision("vgg13")
    narrow["features.5.bias"] = np.zeros(12, np.float32)
    path = weight_files.write_safetensors(tmp_path / "n.safetensors", narrow)
    with pytest.raises(UserError, match=r"5\.bias of shape \(12,\) instead of \(128,"):
        weights.import_encoder(path, "vgg13")


def test_keras_has_one_vgg(tmp_path):
    layers = weight_files.keras_vgg16()
    path = weight_files.write_keras(tmp_path / "a.h5", layers)
    with pytest.raises(UserError, match="Keras, which has no vgg13"):
        weights.import_encoder(path, "vgg13")
    layers["block3_conv4"] = layers["block3_conv3"]
    layers["block5_conv4"] = layers["block5_conv3"]
    path = weight_files.write_keras(tmp_path / "b.h5", layers)
    with pytest.raises(UserError, match="has block3_conv4/kernel besides.*vgg19"):
        weights.import_encoder(path, "vgg16")


@pytest.mark.parametrize("suffix", [".safetensors", ".h5"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated(suffix, share, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".h5":
        weight_files.write_keras(whole, weight_files.keras_vgg16())
    else:
        weight_files.write_safetensors(whole, weight_files.torchvision("vgg16"))
    content = whole.read_bytes()
    torn = tmp_path / f"torn{suffix}"
    torn.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"torn.*is damaged, incomplete.*again \("):
        weights.import_encoder(torn, "vgg16")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_pth(zipped, share, tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    tensors = weight_files.torchvision("vgg13")
    path = tmp_path / "a.pth"
    torch.save(
        {name: torch.tensor(tensor) for name, tensor in tensors.items()},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"a\.pth is damaged, incomplete"):
        weights.import_encoder(path, "vgg13")


class Malicious:
    """A pickle of it would write a file when it is loaded."""

    def __init__(self, place):
        self.place = str(place)

    def __reduce__(self):
        return open, (self.place, "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused(zipped, tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    content = {"features.0.weight": torch.zeros(2), "x": Malicious(tmp_path / "run")}
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"a\.pth .*could run code .*refused"):
        weights.import_encoder(path, "vgg16")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"<html>404</html>", bytes(100), pickle.dumps({"a": np.zeros(3)})]
)
def test_not_a_file_of_torch(content, tmp_path):
    pytest.importorskip("torch", exc_type=ImportError)
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pth is damaged, incomplete, or not") as e:
        weights.import_encoder(tmp_path / "a.pth", "vgg16")
    assert "weights_only" not in str(e.value)


def test_pth_of_something_else(tmp_path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    for content in ([torch.zeros(2)], {"state": {"w": torch.zeros(2)}}):
        torch.save(content, tmp_path / "a.pth")
        with pytest.raises(UserError, match="no tensors by name, at its top level"):
            weights.import_encoder(tmp_path / "a.pth", "vgg16")


def test_pth_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"anything")
    with pytest.raises(UserError, match=r"not installed; run pip .*\[torch\]"):
        weights.import_encoder(tmp_path / "a.pth", "vgg16")


@pytest.mark.parametrize(
    ("name", "said"),
    [("none.h5", "There is no file"), ("a.npz", "unknown extension")],
)
def test_no_file_of_weights(name, said, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(UserError, match=said):
        weights.import_encoder(tmp_path / name, "vgg16")


def test_not_a_number(tmp_path):
    tensors = weight_files.torchvision("vgg13")
    tensors["features.7.bias"][3] = np.nan
    path = weight_files.write_safetensors(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UserError, match=r"features\.7\.bias that are not finite"):
        weights.import_encoder(path, "vgg13")


def expanded_torch(path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    torch.save({"features.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def compressed_torch(path):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    torch.save({"features.0.weight": torch.zeros(1 << 22)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def absent_hdf5(path):
    with h5py.File(path, "w") as file:
        shape, chunks = (1 << 20, 1 << 20), (64, 64)
        file.create_dataset("block1_conv1/kernel", shape, "float32", chunks=chunks)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.pth", expanded_torch), ("a.pth", compressed_torch), ("a.h5", absent_hdf5)],
)
def test_a_file_that_would_fill_the_memory_is_refused(name, write, tmp_path):
    write(tmp_path / name)
    with pytest.raises(UserError, match=r"would take [\d,]+ bytes of memory"):
        weights.import_encoder(tmp_path / name, "vgg16")


def test_the_hash_in_a_name_of_torchvision_is_that_of_the_file(tmp_path):
    content = b"not the weights"
    # Without PyTorch nothing is known of what follows the hash.
    read = "is damaged, incomplete|can be read only with PyTorch"
    digest = hashlib.sha256(content).hexdigest()
    for name, said in [
        ("vgg16_bn-6c64b313.pth", f"begins with {digest[:8]} and not with 6c64b313"),
        (f"vgg16_bn-{digest[:8]}.pth", read),
        ("mine-6c64b313.pth", read),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=said):
            weights.import_encoder(tmp_path / name, "vgg16_bn")
