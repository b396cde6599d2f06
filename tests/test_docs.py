"""The Python of README and docs runs as written."""

import pathlib
import re

import numpy as np

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parent.parent


def blocks(page):
    """The page's programs, compiled."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return [compile(text, page, "exec") for text in found]


def run(block):
    namespace = {}
    exec(block, namespace)
    return namespace


def test_library_example_runs_and_learns():
    (block,) = blocks("README.md")
    history = np.array(run(block)["history"])
    assert history.shape == (20, 2)
    assert np.isfinite(history).all()
    assert (history[-5:].mean(0) < history[:5].mean(0)).all()


def test_a_new_aggregator(tiny_batch):
    aggregator, _ = blocks("docs/extending.md")
    page = run(aggregator)
    state, first = page["train_step"](page["state"], tiny_batch)
    for _ in range(15):
        state, last = page["train_step"](state, tiny_batch)
    assert last["loss"].sum() < first["loss"].sum()
    # By hand: weights of sum 4 that change from step to step, none for the inactive.
    transform = page["random_loss_weighting"](page["jax"].random.key(0))
    active = np.array([True, True, False, True])
    gradients, rows = np.eye(4, dtype=np.float32), []
    for count in range(3):
        update, after = transform.update(gradients, count, active=active)
        assert after == count + 1
        rows.append(np.asarray(update))
    np.testing.assert_allclose(np.sum(rows, 1), 4, rtol=1e-5)
    assert not np.any(np.array(rows)[:, 2])
    assert not np.allclose(rows[0], rows[1])


def test_a_new_task(synthetic_data):
    _, task = blocks("docs/extending.md")
    page = run(task)
    state, history = page["train"](*synthetic_data, num_steps=12)
    assert set(state.params) >= {"head_disc", "head_cup", "head_rim"}
    history = np.array(history)
    assert history.shape == (12, 3)
    assert (history[-3:].mean(0) < history[:3].mean(0)).all()
