"""Two real processes, as SLURM would start them, train one network."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import small_encoder

from mtl_jax import workdirs

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]
EPOCHS, STEPS = 2, 3


@pytest.fixture
def config(make_config):
    """The encoder alone; by plain gradient descent, so that rounding stays small."""
    return make_config(
        {"optimizer.name": "sgd", "model.dropout": 0.5},
        tasks=("glaucoma",),
        num_epochs=EPOCHS,
        validate_every=1,
    )


def start_two_processes(workdir, config, environment, job):
    command = [
        sys.executable,
        small_encoder.__file__,
        str(ROOT / "scripts/train.py"),
        "--config=configs/default.py",
        f"--workdir={workdir}",
        "--distributed",
        # XLA refuses flags that it does not know; on CPUs this one changes nothing.
        "--deterministic",
        "--resume",
        "--config.tasks=('glaucoma',)",
    ]
    command += [
        f"--config.{field}={value}"
        for field, value in (
            *((f"data.{k}", v) for k, v in config.data.items()),
            *((f"model.{k}", v) for k, v in config.model.items()),
            *((f"optimizer.{k}", v) for k, v in config.optimizer.items()),
            *((k, config[k]) for k in ("batch_size", "num_epochs", "validate_every")),
        )
    ]
    slurm = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": 2}
    return [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **environment,
                **{f"SLURM_{k}": str(v) for k, v in slurm.items()},
                "SLURM_PROCID": str(i),
                "SLURM_LOCALID": str(i),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]


def assert_ended(processes, code):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert {process.returncode for process in processes} == {code}, outputs
    return outputs


def read_log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "second" not in k}
        for line in lines
    ]


@pytest.mark.slow
def test_two_processes_train_like_one(config, compiled, tmp_path):
    workdirs.train(config, tmp_path / "one")
    # SLURM's number of the job chooses the port at which the processes meet.
    job = int(np.random.default_rng().integers(4096))
    assert_ended(start_two_processes(tmp_path / "two", config, compiled, job), 0)
    log = read_log(tmp_path / "two")
    expected = read_log(tmp_path / "one")
    assert [line["step"] for line in log] == [line["step"] for line in expected]
    for line, reference in zip(log, expected, strict=True):
        for name in line:
            if "loss" in name:
                np.testing.assert_allclose(line[name], reference[name], rtol=1e-4)
    states = tmp_path / "two" / "checkpoints" / str(EPOCHS * STEPS) / "data"
    names = {path.name for path in states.glob("process_*")}
    assert names == {"process_0-of-2.json", "process_1-of-2.json"}


@pytest.mark.slow
def test_both_processes_stop_at_one_step(config, compiled, tmp_path):
    """Though the second alone is told to end."""
    config.num_epochs, config.validate_every = 100_000, 50
    job = int(np.random.default_rng().integers(4096))
    processes = start_two_processes(tmp_path, config, compiled, job)
    while not list(tmp_path.glob("checkpoints/[0-9]*")):
        if any(process.poll() is not None for process in processes):
            assert_ended(processes, 0)
        time.sleep(0.1)
    processes[1].send_signal(signal.SIGUSR1)
    outputs = assert_ended(processes[:1], 128 + signal.SIGTERM)
    outputs += assert_ended(processes[1:], 128 + signal.SIGUSR1)
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    saved = tmp_path / "checkpoints" / str(step)
    for index, output in enumerate(outputs):
        assert f"saved after step {step} ({saved}); continue with --resume." in output
        data = saved / f"data/process_{index}-of-2.json"
        assert json.loads(data.read_text()) == {"next_index": step}
