import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optim_problems import (
    STEPS,
    TRANSFORMS,
    ByHand,
    assert_trees_close,
    assert_trees_equal,
    compiled_step,
    loss_and_gradient,
    quadratic,
    quadratics,
    row,
    run,
    stacked,
    start,
    task_gradients_of,
)

from mtl_jax import optim
from mtl_jax.optim import _random_grouping

KEY = jax.random.key(3)
TASKS = 4
random_groups = jax.jit(
    lambda count, tasks, groups: _random_grouping._random_groups(
        jax.random.fold_in(KEY, count), tasks, groups
    ),
    static_argnums=(1, 2),
)


@functools.cache
def compiled(name, num_groups, states="slot", is_random=True):
    optimizer = optim.random_grouping(
        TRANSFORMS[name](),
        num_groups,
        KEY if is_random else None,
        states=states,
        num_tasks=TASKS if states == "task" else None,
    )
    return optimizer.init, compiled_step(optimizer)


def loop_of_optax(tx, targets, curvatures, groups, active=(True,) * TASKS):
    """The method in words, given each step's groups [steps, m, N]."""
    by_hand = ByHand(tx, start())
    states = [tx.init(start()) for _ in groups[0]]
    history = []
    for step_groups in groups:
        losses = np.zeros(len(targets))
        for slot, group in enumerate(step_groups):
            members = np.flatnonzero(group & np.array(active, bool))
            if not len(members):
                continue
            total = jax.tree.map(np.zeros_like, start())
            for k in members:
                losses[k], gradient = loss_and_gradient(
                    by_hand.params, targets[k], curvatures[k]
                )
                total = jax.tree.map(np.add, total, gradient)
            states[slot] = by_hand.step(total, states[slot])
        history.append(losses)
    return by_hand.params, stacked(states), np.array(history)


def loop_of_own_states(tx, targets, curvatures, groups, active=(True,) * TASKS):
    """The same where every task has a state: the members' updates add up."""
    update = jax.jit(tx.update)
    params = start()
    states = [tx.init(params) for _ in targets]
    history = []
    for step_groups in groups:
        losses = np.zeros(len(targets))
        for group in step_groups:
            began = params
            for k in np.flatnonzero(group & np.array(active, bool)):
                losses[k], gradient = loss_and_gradient(
                    began, targets[k], curvatures[k]
                )
                updates, states[k] = update(gradient, states[k], began)
                params = jax.tree.map(np.add, params, updates)
        history.append(losses)
    return params, stacked(states), np.array(history)


def groups_of(num_groups, steps=STEPS):
    return [np.asarray(random_groups(i, TASKS, num_groups)) for i in range(steps)]


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_groups_step_in_turn_through_the_states_of_their_slots(num_groups):
    targets, curvatures = quadratics(1, TASKS)
    expected = loop_of_optax(
        TRANSFORMS["adam"](), targets, curvatures, groups_of(num_groups)
    )
    params, state, losses = run(*compiled("adam", num_groups), targets, curvatures)
    for ours, theirs in zip((params, state.slots, losses), expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert state.count == STEPS


@pytest.mark.parametrize(
    "name", ["adamw", "sgd momentum", "lion", "one rule for each leaf"]
)
def test_it_works_with_any_optax_transformation(name):
    targets, curvatures = quadratics(2, TASKS)
    expected = loop_of_optax(TRANSFORMS[name](), targets, curvatures, groups_of(3))
    params, state, losses = run(*compiled(name, 3), targets, curvatures)
    for ours, theirs in zip((params, state.slots, losses), expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_groups"),
    # Decay depends on the parameters at which a group begins.
    [("adamw", 2), ("adamw", 4), ("sgd momentum", 3), ("one rule for each leaf", 2)],
)
def test_members_of_a_group_step_through_the_states_of_their_own(name, num_groups):
    targets, curvatures = quadratics(7, TASKS)
    expected = loop_of_own_states(
        TRANSFORMS[name](), targets, curvatures, groups_of(num_groups)
    )
    params, state, losses = run(
        *compiled(name, num_groups, "task"), targets, curvatures
    )
    for ours, theirs in zip((params, state.slots, losses), expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # A slot's states would have been told from these.
    of_slots = run(*compiled(name, num_groups), targets, curvatures)
    assert np.abs(of_slots[0]["w"] - params["w"]).max() > 1e-3


@pytest.mark.parametrize("active", [None, (1, 1, 0, 1)], ids=str)
def test_fixed_groups_of_one_with_own_states_are_independent_optimizers(active):
    targets, curvatures = quadratics(8, TASKS)
    active = None if active is None else np.array(active, bool)
    independent = optim.independent(TRANSFORMS["adamw"](), TASKS)
    expected = run(
        independent.init,
        compiled_step(independent),
        targets,
        curvatures,
        active=active,
    )
    params, state, losses = run(
        *compiled("adamw", TASKS, "task", is_random=False),
        targets,
        curvatures,
        active=active,
    )
    # But for the last bit, where a compiler joins a product and a sum.
    assert_trees_close((params, state.slots, losses), expected, rtol=1e-6, atol=1e-7)


def test_random_groups_of_one_with_own_states_are_so_in_the_order_drawn():
    targets, curvatures = quadratics(9, TASKS)
    init, step = compiled("adam", TASKS, "task")
    independent = optim.independent(TRANSFORMS["adam"](), TASKS)
    in_turn = compiled_step(independent)
    params, state = start(), init(start())
    same, own = start(), independent.init(start())
    seen = set()
    for i in range(STEPS):
        order = np.asarray(random_groups(i, TASKS, TASKS)).argmax(1)
        seen.add(tuple(order))
        params, state, losses = step(params, state, targets, curvatures)
        same, visited, expected = in_turn(
            same, row(own, order), targets[order], curvatures[order]
        )
        own = row(visited, np.argsort(order))
        assert_trees_close((params, state.slots), (same, own), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(losses[order], expected, rtol=1e-5)
    assert len(seen) > 1


def test_one_group_with_own_states_makes_the_updates_of_per_task():
    targets, curvatures = quadratics(10, TASKS)
    per_task = optim.per_task(TRANSFORMS["adamw"](), TASKS)
    init, step = compiled("adamw", 1, "task")
    params, state = start(), init(start())
    joint, joint_state = start(), per_task.init(start())
    update = jax.jit(per_task.update)
    for _ in range(STEPS):
        params, state, losses = step(params, state, targets, curvatures)
        found = [
            loss_and_gradient(joint, target, curvature)
            for target, curvature in zip(targets, curvatures, strict=True)
        ]
        gradients = stacked([gradient for _, gradient in found])
        updates, joint_state = update(gradients, joint_state, joint)
        joint = jax.tree.map(np.add, joint, updates)
        np.testing.assert_allclose(losses, [loss for loss, _ in found], rtol=1e-4)
        assert_trees_close(
            (params, state.slots), (joint, joint_state), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("states", ["slot", "task"])
def test_without_a_key_the_groups_stay(states):
    targets, curvatures = quadratics(11, TASKS)
    fixed = np.array([[True, False, True, False], [False, True, False, True]])
    loop = {"slot": loop_of_optax, "task": loop_of_own_states}[states]
    expected = loop(TRANSFORMS["adam"](), targets, curvatures, [fixed] * STEPS)
    params, state, losses = run(
        *compiled("adam", 2, states, is_random=False), targets, curvatures
    )
    for ours, theirs in zip((params, state.slots, losses), expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_carry_passes_from_member_to_member_and_group_to_group():
    losses = [
        lambda w, carry, k=k: (carry + 0.0 * w.sum(), carry * 10 + k)
        for k in range(1, 5)
    ]
    optimizer = optim.random_grouping(
        optax.sgd(0.1), 2, None, states="task", num_tasks=4
    )
    w = jnp.ones(2)
    _, _, carry, seen = optimizer.update(
        optim.task_gradients(losses), optimizer.init(w), w, jnp.float32(0)
    )
    assert carry == 1324
    # In the order of the tasks, whatever the order of the visits.
    np.testing.assert_array_equal(seen, [0, 13, 1, 132])


@pytest.mark.parametrize("name", ["adam", "sgd momentum"])
def test_one_group_is_vanilla(name):
    """One backward pass of the sum, one step."""
    targets, curvatures = quadratics(3, TASKS)
    tx = TRANSFORMS[name]()

    def of_group(mask, params, carry):
        def total(params):
            losses = jax.vmap(quadratic, (None, 0, 0))(params, targets, curvatures)
            return jnp.where(mask, losses, 0).sum(), jnp.where(mask, losses, 0)

        (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(params)
        return (losses, carry), gradient

    gradients = optim.TaskGradients(TASKS, None, of_group)
    optimizer = optim.random_grouping(tx, 1, KEY)
    grouping = jax.jit(lambda p, s: optimizer.update(gradients, s, p))

    @jax.jit
    def vanilla(params, state):
        everyone = jnp.ones(TASKS, bool)
        (losses, _), gradient = of_group(everyone, params, None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, losses

    params, state = start(), tx.init(start())
    ours, our_state = start(), optimizer.init(start())
    for _ in range(STEPS):
        params, state, losses = vanilla(params, state)
        ours, our_state, _, our_losses = grouping(ours, our_state)
        # Two programs, in which XLA may fuse a product and a sum, or not.
        assert_trees_close(ours, params, rtol=1e-5, atol=1e-6)
        assert_trees_close(row(our_state.slots, 0), state, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(our_losses, losses, rtol=1e-5)


def test_as_many_groups_as_tasks_step_every_task_alone():
    """Without a state, only the random order tells it from `alternating`."""
    losses = [
        lambda w, carry, k=k: (0.0 * w.sum(), carry * 10 + k) for k in range(1, 5)
    ]
    optimizer = optim.random_grouping(optax.sgd(0.1), 4, KEY)
    w, gradients = jnp.ones(2), optim.task_gradients(losses)
    step = jax.jit(lambda state: optimizer.update(gradients, state, w, jnp.int32(0)))
    state, seen = optimizer.init(w), []
    for i in range(5):
        _, state, carry, _ = step(state)
        seen.append("".join(sorted(str(carry))))
        order = np.asarray(random_groups(i, 4, 4)).argmax(1) + 1
        assert str(carry) == "".join(map(str, order))
    assert seen == ["1234"] * 5


@pytest.mark.parametrize(
    ("tasks", "groups", "sizes"),
    [(7, 3, [3, 2, 2]), (5, 5, [1] * 5)],
)
def test_groups_are_a_division_as_equal_as_can_be(tasks, groups, sizes):
    masks = np.stack([random_groups(i, tasks, groups) for i in range(50)])
    np.testing.assert_array_equal(masks.sum(1), 1)
    np.testing.assert_array_equal(masks.sum(2), np.tile(sizes, (50, 1)))


def test_groups_are_drawn_anew_and_evenly():
    masks = np.stack(groups_of(2, steps=200)).astype(float)
    together = np.einsum("sgi,sgj->ij", masks, masks) / len(masks)
    # Of the three others, each is one's companion in a third of the steps.
    others = ~np.eye(TASKS, dtype=bool)
    np.testing.assert_allclose(together[others], 1 / 3, atol=0.1)
    # And one is in the first group half the time.
    np.testing.assert_allclose(masks[:, 0].mean(0), 1 / 2, atol=0.1)


@pytest.mark.parametrize("active", [(1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 0, 0)], ids=str)
def test_inactive_tasks_take_no_part(active):
    active = np.array(active, bool)
    targets, curvatures = quadratics(3, TASKS)
    targets[~active] = np.nan
    groups = groups_of(3, 3)
    expected = loop_of_optax(TRANSFORMS["adam"](), targets, curvatures, groups, active)
    init, step = compiled("adam", 3)
    params, state, losses = run(init, step, targets, curvatures, 3, active=active)
    for ours, theirs in zip((params, state.slots, losses), expected, strict=True):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)
    # A slot whose group has no active member is exactly as it was.
    _, after, _ = step(params, state, targets, curvatures, active)
    skipped = ~(np.asarray(random_groups(3, TASKS, 3)) & active).any(1)
    for old, new in zip(
        jax.tree.leaves(state.slots), jax.tree.leaves(after.slots), strict=True
    ):
        np.testing.assert_array_equal(old[skipped], new[skipped])
    if not active.any():
        assert_trees_equal(params, start())


@pytest.mark.parametrize("active", [(1, 0, 1, 1), (0, 0, 0, 0)], ids=str)
def test_inactive_tasks_keep_the_states_of_their_own(active):
    active = np.array(active, bool)
    targets, curvatures = quadratics(12, TASKS)
    init, step = compiled("adamw", 2, "task")
    # Not fresh: zeros would stay zeros by themselves.
    params, state, _ = step(start(), init(start()), targets, curvatures)
    bad = np.where(active[:, None], targets, np.nan).astype(np.float32)
    after, after_state, losses = step(params, state, bad, curvatures, active)
    np.testing.assert_array_equal(np.asarray(losses) > 0, active)
    for old, new in zip(
        jax.tree.leaves(state.slots), jax.tree.leaves(after_state.slots), strict=True
    ):
        np.testing.assert_array_equal(new[~active], old[~active])
        assert all(not np.array_equal(new[k], old[k]) for k in np.flatnonzero(active))
    if not active.any():
        assert_trees_equal(after, params)
    expected = loop_of_own_states(
        TRANSFORMS["adamw"](), bad, curvatures, groups_of(2), active
    )
    found = run(init, step, bad, curvatures, active=active)
    for ours, theirs in zip(
        (found[0], found[1].slots, found[2]), expected, strict=True
    ):
        assert_trees_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_all_tasks_active_is_no_mask_at_all():
    targets, curvatures = quadratics(5, TASKS)
    plain = run(*compiled("adam", 2), targets, curvatures, 3)
    everyone = np.ones(TASKS, bool)
    masked = run(*compiled("adam", 2), targets, curvatures, 3, active=everyone)
    assert_trees_close(masked, plain, rtol=1e-6, atol=1e-7)


def test_groups_that_tasks_cannot_fill_are_named():
    with pytest.raises(ValueError, match="at least 1"):
        optim.random_grouping(optax.sgd(0.1), 0, KEY)
    optimizer = optim.random_grouping(optax.sgd(0.1), TASKS + 1, KEY)
    with pytest.raises(ValueError, match="4 tasks cannot fill 5 groups"):
        optimizer.update(
            task_gradients_of(*quadratics(0, TASKS)), optimizer.init(start()), start()
        )


def test_a_state_for_each_task_needs_their_number():
    with pytest.raises(ValueError, match="needs num_tasks"):
        optim.random_grouping(optax.sgd(0.1), 2, KEY, states="task")
    optimizer = optim.random_grouping(
        optax.sgd(0.1), 2, KEY, states="task", num_tasks=TASKS + 1
    )
    with pytest.raises(ValueError, match="of 4 tasks, the optimizer is for 5"):
        optimizer.update(
            task_gradients_of(*quadratics(0, TASKS)), optimizer.init(start()), start()
        )
