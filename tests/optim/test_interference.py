import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_jax import optim

interference = jax.jit(optim.interference)


def gradients(seed, scales):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (4, 2), "bias": (3,), "scale": ()}
    return {
        # The task axis last, where the scales find it, then first.
        name: np.moveaxis(rng.normal(size=(*shape, 3)) * scales, -1, 0)
        for name, shape in shapes.items()
    }


def by_hand(tree):
    rows = np.concatenate([leaf.reshape(3, -1) for leaf in tree.values()], axis=1)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return np.linalg.norm(rows, axis=1), unit @ unit.T


@given(
    seed=st.integers(0, 2**32 - 1),
    exponents=st.tuples(*3 * [st.integers(-15, 15)]),
)
def test_against_numpy(seed, exponents):
    tree = gradients(seed, [10.0**e for e in exponents])
    norm, cosine = interference(jax.tree.map(jnp.float32, tree))
    expected_norm, expected_cosine = by_hand(tree)
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-5)
    np.testing.assert_allclose(cosine, expected_cosine, atol=1e-5)


def test_a_task_without_a_gradient():
    norm, cosine = interference(jnp.array([[3.0, 4.0], [0.0, 0.0], [-3.0, -4.0]]))
    np.testing.assert_allclose(norm, [5, 0, 5])
    np.testing.assert_allclose(cosine, [[1, 0, -1], [0, 0, 0], [-1, 0, 1]], atol=1e-6)


def test_bfloat16_gradients_are_summed_in_float32():
    ones = jnp.ones((2, 1001), jnp.bfloat16)
    norm, _ = interference(ones)
    np.testing.assert_allclose(norm, np.sqrt(1001), rtol=1e-6)


def test_gradients_without_a_task_axis_are_refused():
    with pytest.raises(ValueError, match="leading task axis"):
        optim.interference({"a": jnp.ones(()), "b": jnp.ones((2, 3))})
