"""Initial parameters, by distribution, beside those of PyTorch's own layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mtl_jax.models import MultiTaskUNet, layers


def drawn(init_scheme, **fields):
    """Each layer's parameters, by path without the leaf's name."""
    model = MultiTaskUNet(encoder="vgg13", init_scheme=init_scheme, **fields)
    # The cheapest random generator to compile; the values are of no interest.
    key = jax.random.key(0, impl="rbg")
    variables = jax.jit(model.init)(key, jnp.zeros((1, 32, 32, 3)))
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *parents, name = (part.key for part in path)
        found.setdefault("/".join(parents[1:]), {})[name] = np.asarray(leaf)
    return found


@pytest.fixture(scope="module")
def kaiming():
    return drawn("kaiming_uniform", width=1 / 4)


@pytest.fixture(scope="module")
def he():
    return drawn("he_uniform", width=1 / 16)


def with_kernels(network):
    return {path: leaves for path, leaves in network.items() if "kernel" in leaves}


def is_uniform(values, bound):
    """Whether a Kolmogorov-Smirnov test lets uniform on +-bound pass."""
    assert np.abs(values).max() <= bound * (1 + 1e-6)
    return stats.kstest(values, "uniform", (-bound, 2 * bound)).pvalue > 1e-3


def test_every_layer_is_drawn_as_torch_draws_it(kaiming):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    found = with_kernels(kaiming)
    assert len(found) == 10 + 8 + 4
    biases, theirs_biases = [], []
    for path, leaves in found.items():
        kernel, bias = leaves["kernel"], leaves["bias"]
        *window, inputs, outputs = kernel.shape
        theirs = (
            torch.nn.Conv2d(inputs, outputs, window)
            if window
            else torch.nn.Linear(inputs, outputs)
        )
        weight = theirs.weight.detach().numpy().ravel()
        bound = 1 / np.sqrt(inputs * np.prod(window))
        assert np.abs(weight).max() <= bound * (1 + 1e-6), path
        same = stats.ks_2samp(kernel.ravel(), weight)
        assert same.pvalue > 1e-3, path
        if kernel.size > 1000:
            np.testing.assert_allclose(kernel.var(), weight.var(), rtol=0.1)
            np.testing.assert_allclose(kernel.var(), bound**2 / 3, rtol=0.1)
        biases.append(bias / bound)
        theirs_biases.append(theirs.bias.detach().numpy() / bound)
    ours, torchs = np.concatenate(biases), np.concatenate(theirs_biases)
    assert is_uniform(ours, 1)
    assert is_uniform(torchs, 1)


def test_normalisation_begins_as_torchs(kaiming):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.BatchNorm2d(1)
    expected = {
        "scale": theirs.weight.item(),
        "bias": theirs.bias.item(),
        "mean": theirs.running_mean.item(),
        "var": theirs.running_var.item(),
    }
    assert theirs.eps == layers.EPSILON
    norms = {k: v for k, v in kaiming.items() if k.endswith("norm")}
    assert len(norms) == 10 + 8
    for leaves in norms.values():
        for name, values in leaves.items():
            np.testing.assert_array_equal(values, expected[name])


def test_no_two_layers_are_given_the_same_numbers(kaiming):
    firsts = [
        tuple(leaves["kernel"].ravel()[:4])
        for leaves in kaiming.values()
        if "kernel" in leaves
    ]
    assert len(set(firsts)) == len(firsts)


def test_he_uniform_has_its_bound_and_no_biases(he):
    for path, leaves in with_kernels(he).items():
        bound = np.sqrt(6 / np.prod(leaves["kernel"].shape[:-1]))
        assert is_uniform(leaves["kernel"].ravel(), bound), path
        np.testing.assert_array_equal(leaves["bias"], 0)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="'xavier'"):
        layers.initializers("xavier", 9)
