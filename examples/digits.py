"""Trains every method of mtl_jax.optim on handwritten digits, and draws the trade-offs.

  python examples/digits.py --output=digits.png

Two digits of 8 x 8 pixels overlap in an image of 8 x 12. The two tasks are to read the
left and the right one. The four tasks add the sum of both numbers, and a picture of the
right digit alone. All tasks share a trunk of 24 units, which is too narrow for all of
them. Every method is trained with three seeds by the same Adam; the reference is a
network for each task alone (STL). It needs scikit-learn and matplotlib, which come with
`pip install 'mtl_jax[data,report]'`, and took two and a half minutes on one core.

Printed are the mean and standard deviation over the seeds, in percent: accuracies of
the digits, and explained variances of the sum and of the picture. The last column is
the mean difference from STL over the four tasks. COSMOS and PBI with equal preferences
ask for equal losses, and the picture's is small by its unit: they let it grow. DB-MTL
averages gradients over steps, and so does Adam after it. With LibMTL's default of 0.9
instead of 0.1, the lowest that the paper tries, it reads 68 % of the left digits.
"""

import argparse
import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mtl_jax import optim

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

TASKS = ("left digit", "right digit", "sum", "picture")
SIZES = (10, 10, 1, 64)  # outputs of the heads
WIDTH, BATCH, RATE = 24, 128, 3e-3
OVERLAP = 4  # columns that both digits cover

# Okabe and Ito: told apart whatever colours one sees, and by their marks.
STYLES = {
    "aggregator": ("#0072B2", "o"),
    "loss weighting": ("#D55E00", "s"),
    "sequential": ("#009E73", "^"),
}
# Of the scores drawn for two and for four tasks, in percentage points beside STL.
LOWEST_OF_TWO, LOWEST_OF_FOUR = -5, -50
TASK_STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"))

Data = tuple[np.ndarray, list[np.ndarray]]


def methods(num_tasks: int, steps: int, key: jax.Array) -> dict[str, dict[str, Any]]:
    """All methods by kind and name; another one is another line."""
    tx = optax.adam(RATE)
    equal = np.full(num_tasks, 1 / num_tasks)
    aggregators = {
        "weighted_sum": optim.weighted_sum(),
        "pcgrad": optim.pcgrad(key),
        "gradnorm": optim.gradnorm(num_tasks, shared=lambda path: path == "trunk"),
        "mgda": optim.mgda(),
        "cagrad": optim.cagrad(0.5),
        "imtl_g": optim.imtl_g(),
        "gradvac": optim.gradvac(num_tasks, key),
        "nash_mtl": optim.nash_mtl(num_tasks),
        "moco": optim.moco(num_tasks),
        "aligned_mtl": optim.aligned_mtl(),
        "fairgrad": optim.fairgrad(1.0),
        "upgrad": optim.upgrad(),
        "dualproj": optim.dualproj(),
        "conflict_free": optim.conflict_free(),
        "pcd": optim.pcd(num_tasks),
        "excess_mtl": optim.excess_mtl(num_tasks),
        "random_weighting": optim.random_weighting(key),
        "cr_mogm": optim.cr_mogm(optim.pcgrad(key), num_tasks),
        "graddrop": optim.graddrop(key),
        "db_mtl": optim.db_mtl(num_tasks, beta=0.1),
    }
    chains = {name: optax.chain(first, tx) for name, first in aggregators.items()}
    return {
        "aggregator": {**chains, "per_task": optim.per_task(tx, num_tasks)},
        "loss weighting": {
            "uncertainty_weighting": optim.uncertainty_weighting(
                num_tasks, optax.adam(0.025)
            ),
            "dwa": optim.dwa(num_tasks, steps_per_epoch=max(steps // 20, 1)),
            "famo": optim.famo(num_tasks),
            "geometric_mean": optim.geometric_mean(),
            "imtl_l": optim.imtl_l(num_tasks, optax.adam(0.025)),
            "stch": optim.stch(0.1),
            "cosmos": optim.cosmos(1.0, equal),
            "pbi": optim.pbi(1.0, equal),
            "random_loss_weighting": optim.random_loss_weighting(key),
        },
        "sequential": {
            "alternating": optim.alternating(tx),
            "independent": optim.independent(tx, num_tasks),
            "random_grouping": optim.random_grouping(tx, 2, key),
        },
    }


def pairs(
    digits: np.ndarray, numbers: np.ndarray, rng: np.random.Generator, number: int
) -> Data:
    """Images [number, 96] of two random digits, and what each task is to find."""
    left, right = rng.integers(0, len(digits), (2, number))
    gap = np.zeros((number, 8, 8 - OVERLAP), np.float32)
    image = np.maximum(
        np.concatenate([digits[left], gap], 2), np.concatenate([gap, digits[right]], 2)
    )
    total = ((numbers[left] + numbers[right] - 9) / 4).astype(np.float32)
    picture = digits[right].reshape(number, -1)
    targets = [numbers[left], numbers[right], total[:, None], picture]
    return image.reshape(number, -1), targets


def create_params(rng: np.random.Generator, num_tasks: int) -> dict[str, Any]:
    """A trunk of one layer, and a linear head for each task."""

    def kernel(rows, columns):
        return rng.normal(0, rows**-0.5, (rows, columns)).astype(np.float32)

    heads = {TASKS[k]: kernel(WIDTH, SIZES[k]) for k in range(num_tasks)}
    return {"trunk": kernel(8 * (16 - OVERLAP), WIDTH), "heads": heads}


def predict(params: dict[str, Any], images: jax.Array) -> list[jax.Array]:
    """Outputs of each task's head."""
    features = jax.nn.relu(images @ params["trunk"])
    return [features @ params["heads"][name] for name in TASKS[: len(params["heads"])]]


def loss_fn(params: dict[str, Any], images: jax.Array, targets: Any) -> jax.Array:
    """Cross-entropies of the digits, mean squares of the rest; [N]."""
    left, right, *rest = predict(params, images)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    losses = [
        cross_entropy(left, targets[0]).mean(),
        cross_entropy(right, targets[1]).mean(),
    ]
    for found, target in zip(rest, targets[2:], strict=False):
        losses.append(((found - target) ** 2).mean())
    return jnp.stack(losses)


def scores(params: dict[str, Any], images: jax.Array, targets: Any) -> jax.Array:
    """Accuracies, and explained variances; [N]."""
    left, right, *rest = predict(params, images)
    found = [
        (left.argmax(1) == targets[0]).mean(),
        (right.argmax(1) == targets[1]).mean(),
    ]
    for output, target in zip(rest, targets[2:], strict=False):
        error = ((output - target) ** 2).mean()
        found.append(1 - error / ((target - target.mean(0)) ** 2).mean())
    return jnp.stack(found)


def step_of(optimizer: Any, num_tasks: int) -> tuple[Callable, Callable]:
    """`init(params)` and `step(params, state, batch)` of any kind of method."""
    if isinstance(optimizer, optim.LossWeighting):
        tx = optax.adam(RATE)

        def weighted_step(params, state, batch):
            losses, pull_back = jax.vjp(lambda params: loss_fn(params, *batch), params)
            weights, weighting = optimizer.update(losses, None, state[0])
            updates, own = tx.update(pull_back(weights)[0], state[1], params)
            return optax.apply_updates(params, updates), (weighting, own)

        return lambda params: (optimizer.init(params), tx.init(params)), weighted_step

    if isinstance(optimizer, optim.SequentialOptimizer):

        def sequential_step(params, state, batch):
            losses = [
                lambda params, carry, k=k: (loss_fn(params, *batch)[k], carry)
                for k in range(num_tasks)
            ]
            return optimizer.update(optim.task_gradients(losses), state, params)[:2]

        return optimizer.init, sequential_step

    tx = optax.with_extra_args_support(optimizer)

    def joint_step(params, state, batch):
        losses, gradients = optim.jacobian(loss_fn, params, *batch, backward="vmap")
        updates, state = tx.update(gradients, state, params, task_losses=losses)
        return optax.apply_updates(params, updates), state

    return tx.init, joint_step


def train(optimizer: Any, params: Any, data: Data, order: jax.Array) -> Any:
    """Parameters after a step on each of the batches [steps, B] of examples."""
    init, step = step_of(optimizer, len(params["heads"]))

    def visit(carry, batch):
        return step(*carry, jax.tree.map(lambda values: values[batch], data)), None

    return jax.lax.scan(visit, (params, init(params)), order)[0][0]


def compare(
    num_tasks: int, steps: int, seeds: int, chosen: Sequence[str] | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Scores [seeds, N] of the single-task networks, and those of each method."""
    digits, numbers = load_digits(return_X_y=True)
    digits = (digits / 16).astype(np.float32).reshape(-1, 8, 8)
    train_digits, test_digits, train_numbers, test_numbers = train_test_split(
        digits, numbers, random_state=0, stratify=numbers
    )
    rng = np.random.default_rng(0)
    data = pairs(train_digits, train_numbers, rng, 20000)
    test = pairs(test_digits, test_numbers, rng, 2000)
    order = rng.integers(0, 20000, (seeds, steps, BATCH))
    starts = [create_params(rng, num_tasks) for _ in range(seeds)]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)

    # One program trains all seeds. Data are arguments: XLA takes long over constants.
    def of_seeds(make, params, order, data, *arguments):
        return jax.vmap(
            lambda params, order: train(make(*arguments), params, data, order)
        )(params, order)

    def alone(weights):
        return optax.chain(optim.weighted_sum(weights), optax.adam(RATE))

    score = jax.jit(jax.vmap(scores, in_axes=(0, None, None)))

    def results(make):
        run = jax.jit(functools.partial(of_seeds, make))
        return np.asarray(score(run(params, order, data), *test))

    # Every task's network has all heads, of which one is trained.
    run_alone = jax.vmap(
        functools.partial(of_seeds, alone), in_axes=(None, None, None, 0)
    )
    trained = jax.jit(run_alone)(params, order, data, jnp.eye(num_tasks))
    single = [
        score(jax.tree.map(lambda leaf, k=k: leaf[k], trained), *test)[:, k]
        for k in range(num_tasks)
    ]
    groups = methods(num_tasks, steps, jax.random.key(0)).values()
    optimizers = {
        name: optimizer
        for group in groups
        for name, optimizer in group.items()
        if chosen is None or name in chosen
    }
    # Compilation is most of the time, and keeps one core busy.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda x: results(lambda: x), optimizers.values())
    return np.stack(single, axis=1), dict(zip(optimizers, found, strict=True))


def table(two: Any, four: Any) -> str:
    """The scores of all methods in Markdown."""
    heads = [f"2: {name}" for name in TASKS[:2]] + [f"4: {name}" for name in TASKS]
    lines = [
        f"| method | {' | '.join(heads)} | 4: mean over STL |",
        "|---" * (len(heads) + 2) + "|",
    ]
    (single_two, of_two), (single_four, of_four) = two, four
    rows = {"STL": (single_two, single_four)}
    rows |= {name: (of_two[name], of_four[name]) for name in of_two}
    for name, results in rows.items():
        cells = [
            f"{100 * column.mean():.1f} ± {100 * column.std():.1f}"
            for result in results
            for column in result.T
        ]
        over = 100 * (results[1] - single_four).mean()
        lines.append(f"| {name} | {' | '.join(cells)} | {over:+.1f} |")
    return "\n".join(lines)


def draw(two: Any, four: Any, path: str) -> None:
    """Trade-off of the two tasks, and the four tasks' distances from STL."""
    kinds = {
        name: kind
        for kind, group in methods(2, 1, jax.random.key(0)).items()
        for name in group
    }
    (single_two, of_two), (single_four, of_four) = two, four
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    numbers = {name: str(i + 1) for i, name in enumerate(of_two)}
    reference = 100 * single_two.mean(0)
    corner = reference + LOWEST_OF_TWO
    for name, result in of_two.items():
        colour, mark = STYLES[kinds[name]]
        mean, spread = 100 * result.mean(0), 100 * result.std(0)
        # Hollow, and without a spread, where it would not be.
        is_beyond = (mean < corner).any()
        mean = np.maximum(mean, corner)
        left.plot(
            *mean,
            mark,
            color=colour,
            fillstyle="none" if is_beyond else "full",
            alpha=0.8,
        )
        if not is_beyond:
            left.errorbar(
                *mean, xerr=spread[0], yerr=spread[1], color=colour, alpha=0.3
            )
        left.annotate(numbers[name], mean, xytext=(4, 4), textcoords="offset points")
    left.set(xlim=corner[0] - 0.2, ylim=corner[1] - 0.2)
    for kind, (colour, mark) in STYLES.items():
        left.plot([], [], color=colour, marker=mark, linestyle="", label=kind)
    left.axvline(reference[0], color="0.6", linestyle=":", label="STL")
    left.axhline(reference[1], color="0.6", linestyle=":")
    left.set(xlabel=f"{TASKS[0]}, accuracy in %", ylabel=f"{TASKS[1]}, accuracy in %")
    left.set_title(f"two tasks; hollow: more than {-LOWEST_OF_TWO} below STL")
    left.legend(loc="center left")
    for k, (colour, mark) in enumerate(TASK_STYLES):
        over = [100 * (of_four[n] - single_four)[:, k].mean() for n in of_four]
        over, rows = np.array(over), np.arange(len(over))
        is_beyond = over < LOWEST_OF_FOUR
        style = {"color": colour, "marker": mark, "linestyle": "", "alpha": 0.8}
        right.plot(over[~is_beyond], rows[~is_beyond], label=TASKS[k], **style)
        beyond = rows[is_beyond]
        right.plot(0 * beyond + LOWEST_OF_FOUR, beyond, fillstyle="none", **style)
    right.axvline(0, color="0.6", linestyle=":")
    right.set_yticks(range(len(of_four)), [f"{numbers[n]}  {n}" for n in of_four])
    right.invert_yaxis()
    right.set(xlabel="score minus STL, percentage points")
    right.set_title(f"four tasks; hollow: more than {-LOWEST_OF_FOUR} below STL")
    right.legend(loc="center left", bbox_to_anchor=(0, 0.38))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prints the table and draws the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", help="names with commas; all by default")
    parser.add_argument("--output", default="digits.png", help="the figure")
    flags = parser.parse_args(arguments)
    chosen = flags.methods.split(",") if flags.methods else None
    results = [compare(n, flags.steps, flags.seeds, chosen) for n in (2, 4)]
    print(table(*results))
    draw(*results, flags.output)


if __name__ == "__main__":
    main()
