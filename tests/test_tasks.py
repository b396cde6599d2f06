import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import losses, tasks

ORDER = ("glaucoma", "disc", "cup", "fovea")


def random_logits(task, batch, seed=0):
    shape = batch["disc_mask"].shape if task.is_dense else batch["glaucoma"].shape
    return np.random.default_rng(seed).normal(0, 2, shape).astype(np.float32)


def test_all_tasks_are_built_in_the_methods_order():
    built = tasks.build()
    assert tuple(task.name for task in built) == tuple(tasks.TASKS) == ORDER
    assert [task.labels for task in built] == [(name,) for name in ORDER]
    assert [task.kind for task in built] == [
        "classification",
        "segmentation",
        "segmentation",
        "localisation",
    ]
    assert [task.is_dense for task in built] == [False, True, True, True]


@pytest.mark.parametrize(
    "names",
    [p for n in range(1, 5) for p in itertools.permutations(ORDER, n)],
    ids="-".join,
)
def test_a_choice_of_tasks_keeps_order_and_labels(names):
    built = tasks.build(names)
    assert [task.name for task in built] == [n for n in ORDER if n in names]
    assert [task.labels for task in built] == [(n,) for n in ORDER if n in names]


@pytest.mark.parametrize(
    "names", [(), ("disc", "disc"), ("disc", "vessels"), ("Glaucoma",), "disc"]
)
def test_bad_choices_are_refused(names):
    with pytest.raises(ValueError, match="distinct names"):
        tasks.build(names)


@pytest.mark.parametrize("name", ORDER)
def test_a_loss_is_one_number_per_image_and_of_that_image_only(name, tiny_batch):
    (task,) = tasks.build([name])
    logits = random_logits(task, tiny_batch)
    values = task.loss(logits, tiny_batch)
    assert values.shape == (4,)
    assert values.dtype == jnp.float32
    one_by_one = [
        task.loss(logits[i : i + 1], {k: v[i : i + 1] for k, v in tiny_batch.items()})
        for i in range(4)
    ]
    np.testing.assert_allclose(values, np.concatenate(one_by_one), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("glaucoma", "glaucoma"),
        ("disc", "disc_mask"),
        ("cup", "cup_mask"),
        ("fovea", "fovea_xy"),
    ],
)
def test_a_loss_depends_on_its_own_target_only(name, target, tiny_batch):
    (task,) = tasks.build([name])
    logits = random_logits(task, tiny_batch)
    needed = {target: tiny_batch[target]}
    values = task.loss(logits, needed)
    changed = task.loss(logits, {target: np.roll(needed[target], 1, axis=0)})
    assert not np.allclose(values, changed)


def test_perfect_logits_have_almost_no_loss(tiny_batch):
    for task in tasks.build(["glaucoma", "disc", "cup"]):
        key = task.name if task.name == "glaucoma" else f"{task.name}_mask"
        logits = 40.0 * tiny_batch[key].astype(np.float32) - 20.0
        np.testing.assert_allclose(task.loss(logits, tiny_batch), 0, atol=1e-6)


def test_options_reach_their_losses(tiny_batch):
    (gamma_0,) = tasks.build(["glaucoma"], losses.Settings(focal_gamma=0.0))
    np.testing.assert_allclose(
        gamma_0.loss(jnp.zeros(4), tiny_batch), np.log(2), rtol=1e-5
    )
    mean, total, wide = (
        tasks.build(["fovea"], losses.Settings(**options))[0].loss
        for options in ({}, {"fovea_reduction": "sum"}, {"fovea_sigma": 0.2})
    )
    logits = jnp.full((4, 32, 32), -20.0)
    # Against a map of zeros the sum over pixels is the Gaussian's integral.
    batch = {"fovea_xy": jnp.full((4, 2), 16.0)}
    sigma = 50**0.5 / 256 * 32
    integral = 2 * np.pi * sigma**2
    np.testing.assert_allclose(total(logits, batch), integral, rtol=1e-3)
    np.testing.assert_allclose(mean(logits, batch), integral / 1024, rtol=1e-3)
    assert (wide(logits, batch) > 10 * mean(logits, batch)).all()


def test_losses_can_be_differentiated_and_compiled(tiny_batch):
    for task in tasks.build():
        logits = jnp.asarray(random_logits(task, tiny_batch))
        gradient = jax.jit(jax.grad(lambda x, t=task: t.loss(x, tiny_batch).sum()))(
            logits
        )
        assert gradient.shape == logits.shape
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


def test_an_image_needs_all_labels_of_a_task():
    has_label = np.array([[0, 1, 1, 0], [1, 1, 0, 1], [0, 0, 1, 0], [1, 1, 1, 1]], bool)
    rim = tasks.Task("rim", "rim", "segmentation", ("disc", "cup"), target=None)
    found = rim.is_labelled({"has_label": has_label})
    assert found.tolist() == [True, False, False, True]
    for task in tasks.build():
        column = ORDER.index(task.name)
        found = task.is_labelled({"has_label": has_label})
        assert found.tolist() == has_label[:, column].tolist()
