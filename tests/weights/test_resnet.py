"""torchvision's resnet34 as an encoder."""

import jax
import numpy as np
import pytest
import weight_files

from mtl_jax import weights
from mtl_jax.errors import UserError
from mtl_jax.models import MultiTaskUNet
from mtl_jax.models.resnet import ResNetEncoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    place = tmp_path_factory.mktemp("resnet")
    path = weight_files.write_safetensors(
        place / "resnet34.safetensors", weight_files.resnet34()
    )
    weights.save(weights.import_encoder(path, "resnet34"), place / "imported")
    return place


def torch_features(torch, tensors, images):
    """The features of torchvision's module, put together from torch.nn."""
    nn = torch.nn

    def loaded(module, name):
        found = {
            key[len(name) + 1 :]: torch.tensor(value)
            for key, value in tensors.items()
            if key.startswith(f"{name}.")
        }
        module.load_state_dict(found)
        return module.eval()

    def conv(name, **options):
        after, before, side, _ = tensors[f"{name}.weight"].shape
        module = nn.Conv2d(
            before, after, side, padding=side // 2, bias=False, **options
        )
        return loaded(module, name)

    def norm(name):
        return loaded(nn.BatchNorm2d(len(tensors[f"{name}.weight"])), name)

    x = torch.tensor(((images - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        x = nn.functional.relu(norm("bn1")(conv("conv1", stride=2)(x)))
        features = [x]
        x = nn.MaxPool2d(3, stride=2, padding=1)(x)
        for layer, depth in enumerate((3, 4, 6, 3), start=1):
            for block in range(depth):
                name = f"layer{layer}.{block}"
                stride = 2 if layer > 1 and block == 0 else 1
                y = norm(f"{name}.bn1")(conv(f"{name}.conv1", stride=stride)(x))
                y = norm(f"{name}.bn2")(conv(f"{name}.conv2")(nn.functional.relu(y)))
                if f"{name}.downsample.0.weight" in tensors:
                    x = conv(f"{name}.downsample.0", stride=stride)(x)
                    x = norm(f"{name}.downsample.1")(x)
                x = nn.functional.relu(x + y)
            features.append(x)
    return [x.permute(0, 2, 3, 1).numpy() for x in features]


def test_features_are_those_of_torch(imported, random_variables):
    torch = pytest.importorskip("torch", exc_type=ImportError)
    encoder = weights.load(imported / "imported")
    model = MultiTaskUNet(encoder="resnet34", dense_heads=(), normalize_input=True)
    weights.check_suitable(encoder, "resnet34", "batch")
    fresh = random_variables(model)
    params, batch_stats = weights.start_from(
        encoder, fresh["params"], fresh["batch_stats"]
    )
    images = np.random.default_rng(0).uniform(0, 1, (2, 64, 96, 3)).astype(np.float32)
    _, found = jax.jit(
        lambda variables, images: model.apply(
            variables,
            images,
            capture_intermediates=lambda module, _: isinstance(module, ResNetEncoder),
        )
    )({"params": params, "batch_stats": batch_stats}, images)
    ours = found["intermediates"]["encoder"]["__call__"][0]
    theirs = torch_features(torch, weight_files.resnet34(), images)
    assert len(ours) == len(theirs) == 5
    for a, b in zip(ours, theirs, strict=True):
        assert 0.1 < b.std() < 10
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


def test_what_else_the_file_holds(imported):
    encoder = weights.import_encoder(imported / "resnet34.safetensors", "resnet34")
    assert encoder.ignored == ("fc.bias", "fc.weight")
    assert encoder.encoder == encoder.architecture == "resnet34"
    assert sum(x.size for x in jax.tree.leaves(encoder.params)) == 21_284_672


def test_what_does_not_fit(imported, tmp_path):
    encoder = weights.load(imported / "imported")
    with pytest.raises(UserError, match="set it to 'batch' or 'batch_no_average'"):
        weights.check_suitable(encoder, "resnet34", "group")
    with pytest.raises(UserError, match="set it to 'resnet34'"):
        weights.check_suitable(encoder, "vgg16", "batch")
    with pytest.raises(UserError, match=r"no features\.0\.weight.*torchvision's resn"):
        weights.import_encoder(imported / "resnet34.safetensors", "vgg16")
    tensors = weight_files.torchvision("vgg16_bn")
    path = weight_files.write_safetensors(tmp_path / "vgg.safetensors", tensors)
    with pytest.raises(UserError, match=r"no conv1\.weight.*torchvision's vgg16_bn"):
        weights.import_encoder(path, "resnet34")
    tensors = weight_files.resnet34()
    tensors["layer2.0.conv2.weight"] = np.zeros((128, 128, 1, 1), np.float32)
    path = weight_files.write_safetensors(tmp_path / "odd.safetensors", tensors)
    with pytest.raises(UserError, match=r"layer2\.0\.conv2\.weight of shape"):
        weights.import_encoder(path, "resnet34")
