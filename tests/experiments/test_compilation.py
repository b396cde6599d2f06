"""Steps are compiled for TPUs that are not there, and the programs are read."""

import pytest
import small_encoder  # noqa: F401

from mtl_jax.experiments import benchmark, compilation

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


def test_all_reduces_are_counted_as_often_as_they_are_executed():
    found = compilation.all_reduces(PROGRAM)
    assert found == compilation.AllReduces(
        count=4 * 2 + 1, num_bytes=4 * (15 * 2 + 6 * 4) + 5 * 4, num_async=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vanilla", "independent", "pcgrad"])
def test_a_step_compiles_for_a_tpu(method):
    pytest.importorskip("libtpu")
    setting = benchmark.Setting("small", 1 / 16, 32, 2, "bfloat16")
    row = compilation.compile_step(setting, method, compilation.devices("v5e:2x2"))
    assert row["devices"] == 4
    # The parameters and Adam's moments. Temporaries of a network so small may all find
    # room beside the arithmetic units, and none in the chip's memory.
    assert row["argument_bytes"] > 3 * 4 * row["parameters"]
    # Each gradient of each parameter is reduced at least once.
    assert row["all_reduces"]["num_bytes"] > 4 * row["parameters"]
    header, rule, line = compilation.table([row]).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|")
