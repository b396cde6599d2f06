"""The authors' training in PyTorch, beside ours, in float64.

PyTorch is no dependency, and of the tests neither; `.ci/run` installs it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from original_program import forward, original_network
from scipy.stats import multivariate_normal

from configs import refuge
from mtl_jax import configuration, tasks
from mtl_jax.training import step as steps
from mtl_jax.training.state import TrainState
from mtl_jax.weights import names

# Methods that are not the same come apart by 1e-3 in the second iteration.
WIDTH, ITERATIONS = 1 / 8, 5

torch = pytest.importorskip(
    "torch", reason="PyTorch, a second opinion on the training, is not installed"
)


@pytest.fixture
def float64(monkeypatch):
    """What the code calls float32 is float64: rounding then explains nothing."""
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    with jax.enable_x64(True):
        yield


def parameters(network):
    """Ours, from those of the PyTorch network."""
    state = {k: v.detach().numpy().copy() for k, v in network.state_dict().items()}
    params = {}
    for path, layer in names.glaucoma_mtl().items():
        kernel, bias, *norm = (state[name] for name, _ in layer)
        *parents, last = path.split("/")
        place = params
        for name in parents:
            place = place.setdefault(name, {})
        if norm:
            kernel = kernel.transpose(2, 3, 1, 0)
            place[last] = {
                "conv": {"kernel": kernel, "bias": bias},
                "norm": dict(zip(("scale", "bias"), norm, strict=True)),
            }
        else:
            place[last] = {"kernel": kernel.reshape(len(kernel), -1).T, "bias": bias}
    return params


def batches(make_batch):
    """Different images at every iteration, in float64."""
    for seed in range(ITERATIONS):
        batch = {**make_batch(size=2, seed=seed)}
        batch["image"] = batch["image"] / 255
        for key in ("fovea_xy", "glaucoma"):
            batch[key] = batch[key].astype(np.float64)
        yield batch


def target_map(xy, size):
    """As their program draws it: a density at the pixels, by its largest value."""
    rows, columns = np.mgrid[:size, :size]
    variance = 50 * (size / 256) ** 2
    density = multivariate_normal(xy[::-1], variance * np.eye(2)).pdf(
        np.dstack((rows, columns))
    )
    return density / density.max()


def their_loss(network, batch, task):
    """On probabilities, one forward pass on the task's own route."""
    functional = torch.nn.functional
    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2)
    predicted = torch.sigmoid(forward(torch, network, image, (task,))[task])
    if task == "glaucoma":
        target = torch.tensor(batch["glaucoma"])
        entropy = functional.binary_cross_entropy(predicted, target, reduction="none")
        return ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    if task == "fovea":
        size = batch["image"].shape[1]
        maps = np.stack([target_map(xy, size) for xy in batch["fovea_xy"]])
        return functional.l1_loss(predicted, torch.tensor(maps))
    mask = torch.tensor(batch[f"{task}_mask"].astype(np.float64))
    return functional.binary_cross_entropy(predicted, mask)


def their_training(method, network, make_batch, learning_rate=1e-4, removed=False):
    """Losses [iterations, tasks] of the authors' loops over torch.optim.

    Between the tasks gradients are set to zero, or `removed`, as PyTorch does by
    default since 2.0: Adam then passes over what a task does not touch.
    """
    count = len(tasks.TASKS) if method == "independent" else 1
    parameters = list(network.parameters())
    for parameter in parameters:
        parameter.grad = None if removed else torch.zeros_like(parameter)
    optimizers = [torch.optim.Adam(parameters, learning_rate) for _ in range(count)]
    history = []
    for batch in batches(make_batch):
        losses = []
        if method == "vanilla":
            losses = [their_loss(network, batch, task) for task in tasks.TASKS]
            optimizers[0].zero_grad(set_to_none=removed)
            sum(losses).backward()
            optimizers[0].step()
        else:
            for index, task in enumerate(tasks.TASKS):
                optimizer = optimizers[index % count]
                loss = their_loss(network, batch, task)
                optimizer.zero_grad(set_to_none=removed)
                loss.backward()
                optimizer.step()
                losses.append(loss)
        history.append([loss.item() for loss in losses])
    return np.array(history)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "alternating", "independent"])
def test_losses_are_those_of_the_authors_training(method, make_batch, float64):
    config = refuge.get_config("authors")
    config.method.name, config.model.width = method, WIDTH
    config.model.dropout = 0.0
    network = original_network(torch, WIDTH).double()
    # A config is refused where JAX computes in 64 bits.
    with jax.enable_x64(False):
        built = configuration.build(config)
    optimizer = built.optimizer(ITERATIONS)
    model = built.model.clone(dtype=jnp.float64)
    chosen = built.tasks
    params = parameters(network)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats={},
        opt_state=optimizer.init(params),
        key=jax.random.key(0),
    )
    step = jax.jit(steps.train_step(model, chosen, optimizer))
    ours = []
    for batch in batches(make_batch):
        state, metrics = step(state, batch)
        ours.append(metrics["loss"])
    theirs = their_training(method, network, make_batch, config.optimizer.learning_rate)
    assert np.array(ours).dtype == np.float64
    np.testing.assert_allclose(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("method", "low", "high"), [("independent", 0, 0), ("alternating", 0.01, 0.02)]
)
def test_only_alternating_hangs_on_gradients_that_are_removed(
    method, low, high, make_batch
):
    histories = [
        their_training(
            method,
            original_network(torch, WIDTH).double(),
            make_batch,
            removed=removed,
        )
        for removed in (False, True)
    ]
    difference = np.abs(histories[0] - histories[1])
    assert low <= difference.max() <= high
    # Nothing has been stepped before the first task's first loss.
    assert difference[0, 0] == 0
