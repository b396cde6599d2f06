"""The same methods in PyTorch: loops over torch.optim, and TorchJD's PCGrad.

PyTorch is no dependency, and of the tests neither; `.ci/run` installs it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optim_problems import (
    SIZE,
    STEPS,
    TASKS,
    as_matrix,
    as_vector,
    compiled_step,
    quadratics,
    random_gradients,
    run,
    start,
)

from mtl_jax import optim
from mtl_jax.optim import _pcgrad

torch = pytest.importorskip(
    "torch", reason="PyTorch, a second opinion on the optimizers, is not installed"
)

SEEDS = st.integers(0, 2**31 - 1)
# As optax has it, and as torch.optim has it.
RULES = {
    "adam": (
        lambda: optax.adam(0.1),
        lambda params: torch.optim.Adam(params, lr=0.1),
    ),
    "sgd momentum": (
        lambda: optax.sgd(0.02, momentum=0.9),
        lambda params: torch.optim.SGD(params, lr=0.02, momentum=0.9),
    ),
}


def torch_loop(own_states, make, targets, curvatures):
    """Equation 2, or with an optimizer for every task equation 3, by autograd."""
    w, v = (
        torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
        for leaf in (start()["w"], start()["b"]["v"])
    )
    optimizers = [make([w, v]) for _ in range(len(targets) if own_states else 1)]
    history = []
    for _ in range(STEPS):
        losses = []
        for k in range(len(targets)):
            target, curvature = torch.tensor(targets[k]), torch.tensor(curvatures[k])
            optimizer = optimizers[k if own_states else 0]
            optimizer.zero_grad()
            loss = (curvature * (w - target) ** 2).sum() / 2
            loss = loss + (curvature * (v + target) ** 2).sum() / 2
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(losses)
    return w.detach().numpy(), v.detach().numpy(), np.array(history)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("own_states", [False, True], ids=["equation 2", "equation 3"])
def test_tasks_in_turn_are_a_loop_over_torch_optimizers(own_states, rule):
    ours, theirs = RULES[rule]
    make = functools.partial(optim.independent, num_tasks=TASKS)
    optimizer = (make if own_states else optim.alternating)(ours())
    step = compiled_step(optimizer)
    for seed in range(3):
        problem = quadratics(seed)
        params, _, losses = run(optimizer.init, step, *problem)
        w, v, expected = torch_loop(own_states, theirs, *problem)
        np.testing.assert_allclose(params["w"], w, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(params["b"]["v"], v, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(losses, expected, rtol=1e-4)


def parameter_by_parameter(tx, is_for_good):
    """`tx` for each parameter by itself, which rests where its gradient is zero.

    `is_for_good`: only until its first gradient.
    """

    def init_fn(params):
        return jax.tree.map(lambda leaf: (tx.init(leaf), jnp.array(False)), params)

    def update_one(gradient, state, param):
        inner, was_touched = state
        update, after = tx.update(gradient, inner, param)
        is_touched = jnp.any(gradient != 0) | (was_touched & is_for_good)
        update, inner = jax.tree.map(
            functools.partial(jnp.where, is_touched),
            (update, after),
            (jnp.zeros_like(update), inner),
        )
        return update, (inner, is_touched)

    def update_fn(updates, state, params):
        leaves, structure = jax.tree.flatten(updates)
        rest = map(structure.flatten_up_to, (state, params))
        pairs = list(map(update_one, leaves, *rest))
        return tuple(map(structure.unflatten, zip(*pairs, strict=True)))

    return optax.GradientTransformation(init_fn, update_fn)


# What PyTorch does with parameters that a task does not touch, as ours can be told to.
# By default from 2.0 on; as before; as before, had all had a gradient from the start.
UNTOUCHED = {
    "no gradient": functools.partial(parameter_by_parameter, is_for_good=False),
    "zeros after the first": functools.partial(
        parameter_by_parameter, is_for_good=True
    ),
    "zeros": lambda tx: tx,
}


def trunk_and_heads(way, make, targets):
    """Equation 2 where every task has a head, at each of which the others' is idle."""
    heads = len(targets)
    params = [
        torch.full((SIZE,), value, dtype=torch.float64, requires_grad=True)
        for value in [0.5] + [1.0] * heads
    ]
    if way == "zeros":
        for param in params:
            param.grad = torch.zeros_like(param)
    optimizer = make(params)
    for _ in range(STEPS):
        for k in range(heads):
            optimizer.zero_grad(set_to_none=way == "no gradient")
            output = params[0] * params[1 + k]
            ((output - torch.tensor(targets[k])) ** 2).sum().backward()
            optimizer.step()
    return np.stack([param.detach().numpy() for param in params])


@pytest.mark.parametrize("rule", RULES)
def test_parameters_that_a_task_does_not_touch(rule):
    ours, theirs = RULES[rule]
    targets = np.random.default_rng(0).normal(size=(TASKS, SIZE))

    def run_ours(tx):
        losses = [
            lambda params, carry, k=k: (
                jnp.sum((params[0] * params[1 + k] - targets[k]) ** 2),
                carry,
            )
            for k in range(TASKS)
        ]
        optimizer = optim.alternating(tx)
        gradients = optim.task_gradients(losses)
        params = [jnp.full(SIZE, 0.5), *jnp.ones((TASKS, SIZE))]
        step = jax.jit(lambda *point: optimizer.update(gradients, *point)[:2])
        state = optimizer.init(params)
        for _ in range(STEPS):
            params, state = step(state, params)
        return np.stack(params)

    with jax.enable_x64(True):
        found = {way: run_ours(told(ours())) for way, told in UNTOUCHED.items()}
    for way in UNTOUCHED:
        expected = trunk_and_heads(way, theirs, targets)
        np.testing.assert_allclose(found[way], expected, rtol=0, atol=1e-13)
    # Which of them it is shows, but for momentum's, which has no count of its steps.
    assert np.abs(found["zeros"] - found["no gradient"]).max() > 0.01
    apart = np.abs(found["zeros"] - found["zeros after the first"]).max()
    assert apart > 0.01 if rule == "adam" else apart < 1e-13


@pytest.mark.parametrize("rule", RULES)
def test_groups_with_own_states_are_torch_optimizers_at_one_point(rule):
    """Tasks 0 and 2, then task 1; a group's gradients are all taken before it steps."""
    ours, theirs = RULES[rule]
    optimizer = optim.random_grouping(ours(), 2, None, states="task", num_tasks=TASKS)
    targets, curvatures = quadratics(4)
    params, _, losses = run(
        optimizer.init, compiled_step(optimizer), targets, curvatures
    )
    w, v = (
        torch.tensor(leaf, dtype=torch.float64, requires_grad=True)
        for leaf in (start()["w"], start()["b"]["v"])
    )
    optimizers = [theirs([w, v]) for _ in range(TASKS)]
    history = np.zeros((STEPS, TASKS))
    for i in range(STEPS):
        for group in ((0, 2), (1,)):
            gradients = {}
            for k in group:
                t, c = torch.tensor(targets[k]), torch.tensor(curvatures[k])
                loss = (c * (w - t) ** 2).sum() / 2 + (c * (v + t) ** 2).sum() / 2
                gradients[k] = torch.autograd.grad(loss, (w, v))
                history[i, k] = loss.item()
            for k in group:
                w.grad, v.grad = gradients[k]
                optimizers[k].step()
    np.testing.assert_allclose(params["w"], w.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(params["b"]["v"], v.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(losses, history, rtol=1e-4)


def torchjd_pcgrad(seed, gradients):
    """TorchJD's result, and the orders that it drew."""
    aggregation = pytest.importorskip(
        "torchjd.aggregation", reason="TorchJD, which has a PCGrad, is not installed"
    )
    torch.manual_seed(seed)
    result = aggregation.PCGrad()(torch.tensor(gradients)).numpy()
    torch.manual_seed(seed)
    tasks = len(gradients)
    return result, np.stack([torch.randperm(tasks).numpy() for _ in range(tasks)])


@pytest.fixture
def pcgrad_in_orders(monkeypatch):
    """A step of `pcgrad` in given orders, which take the place of its key."""
    monkeypatch.setattr(_pcgrad, "random_orders", lambda key, count, n: key)

    def update(orders, gradients):
        state = optim.PCGradState(jnp.int32(0), jnp.int32(0))
        return optim.pcgrad(orders).update(gradients, state)[0]

    return jax.jit(update)


@pytest.mark.parametrize("tasks", [1, 2, 3, 6])
def test_pcgrad_is_that_of_torchjd_in_the_same_orders(tasks, pcgrad_in_orders):
    @given(SEEDS, st.sampled_from([-12, 0, 12]), st.booleans())
    def check(seed, exponent, is_mixed):
        rng = np.random.default_rng(seed)
        scales = rng.choice([1e-3, 1, 1e3], tasks) if is_mixed else np.ones(tasks)
        scales = scales * 10.0**exponent
        gradients = jax.tree.map(
            lambda leaf: np.float32(leaf * scales.reshape(-1, *(1,) * (leaf.ndim - 1))),
            random_gradients(seed, tasks),
        )
        expected, orders = torchjd_pcgrad(seed, as_matrix(gradients))
        actual = as_vector(pcgrad_in_orders(orders, gradients))
        np.testing.assert_allclose(
            actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
        )

    check()


def test_of_two_tasks_it_is_that_of_torchjd_in_any_order():
    update = jax.jit(optim.pcgrad(jax.random.key(0)).update)
    state = optim.PCGradState(jnp.int32(0), jnp.int32(0))
    num_conflicts = 0
    for seed in range(20):
        gradients = random_gradients(seed, 2)
        expected, _ = torchjd_pcgrad(seed, as_matrix(gradients))
        updates, state = update(gradients, state)
        np.testing.assert_allclose(as_vector(updates), expected, atol=1e-5)
        num_conflicts += state.num_conflicts
    assert num_conflicts > 10


def mgda(gram):
    """Desideri 2012, by the Frank-Wolfe steps of Sener and Koltun 2018."""

    def step(_, w):
        corner = jax.nn.one_hot(jnp.argmin(gram @ w), len(gram))
        direction = corner - w
        square = direction @ gram @ direction
        length = -(direction @ gram @ w) / jnp.where(square > 0, square, 1)
        return w + jnp.clip(length, 0, 1) * direction

    return jax.lax.fori_loop(0, 100, step, jnp.full(len(gram), 1 / len(gram)))


def imtl_g(gram):
    """Liu et al. 2021: projections of equal length on all gradients."""
    weights = jnp.linalg.pinv(gram) @ jnp.sqrt(jnp.diagonal(gram))
    return weights / weights.sum()


def aligned_mtl(gram):
    """Senushkin et al. 2023: the mean, with all singular values at the smallest."""
    values, vectors = jnp.linalg.eigh(gram)
    balance = vectors * jnp.sqrt(values[0] / values) @ vectors.T
    return balance.mean(0)


@pytest.mark.parametrize(
    ("weights", "name", "options"),
    [
        (mgda, "MGDA", {"epsilon": 1e-9}),
        (imtl_g, "IMTLG", {}),
        (aligned_mtl, "AlignedMTL", {}),
    ],
)
def test_published_functions_of_the_gram_matrix(weights, name, options):
    aggregation = pytest.importorskip(
        "torchjd.aggregation", reason="TorchJD, which has them, is not installed"
    )
    aggregator = getattr(aggregation, name)(**options)
    update = jax.jit(optim.from_gram(weights).update)
    for seed in range(10):
        gradients = random_gradients(seed)
        expected = aggregator(torch.tensor(as_matrix(gradients))).numpy()
        updates, _ = update(gradients, optax.EmptyState())
        np.testing.assert_allclose(as_vector(updates), expected, atol=1e-3)
