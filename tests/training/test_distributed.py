"""Two real processes train one network, started by hand or as by SLURM."""

import json
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import small_encoder

from mtl_jax import workdirs
from mtl_jax.training import parallel

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


def arguments(workdir, config):
    fields = (
        ("tasks", tuple(config.tasks)),
        *((f"data.{k}", v) for k, v in config.data.items()),
        *((f"model.{k}", v) for k, v in config.model.items()),
        *((f"optimizer.{k}", v) for k, v in config.optimizer.items()),
        *((k, config[k]) for k in ("batch_size", "num_epochs", "validate_every")),
        ("steps_per_dispatch", config.steps_per_dispatch),
    )
    return [
        sys.executable,
        small_encoder.__file__,
        str(ROOT / "scripts/train.py"),
        "--config=configs/default.py",
        f"--workdir={workdir}",
        # XLA refuses flags that it does not know; on CPUs this one changes nothing.
        "--deterministic",
        "--resume",
        *(f"--config.{field}={value}" for field, value in fields),
    ]


def start(command, environment):
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_two_processes(workdir, config, environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meet = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    command = [*arguments(workdir, config), *meet]
    return [start([*command, f"--process_id={i}"], environment) for i in range(2)]


def start_by_slurm(workdir, config, environment):
    # SLURM's number of the job chooses the port at which the processes meet.
    job = int(np.random.default_rng().integers(4096))
    slurm = {"JOB_ID": job, "STEP_NODELIST": "localhost", "NTASKS": 2}
    command = [*arguments(workdir, config), "--distributed"]
    shared = {**environment, **{f"SLURM_{k}": str(v) for k, v in slurm.items()}}
    return [
        start(command, {**shared, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in range(2)
    ]


def assert_ended(processes, code):
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    codes = {process.returncode for process in processes}
    # As text: pytest cuts what it writes of a list.
    assert codes == {code}, "\n".join(outputs)
    return outputs


def wait_for_checkpoint(workdir, processes):
    while not list(workdir.glob("checkpoints/[0-9]*")):
        if any(process.poll() is not None for process in processes):
            assert_ended(processes, 0)
        time.sleep(0.1)


def read_log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if "second" not in k}
        for line in lines
    ]


def assert_same_losses(log, expected, tolerance):
    assert [line["step"] for line in log] == [line["step"] for line in expected]
    for line, reference in zip(log, expected, strict=True):
        names = [name for name in reference if "loss" in name]
        assert names
        for name in names:
            np.testing.assert_allclose(line[name], reference[name], rtol=tolerance)


@pytest.mark.slow
def test_two_processes_train_like_one(config, compiled, tmp_path):
    workdirs.train(config, tmp_path / "one")
    assert_ended(start_by_slurm(tmp_path / "two", config, compiled), 0)
    assert_same_losses(read_log(tmp_path / "two"), read_log(tmp_path / "one"), 1e-5)
    states = tmp_path / "two" / "checkpoints" / str(EPOCHS * STEPS) / "data"
    names = {path.name for path in states.glob("process_*")}
    assert names == {"process_0-of-2.json", "process_1-of-2.json"}


@pytest.mark.slow
def test_a_run_goes_from_two_processes_to_one_and_back(config, compiled, tmp_path):
    config.num_epochs = 3
    workdirs.train(config, tmp_path / "reference")
    config.num_epochs = 1
    assert_ended(start_two_processes(tmp_path / "run", config, compiled), 0)
    config.num_epochs = 2
    workdirs.train(config, tmp_path / "run", resume=True)
    config.num_epochs, config.steps_per_dispatch = 3, STEPS
    config.data.memory = "device"
    assert_ended(start_two_processes(tmp_path / "run", config, compiled), 0)
    assert_same_losses(
        read_log(tmp_path / "run"), read_log(tmp_path / "reference"), 1e-5
    )


# A process that is stopped keeps its connections, as one whose host has no power.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "number"),
    [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
)
def test_a_process_that_loses_the_other_ends(
    config, compiled, tmp_path, victim, number
):
    config.num_epochs, config.validate_every = 100_000, 50
    processes = start_two_processes(tmp_path, config, compiled)
    wait_for_checkpoint(tmp_path, processes)
    processes[victim].send_signal(number)
    began = time.monotonic()
    survivor = processes[1 - victim]
    try:
        (output,) = assert_ended([survivor], parallel.LOST_CODE)
    finally:
        for process in processes:
            process.kill()
    assert time.monotonic() - began < 60
    sentence = output[output.index("error: Another process of the 2 of this run") :]
    assert sentence.endswith("; start all of them again with --resume.\n")
    assert "Traceback" not in output


@pytest.mark.slow
def test_both_processes_stop_at_one_step(config, compiled, tmp_path):
    """Though the second alone is told to end."""
    config.num_epochs, config.validate_every = 100_000, 50
    processes = start_two_processes(tmp_path, config, compiled)
    wait_for_checkpoint(tmp_path, processes)
    processes[1].send_signal(signal.SIGUSR1)
    outputs = assert_ended(processes[:1], 128 + signal.SIGTERM)
    outputs += assert_ended(processes[1:], 128 + signal.SIGUSR1)
    step = max(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    saved = tmp_path / "checkpoints" / str(step)
    for index, output in enumerate(outputs):
        assert f"saved after step {step} ({saved}); continue with --resume." in output
        data = saved / f"data/process_{index}-of-2.json"
        assert json.loads(data.read_text()) == {"next_index": step}


# The first waits, the second fails at what is named like a library of exchanges, and
# the third aborts on a thread of its own.
ENDINGS = """
import os, sys, threading, time
from mtl_jax.training import parallel
port, index = sys.argv[1], int(sys.argv[2])
with parallel.connected_processes(f"127.0.0.1:{port}", 3, index):
    if index == 1:
        raise FileNotFoundError("/runs/NCCL/photograph.png")
    if index == 2:
        threading.Thread(target=os.abort).start()
    time.sleep(200)
"""


@pytest.mark.slow
def test_an_end_of_its_own_is_no_lost_process(compiled):
    """So that a scheduler does not repeat it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", ENDINGS, str(port)]
    processes = [start([*command, str(index)], compiled) for index in range(3)]
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [parallel.LOST_CODE, 1, -signal.SIGABRT], outputs
    sentence = "error: Another process of the 3 of this run has ended"
    assert [sentence in output for output in outputs] == [True, False, False]
    assert "FileNotFoundError: /runs/NCCL/photograph.png" in outputs[1]
