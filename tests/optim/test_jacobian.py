"""Gradients of a vector of losses, and aggregation of the shared parameters alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtl_jax import optim

N, WIDTH, BATCH = 3, 5, 6


def network(seed):
    """A shared layer and a head for each task, and a batch, in NumPy."""
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {"kernel": rng.normal(size=(4, WIDTH)), "bias": rng.normal(size=5)},
        "heads": [rng.normal(size=WIDTH) for _ in range(N)],
    }
    return params, rng.normal(size=(BATCH, 4)), rng.normal(size=(N, BATCH))


def losses_of(params, images, targets):
    features = jnp.tanh(
        images @ params["encoder"]["kernel"] + params["encoder"]["bias"]
    )
    return jnp.stack(
        [
            jnp.mean((features @ head - target) ** 2)
            for head, target in zip(params["heads"], targets, strict=True)
        ]
    )


def is_shared(path):
    return path.startswith("encoder/")


@pytest.mark.parametrize("backward", ["scan", "vmap"])
def test_the_rows_are_the_tasks_gradients(backward):
    params, *data = network(0)

    def with_aux(params, *data):
        losses = losses_of(params, *data)
        return losses, {"largest": losses.max()}

    @jax.jit
    def compute(params):
        plain = optim.jacobian(losses_of, params, *data, backward=backward)
        aux = optim.jacobian(with_aux, params, *data, backward=backward, has_aux=True)
        return plain, aux, jax.jacrev(losses_of)(params, *data)

    (losses, gradients), ((again, aux), same), expected = compute(params)
    np.testing.assert_allclose(losses, losses_of(params, *data), rtol=1e-5)
    np.testing.assert_array_equal(again, losses)
    assert aux["largest"] == losses.max()
    jax.tree.map(np.testing.assert_array_equal, same, gradients)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradients,
        expected,
    )
    # No task's gradient at another task's head.
    np.testing.assert_array_equal(gradients["heads"][0][1:], 0)


@pytest.mark.parametrize("backward", ["scan", "vmap"])
def test_the_forward_pass_is_made_once(backward):
    program = jax.make_jaxpr(
        lambda *x: optim.jacobian(losses_of, *x, backward=backward)
    )(*network(0))
    assert str(program).count(" tanh ") == 1


@pytest.mark.parametrize("loss_fn", [jnp.sum, jnp.outer], ids=["scalar", "matrix"])
def test_losses_that_are_no_vector_are_named(loss_fn):
    arguments = (np.ones(2),) * (2 if loss_fn is jnp.outer else 1)
    shape = "(2, 2)" if loss_fn is jnp.outer else "()"
    with pytest.raises(ValueError, match=re.escape(f"the losses have shape {shape}")):
        jax.eval_shape(lambda: optim.jacobian(loss_fn, *arguments))


def mean(gram):
    return jnp.full(len(gram), 1 / len(gram))


def equal_projections(gram):
    """IMTL-G: the sum has the same projection onto every gradient's direction."""
    norms = jnp.sqrt(jnp.diagonal(gram))
    weights = jnp.linalg.solve(gram, norms)
    return weights / weights.sum()


@pytest.mark.parametrize("name", ["Mean", "IMTLG"])
def test_heads_keep_their_own_gradients_as_in_torchjd(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    autojac = pytest.importorskip(
        "torchjd.autojac", reason="TorchJD, a second opinion, is not installed"
    )
    from torchjd import aggregation

    weights = {"Mean": mean, "IMTLG": equal_projections}[name]
    tx = optim.on_shared(optim.from_gram(weights), is_shared)

    @jax.jit
    def ours(params, *data):
        _, gradients = optim.jacobian(losses_of, params, *data)
        return tx.update(gradients, tx.init(params), params)[0]

    for seed in range(3):
        params, images, targets = network(seed)
        with jax.enable_x64(True):
            update = jax.tree.map(np.array, ours(params, images, targets))
        tensors = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), params)
        encoder, heads = tensors["encoder"], tensors["heads"]
        features = torch.tanh(
            torch.tensor(images) @ encoder["kernel"] + encoder["bias"]
        )
        autojac.mtl_backward(
            [
                ((features @ head - torch.tensor(target)) ** 2).mean()
                for head, target in zip(heads, targets, strict=True)
            ],
            features,
        )
        autojac.jac_to_grad(list(encoder.values()), getattr(aggregation, name)())
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b.grad.numpy(), rtol=1e-7),
            update,
            tensors,
        )


def test_on_shared_hands_on_states_and_extra_arguments():
    """In a chain; the method's state is that of the shared parameters alone."""
    inner = optim.gradnorm(N, learning_rate=0.1)
    tx = optax.chain(optim.on_shared(inner, is_shared), optax.scale(-1.0))
    params, *data = network(1)
    active = np.array([True, False, True])

    @jax.jit
    def compute(params):
        losses, gradients = optim.jacobian(losses_of, params, *data)
        extra = {"task_losses": losses, "active": active}
        updates, state = tx.update(gradients, tx.init(params), params, **extra)
        encoder = gradients["encoder"]
        expected, alone = inner.update(encoder, inner.init(params["encoder"]), **extra)
        shared_state = state[0].inner_states["shared"].inner_state
        return updates, shared_state, expected, alone, gradients

    updates, state, expected, alone, gradients = compute(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5),
        updates["encoder"],
        expected,
    )
    np.testing.assert_allclose(state.weights, alone.weights, rtol=1e-6)
    # The absent task moves its head by nothing.
    np.testing.assert_array_equal(updates["heads"][1], 0)
    np.testing.assert_allclose(updates["heads"][0], -gradients["heads"][0][0])


def test_a_predicate_for_nothing_is_named():
    tx = optim.on_shared(optim.weighted_sum(), lambda path: path == "nowhere")
    with pytest.raises(ValueError, match="holds for none of the 5 parameters"):
        tx.init(network(0)[0])
