import json

import pytest
from tensorboardX.proto import event_pb2

from mtl_jax.errors import UserError
from mtl_jax.training import metric_log
from mtl_jax.training.metric_log import MetricLog


def lines(workdir):
    return [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


def write(workdir, start, steps):
    log = MetricLog(workdir, start)
    for step in steps:
        log.write(
            step, step // 3, {"train/loss_disc": step / 8, "validation/auc": None}
        )
    log.close()


def tensorboard_values(workdir):
    """Scalars by name and step, read from the event files' records."""
    found = {}
    for path in sorted((workdir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found[value.tag, event.step] = value.simple_value
            at += length + 16
    return found


def test_lines_and_scalars(tmp_path):
    write(tmp_path, 0, [3, 6])
    assert lines(tmp_path) == [
        {"step": 3, "epoch": 1, "train/loss_disc": 0.375, "validation/auc": None},
        {"step": 6, "epoch": 2, "train/loss_disc": 0.75, "validation/auc": None},
    ]
    assert tensorboard_values(tmp_path) == {
        ("train/loss_disc", 3): 0.375,
        ("train/loss_disc", 6): 0.75,
    }


def test_lines_are_there_before_the_end(tmp_path):
    log = MetricLog(tmp_path, 0)
    log.write(1, 1, {"a": 1.0})
    assert len(lines(tmp_path)) == 1
    log.close()


@pytest.mark.parametrize("line", [b"[]", b"3", b"\xff\xfe", b'{"step": "a"}', b"{"])
def test_a_line_that_is_no_object(tmp_path, line):
    write(tmp_path, 0, [3, 6])
    path = tmp_path / "metrics.jsonl"
    assert [one["step"] for one in metric_log.read(path)] == [3, 6]
    path.write_bytes(line + b"\n" + path.read_bytes())
    if b"step" not in line:
        with pytest.raises(UserError, match=f"{path} is damaged in line 1, which is"):
            metric_log.read(path)
    write(tmp_path, 6, [9])
    assert [one["step"] for one in lines(tmp_path)] == [3, 6, 9]


@pytest.mark.parametrize(("start", "kept"), [(0, []), (6, [3, 6]), (99, [3, 6, 9])])
def test_lines_after_the_checkpoint_are_dropped(tmp_path, start, kept):
    write(tmp_path, 0, [3, 6, 9])
    write(tmp_path, start, [])
    assert [line["step"] for line in lines(tmp_path)] == kept
    write(tmp_path, start, [100])
    assert [line["step"] for line in lines(tmp_path)] == [*kept, 100]


@pytest.mark.parametrize("cut", ['{"step": 9, "epo', '{"step": 9', "{", "{}", ""])
def test_a_line_cut_by_a_kill_is_dropped(tmp_path, cut):
    write(tmp_path, 0, [3, 6])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    write(tmp_path, 6, [9])
    assert [line["step"] for line in lines(tmp_path)] == [3, 6, 9]
