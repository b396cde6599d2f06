"""The Python of README and docs runs as written."""

import pathlib
import re

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from mtl_jax import metrics, optim, tasks, workdirs
from mtl_jax.data import batching, pipeline
from mtl_jax.data.synthetic import renderer
from mtl_jax.models import MultiTaskUNet
from mtl_jax.training import step

pytest_plugins = ("training_fixtures", "untrained_network")

ROOT = pathlib.Path(__file__).parent.parent


def blocks(page):
    """The page's programs, compiled."""
    found = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return [compile(text, page, "exec") for text in found]


def run(block):
    namespace = {}
    exec(block, namespace)
    return namespace


def test_prediction_example_runs(network_folder, tmp_path, monkeypatch, capsys):
    predict, _ = blocks("README.md")
    monkeypatch.setattr(workdirs, "BUILT_IN", network_folder)
    monkeypatch.chdir(tmp_path)
    rng, camera = np.random.default_rng(0), renderer.EVALUATION_CAMERA
    drawn = renderer.render(rng, (64, 72), camera, False).photograph
    Image.fromarray(drawn).save("eye.jpg")
    eye = run(predict)["eye"]
    assert 0 < eye.probability < 1
    assert str(eye.probability) in capsys.readouterr().out
    assert eye.masks["disc"].shape == (64, 72)


def test_library_example_runs_and_learns():
    _, block = blocks("README.md")
    history = np.array(run(block)["history"])
    assert history.shape == (20, 2)
    assert np.isfinite(history).all()
    assert (history[-5:].mean(0) < history[:5].mean(0)).all()


@pytest.mark.slow
def test_programs_of_the_optim_page_train():
    """From block to block in one namespace, as a reader runs them."""
    pytest.importorskip("equinox", reason="Equinox is not installed")
    page, num_trained = {}, 0
    for block in blocks("docs/optim.md"):
        before = dict(page)
        page.pop("history", None)
        exec(block, page)
        if "history" in page:
            history = np.array(page["history"])
            assert (history[-1] < 0.7 * history[0]).all()
            num_trained += 1
        if "accumulated" in page and "accumulated" not in before:
            arguments = [page[name] for name in ("loss_fn", "params", "x", "y")]
            jax.tree.map(
                lambda parts, whole: np.testing.assert_allclose(
                    parts, whole, rtol=1e-4, atol=1e-6
                ),
                (page["losses"], page["gradients"]),
                optim.jacobian(*arguments),
            )
    assert num_trained == 6


@pytest.mark.slow
def test_a_new_aggregator(tiny_batch):
    aggregator, *_ = blocks("docs/extending.md")
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


@pytest.mark.slow
def test_a_new_task(synthetic_data):
    _, task, _ = blocks("docs/extending.md")
    run(task)
    try:
        built = tasks.build(["disc", "cup", "rim"])
    finally:
        del tasks.TASKS["rim"]
    model = MultiTaskUNet(
        encoder="small",
        width=1 / 16,
        classification_heads=(),
        dense_heads=("disc", "cup", "rim"),
    )
    optimizer = optim.independent(optax.adam(1e-2), len(built))
    state = step.create_train_state(model, optimizer, jax.random.key(0))
    assert set(state.params) >= {"head_disc", "head_cup", "head_rim"}
    train_step = jax.jit(step.sequential_step(model, built, optimizer))
    table = pipeline.open_split(pipeline.open_dataset(*synthetic_data), "train")
    batches = batching.training_batches(table, batch_size=4, seed=0)
    history = []
    for _ in range(12):
        state, found = train_step(state, next(batches))
        history.append(found["loss"])
    history = np.array(history)
    assert history.shape == (12, 3)
    assert (history[-3:].mean(0) < history[:3].mean(0)).all()


def test_a_new_metric():
    *_, metric = blocks("docs/extending.md")
    run(metric)
    try:
        summary = metrics.summarize([{"vcdr": 0.5, "vcdr_true": 0.75}, {"vcdr": 0.1}])
        assert summary["vcdr_bias"] == -0.25
        assert metrics.summarize([])["vcdr_bias"] is None
        assert list(metrics.at("model"))[-1] == "vcdr_bias"
    finally:
        metrics.METRICS.pop()
