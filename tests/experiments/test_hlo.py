"""Compiled programs are read: their text, and what XLA counted."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from mtl_jax.experiments import hlo

# A loop of four rounds with an all-reduce and a choice between 8 and 24 bytes, and one
# all-reduce of two arrays that is started and ended.
PROGRAM = """
%small (x: f32[2]) -> f32[2] {
  ROOT %r = f32[2]{0} all-reduce(f32[2]{0} %x), channel_id=1, to_apply=%add
}

%large (x: f32[6]) -> f32[6] {
  ROOT %r = f32[6]{0} all-reduce(f32[6]{0} %x), channel_id=2, to_apply=%add
}

%body (p: (s32[], f32[3])) -> (s32[], f32[3]) {
  %a = bf16[3,5]{1,0:T(8,128)} all-reduce(bf16[3,5]{1,0} %y), to_apply=%add
  %c = f32[2]{0} conditional(s32[] %i, %u, %v), branch_computations={%small, %large}
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (s32[], f32[3]{0}) while((s32[], f32[3]{0}) %t), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"4"}}
  %s = (f32[4]{0}, f32[]) all-reduce-start(f32[4]{0} %p, f32[] %q), to_apply=%add
  ROOT %d = (f32[4]{0}, f32[]) all-reduce-done((f32[4]{0}, f32[]) %s)
}
"""


# As TPUs write it.
CONDITION = """
%cond (p: (s32[], f32[3])) -> pred[] {
  %last = s32[]{:T(128)} constant(4)
  ROOT %lt = pred[]{:T(512)} compare(%i, %last), direction=LT
}
"""


def test_a_loop_that_tells_its_rounds_in_its_condition():
    told = 'backend_config={"known_trip_count":{"n":"4"}}'
    silent = CONDITION + PROGRAM.replace(told, "backend_config={}")
    assert hlo.all_reduces(silent) == hlo.all_reduces(PROGRAM)


def test_all_reduces_are_counted_as_often_as_they_are_executed():
    found = hlo.all_reduces(PROGRAM)
    assert found == hlo.AllReduces(
        count=4 * 2 + 1, num_bytes=4 * (15 * 2 + 6 * 4) + 5 * 4, num_async=1
    )


@pytest.mark.parametrize(
    ("form", "other"),
    [
        (
            "branch_computations={%small, %large}",
            "true_computation=%large, false_computation=%small",
        ),
        (
            "ENTRY %main (p: f32[4]) -> f32[4] {",
            "ENTRY %outer (p: f32[4]) -> f32[4] {\n"
            "  ROOT %k = f32[4]{0} call(f32[4]{0} %p), to_apply=%main\n}\n\n"
            "%main (p: f32[4]) -> f32[4] {",
        ),
    ],
    ids=["choice", "call"],
)
def test_other_forms_of_a_choice_and_a_call(form, other):
    assert hlo.all_reduces(PROGRAM.replace(form, other)) == hlo.all_reduces(PROGRAM)


def convolve(x):
    return lax.conv(x, jnp.ones((3, 3, 3, 3)), (1, 1), "VALID")


def convolved(_, x):
    return jnp.pad(convolve(x), ((0, 0), (0, 0), (1, 1), (1, 1)))


@pytest.mark.parametrize("rounds", [0, 2])
def test_arithmetic_of_a_program(rounds):
    """XLA would count the convolution of a loop once, whatever the rounds."""

    def program(x):
        x = convolve(x)
        # A loop without arithmetic worth counting.
        x = lax.fori_loop(0, 9, lambda i, x: jnp.roll(x, 1), x)
        return lax.fori_loop(0, rounds, convolved, x) if rounds else x

    x = jax.ShapeDtypeStruct((1, 3, 66, 66), jnp.float32)
    flops = hlo.flops(jax.jit(program).lower(x).compile())
    if rounds:
        assert flops is None
    else:
        # Two operations for each weight of each of 3 x 64 x 64 results.
        assert flops == pytest.approx(2 * 27 * 3 * 64 * 64, rel=0.02)


def test_memory_of_a_program():
    """What is given away and returned in its place counts once."""
    x = jax.ShapeDtypeStruct((1000, 1000), jnp.float32)
    program = jax.jit(lambda x: x.at[0].set(x[1]), donate_argnums=0)
    kept = jax.jit(lambda x: x.at[0].set(x[1]))
    given = hlo.memory_bytes(program.lower(x).compile())
    assert given == pytest.approx(4e6, rel=0.02)
    assert hlo.memory_bytes(kept.lower(x).compile()) == pytest.approx(8e6, rel=0.02)
