import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models import MultiTaskUNet

HEADS = ("glaucoma", "disc", "cup", "fovea")
DENSE = HEADS[1:]


def num_params(**options):
    model = MultiTaskUNet(**options)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.fixture(scope="module")
def images(tiny_batch):
    return tiny_batch["image"].astype(np.float32) / 255


@pytest.fixture(scope="module")
def variables(tiny_model, random_variables):
    return random_variables(tiny_model)


@pytest.fixture(scope="module")
def apply(tiny_model):
    """The tiny network in evaluation, compiled once for each choice of heads."""

    @functools.partial(jax.jit, static_argnames="heads")
    def apply(variables, images, heads=None):
        return tiny_model.apply(variables, images, heads=heads)

    return apply


@pytest.fixture(scope="module")
def logits(apply, variables, images):
    return apply(variables, images)


@pytest.mark.parametrize(
    ("encoder", "multi_task", "single_task"),
    [("vgg13", 17_268_036, 61_213_572), ("vgg16", 22_580_292, 82_462_596)],
)
def test_parameter_counts_are_the_papers(encoder, multi_task, single_task):
    assert num_params(encoder=encoder) == multi_task
    classifier = num_params(encoder=encoder, dense_heads=())
    segmenters = [
        num_params(encoder=encoder, classification_heads=(), dense_heads=(head,))
        for head in DENSE
    ]
    assert classifier + sum(segmenters) == single_task


def test_the_default_is_the_full_vgg16_network_for_all_tasks():
    assert num_params() == 22_580_292
    assert num_params(norm="batch_no_average") == 22_580_292


@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (32, 64)], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_are_float32_of_the_images_size(sides, dtype):
    model = MultiTaskUNet(width=1 / 16, dtype=dtype)
    images = jax.ShapeDtypeStruct((3, *sides, 3), jnp.float32)
    outputs, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert set(outputs) == set(HEADS)
    assert outputs["glaucoma"].shape == (3,)
    assert all(outputs[head].shape == (3, *sides) for head in DENSE)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((outputs, variables))}
    assert dtypes == {jnp.dtype("float32")}


@pytest.mark.parametrize("sides", [(32, 32), (96, 64)], ids=str)
def test_a_resnet_encoder_halves_once_more(sides):
    model = MultiTaskUNet(encoder="resnet34", width=1 / 16)
    images = jax.ShapeDtypeStruct((3, *sides, 3), jnp.float32)
    outputs, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), images
    )
    assert outputs["glaucoma"].shape == (3,)
    assert all(outputs[head].shape == (3, *sides) for head in DENSE)
    # The convolutions before the heads and their normalisation, nothing else.
    names = set(variables["params"]["decoder"])
    assert names == {"last_conv"} | {
        f"stage{i}_conv{j}" for i in range(1, 5) for j in (1, 2)
    }
    with pytest.raises(ValueError, match="divisible by 32"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 48, 32, 3)))


def test_logits_differ_between_heads_and_images(logits):
    for i, head in enumerate(DENSE):
        assert not np.allclose(logits[head], logits[DENSE[i - 1]], atol=1e-2)
        assert not np.allclose(logits[head][0], logits[head][1], atol=1e-2)
    assert np.ptp(logits["glaucoma"]) > 1e-3


@pytest.mark.parametrize("heads", [("glaucoma",), ("fovea", "disc")], ids="-".join)
def test_some_heads_give_what_all_heads_give(apply, variables, images, logits, heads):
    some = apply(variables, images, heads)
    assert set(some) == set(heads)
    for head in heads:
        np.testing.assert_allclose(some[head], logits[head], atol=1e-5)


def test_glaucoma_alone_does_not_touch_the_decoder(apply, variables, images, logits):
    def spoil(path, leaf):
        used = path[1].key in ("encoder", "head_glaucoma")
        return leaf if used else np.full_like(leaf, np.nan)

    spoilt = jax.tree_util.tree_map_with_path(spoil, variables)
    alone = apply(spoilt, images, ("glaucoma",))
    np.testing.assert_allclose(alone["glaucoma"], logits["glaucoma"], atol=1e-5)


def test_glaucoma_has_no_gradient_in_the_decoder(random_variables, images):
    model = MultiTaskUNet(encoder="vgg13", width=1 / 16, norm="none")
    variables = random_variables(model)

    def loss(params):
        logits = model.apply({"params": params}, images, heads=["glaucoma"])
        return logits["glaucoma"].sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    size = {
        name: max(np.abs(leaf).max() for leaf in jax.tree.leaves(part))
        for name, part in gradient.items()
    }
    assert {name for name, largest in size.items() if largest > 0} == {
        "encoder",
        "head_glaucoma",
    }


def test_networks_for_one_kind_of_task_have_only_its_parts(random_variables):
    classifier = MultiTaskUNet(width=1 / 16, dense_heads=())
    segmenter = MultiTaskUNet(
        width=1 / 16, classification_heads=(), dense_heads=("cup",)
    )
    assert set(random_variables(classifier)["params"]) == {"encoder", "head_glaucoma"}
    assert set(random_variables(segmenter)["params"]) == {
        "encoder",
        "decoder",
        "head_cup",
    }


@pytest.mark.parametrize("norm", ["batch", "batch_no_average", "group", "none"])
def test_every_norm_trains_and_keeps_what_it_should(norm, random_variables, images):
    model = MultiTaskUNet(encoder="vgg13", width=1 / 16, norm=norm)
    variables = random_variables(model)
    assert ("batch_stats" in variables) == (norm == "batch")
    norms = [
        path
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])
        if any(key.key == "norm" for key in path)
    ]
    # Scale and bias behind each of the 10 + 8 convolutions.
    assert len(norms) == (0 if norm == "none" else 36)

    @jax.jit
    def train(variables, images, key):
        return model.apply(
            variables, images, train=True, mutable=True, rngs={"dropout": key}
        )

    outputs, after = train(variables, images, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((outputs, after)))
    assert set(after) == set(variables)
    # Training changes running averages and nothing else.
    jax.tree.map(np.testing.assert_array_equal, after["params"], variables["params"])
    if norm == "batch":
        moved = jax.tree.map(
            lambda a, b: not np.array_equal(a, b),
            after["batch_stats"],
            variables["batch_stats"],
        )
        assert all(jax.tree.leaves(moved))


def test_running_averages_move_by_one_minus_the_momentum(random_variables, images):
    model = MultiTaskUNet(
        encoder="vgg13", width=1 / 16, norm_momentum=0.7, dense_heads=()
    )
    variables = random_variables(model)
    first = "block1_conv1"
    _, updated = jax.jit(
        lambda v, x: model.apply(
            v,
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
    )(variables, images)
    layer = variables["params"]["encoder"][first]["conv"]
    features = convolution(images, layer)
    for name, value in (
        ("mean", features.mean((0, 1, 2))),
        ("var", features.var((0, 1, 2))),
    ):
        before = variables["batch_stats"]["encoder"][first]["norm"][name]
        after = updated["batch_stats"]["encoder"][first]["norm"][name]
        np.testing.assert_allclose(after, 0.7 * before + 0.3 * value, atol=1e-5)


def test_evaluation_changes_nothing_and_treats_images_alone(
    tiny_model, apply, variables, images, logits
):
    _, updated = jax.eval_shape(
        lambda v, x: tiny_model.apply(v, x, mutable=True), variables, images
    )
    assert jax.tree.structure(updated) == jax.tree.structure(variables)
    reversed_logits = apply(variables, images[::-1])
    for head in HEADS:
        np.testing.assert_allclose(reversed_logits[head][::-1], logits[head], atol=1e-5)


def test_bfloat16_is_near_float32(variables, images, logits):
    half = MultiTaskUNet(encoder="vgg13", width=1 / 16, dtype=jnp.bfloat16)
    outputs = jax.jit(half.apply)(variables, images)
    for head in HEADS:
        assert outputs[head].dtype == jnp.float32
        scale = np.abs(logits[head]).max()
        difference = np.abs(outputs[head] - logits[head]) / scale
        assert 0 < difference.mean() < 0.02
        assert difference.max() < 0.15


@pytest.mark.parametrize("sides", [(40, 32), (32, 24), (8, 8)], ids=str)
def test_sides_that_sixteen_does_not_divide_are_refused(tiny_model, sides):
    images = jax.ShapeDtypeStruct((1, *sides, 3), jnp.float32)
    with pytest.raises(ValueError, match="divisible by 16"):
        jax.eval_shape(tiny_model.init, jax.random.key(0), images)


def test_unknown_heads_are_refused(tiny_model, variables, images):
    with pytest.raises(ValueError, match="vessels.*not among"):
        tiny_model.apply(variables, images, heads=["disc", "vessels"])
    segmenter = MultiTaskUNet(classification_heads=())
    with pytest.raises(ValueError, match="glaucoma.*not among"):
        jax.eval_shape(
            lambda x: segmenter.init(jax.random.key(0), x, heads=["glaucoma"]), images
        )


def convolution(x, layer):
    """3x3, zero padding, stride 1, bias; in float64."""
    kernel = layer["kernel"].astype(np.float64)
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for row in range(3):
        for column in range(3):
            window = padded[:, row : row + height, column : column + width]
            total += window @ kernel[row, column]
    return total + layer["bias"]


def pooled(x):
    return np.maximum.reduce(
        [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)],
    )


def upsampled(x):
    for axis in (1, 2):
        size = x.shape[axis]
        positions = np.linspace(0, size - 1, 2 * size)
        x = np.apply_along_axis(
            lambda line, p=positions: np.interp(p, np.arange(len(line)), line), axis, x
        )
    return x


def test_the_whole_network_agrees_with_numpy(random_variables, images):
    model = MultiTaskUNet(encoder="vgg13", width=1 / 16, norm="none")
    variables = random_variables(model, seed=3)
    params = variables["params"]

    def conv_relu(x, part, name):
        return np.maximum(convolution(x, params[part][name]["conv"]), 0)

    # Encoder: five blocks of two convolutions, pooling between them.
    x, skips = images.astype(np.float64), []
    for block, channels in enumerate((4, 8, 16, 32, 32), 1):
        if block > 1:
            x = pooled(x)
        x = conv_relu(x, "encoder", f"block{block}_conv1")
        x = conv_relu(x, "encoder", f"block{block}_conv2")
        assert x.shape == (4, 32 >> (block - 1), 32 >> (block - 1), channels)
        skips.append(x)
    deepest = skips.pop()
    # Classifier: global max pooling and a linear unit.
    head = params["head_glaucoma"]
    expected = {"glaucoma": (deepest.max((1, 2)) @ head["kernel"] + head["bias"])[:, 0]}
    # Decoder: (in, mid, out) channels are a sixteenth of the method's.
    x = deepest
    for stage, (inputs, middle, outputs) in enumerate(
        [(64, 32, 16), (32, 16, 8), (16, 8, 4), (8, 4, 4)], 1
    ):
        x = np.concatenate([skips.pop(), upsampled(x)], axis=-1)
        assert x.shape[-1] == inputs
        x = conv_relu(x, "decoder", f"stage{stage}_conv1")
        assert x.shape[-1] == middle
        x = conv_relu(x, "decoder", f"stage{stage}_conv2")
        assert x.shape[-1] == outputs
    for name in DENSE:
        head = params[f"head_{name}"]
        expected[name] = (x @ head["kernel"] + head["bias"])[..., 0]

    actual = jax.jit(model.apply)(variables, images)
    for name in HEADS:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-4)
        assert np.abs(expected[name]).max() > 0.05


def test_variables_do_not_depend_on_what_is_computed_anew():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    kept, anew = (
        jax.eval_shape(
            MultiTaskUNet(encoder="resnet34", width=1 / 16, remat=remat).init,
            jax.random.key(0),
            images,
        )
        for remat in (False, True)
    )
    assert kept == anew


@pytest.mark.slow
def test_features_computed_anew_change_nothing(tiny_batch, random_variables):
    images = tiny_batch["image"].astype(np.float32) / 255

    def gradient(remat):
        model = MultiTaskUNet(encoder="vgg13", width=1 / 16, remat=remat)

        def loss(params, batch_stats):
            logits, updated = model.apply(
                {"params": params, "batch_stats": batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )
            return sum(jnp.sum(x**2) for x in logits.values()), updated

        step = jax.jit(jax.value_and_grad(loss, has_aux=True))
        variables = random_variables(model)
        return step(variables["params"], variables["batch_stats"])

    anew, kept = gradient(True), gradient(False)
    # The gradient of a bias before a norm is zero, up to the rounding of the largest.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(kept[1]))
    for actual, expected in zip(*map(jax.tree.leaves, (anew, kept)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6 * largest)
