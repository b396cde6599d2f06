"""Small problems with several tasks, and the loops that `tests/optim` compares with.

All arrays are NumPy's: an operation on JAX's, outside `jit`, is compiled for each
shape.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtl_jax import optim

SIZE, TASKS, STEPS = 5, 3, 6


def _kernels_only(params):
    return {"w": True, "b": jax.tree.map(lambda _: False, params["b"])}


TRANSFORMS = {
    "adam": lambda: optax.adam(0.1),
    "adamw": lambda: optax.adamw(0.05, weight_decay=0.1),
    "sgd momentum": lambda: optax.sgd(0.02, momentum=0.9),
    "lion": lambda: optax.lion(0.03, weight_decay=0.01),
    "clipped adam on a schedule": lambda: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adam(optax.linear_schedule(0.2, 0.01, 2 * STEPS)),
    ),
    "injected schedule": lambda: optax.inject_hyperparams(optax.adam)(
        learning_rate=optax.linear_schedule(0.2, 0.01, 2 * STEPS)
    ),
    "one rule for each leaf": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), _kernels_only),
        optax.multi_transform(
            {"first": optax.adam(0.1), "second": optax.sgd(0.02, momentum=0.9)},
            {"w": "first", "b": "second"},
        ),
    ),
}


def quadratics(seed, tasks=TASKS):
    """Targets [N, SIZE] and curvatures [N, SIZE] of 1/2 sum_i c_i (w_i - t_i)^2."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(0, 2, (tasks, SIZE)).astype(np.float32)
    return targets, rng.uniform(0.2, 3, (tasks, SIZE)).astype(np.float32)


def start():
    # A tree, not a single array; the first leaf is the second's mirror.
    return {"w": np.zeros(SIZE, np.float32), "b": {"v": np.ones(SIZE, np.float32)}}


def quadratic(params, target, curvature):
    first = jnp.sum(curvature * (params["w"] - target) ** 2) / 2
    return first + jnp.sum(curvature * (params["b"]["v"] + target) ** 2) / 2


# Jitted once for all the loops written by hand.
loss_and_gradient = jax.jit(jax.value_and_grad(quadratic))


def task_gradients_of(targets, curvatures):
    return optim.task_gradients(
        [
            lambda params, carry, k=k: (
                quadratic(params, targets[k], curvatures[k]),
                carry,
            )
            for k in range(len(targets))
        ]
    )


def compiled_step(optimizer):
    """A jitted step of a sequential optimizer on quadratics that are arguments."""

    def step(params, state, targets, curvatures, active=None):
        params, state, _, losses = optimizer.update(
            task_gradients_of(targets, curvatures), state, params, active=active
        )
        return params, state, losses

    return jax.jit(step)


def run(init, step, targets, curvatures, steps=STEPS, **options):
    """Parameters, state and losses [steps, N] after some steps from `start()`."""
    params = start()
    state, history = init(params), []
    for _ in range(steps):
        params, state, losses = step(params, state, targets, curvatures, **options)
        history.append(np.array(losses))
    return params, state, np.array(history)


class ByHand:
    """Plain optax, step by step, as the loops of the papers have it."""

    def __init__(self, tx, params):
        self.params, self._update = params, jax.jit(tx.update)

    def step(self, gradient, state):
        """Moves `params` along `gradient`, and returns the state after it."""
        updates, state = self._update(gradient, state, self.params)
        self.params = jax.tree.map(np.add, self.params, updates)
        return state


class AdamByHand:
    """Kingma and Ba 2015, algorithm 1, in NumPy."""

    def __init__(self, rate, size):
        self.rate, self.t = rate, 0
        self.m, self.v = np.zeros(size), np.zeros(size)

    def step(self, w, gradient):
        self.t += 1
        self.m = 0.9 * self.m + 0.1 * gradient
        self.v = 0.999 * self.v + 0.001 * gradient**2
        m, v = self.m / (1 - 0.9**self.t), self.v / (1 - 0.999**self.t)
        return w - self.rate * m / (np.sqrt(v) + 1e-8)


# Leaves of the kinds that networks have, a scalar among them.
SHAPES = {"encoder": {"kernel": (2, 3, 2), "bias": (3,)}, "head": {"scale": ()}}


def random_params(seed=0, dtype=np.float32):
    return row(random_gradients(1000 + seed, 1, dtype), 0)


def random_gradients(seed, tasks=TASKS, dtype=np.float32):
    """Standard normal gradients with a leading task axis, in the shapes of SHAPES."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=(tasks, *shape)).astype(dtype),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def as_matrix(gradients):
    """[N, D] float64, one row for each task."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(gradients)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def as_vector(updates):
    """[D] float64, in the order of `as_matrix`."""
    return np.concatenate(
        [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(updates)]
    )


def row(tree, k):
    return jax.tree.map(lambda leaf: np.asarray(leaf)[k], tree)


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def without(gradients, active):
    """The gradients with those of inactive tasks set to zero."""
    active = np.asarray(active)
    return jax.tree.map(
        lambda leaf: leaf * active.reshape(-1, *(1,) * (leaf.ndim - 1)), gradients
    )


def assert_trees_close(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance
        ),
        actual,
        expected,
    )


def assert_trees_equal(actual, expected):
    assert_trees_close(actual, expected, rtol=0, atol=0)
