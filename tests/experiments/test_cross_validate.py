"""The script's two phases: learning rates on the first fold, the best on the others."""

import pathlib
import subprocess
import sys

import pytest
import small_encoder

from mtl_jax import configuration
from mtl_jax.experiments import results
from mtl_jax.reporting import report

pytest_plugins = ("training_fixtures",)

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from mtl_jax import configuration
def get_config():
    return configuration.from_json({!r})
"""


@pytest.mark.slow
def test_each_method_goes_on_with_its_best_rate(make_config, tmp_path, compiled):
    config = make_config(
        {"optimizer.name": "sgd"}, tasks=("glaucoma",), num_epochs=1, validate_every=1
    )
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(configuration.to_json(config)))
    directory = tmp_path / "cv"
    script = [
        sys.executable,
        small_encoder.__file__,
        "scripts/cross_validate.py",
        f"--config={path}",
    ]
    what = ["--folds=2", "--methods=single", "--learning_rates=1e38,1e-2,1e-3"]
    finished = subprocess.run(
        [*script, f"--directory={directory}", *what],
        cwd=ROOT,
        env=compiled,
        capture_output=True,
        check=False,
        text=True,
    )
    # The rate that diverges stops nothing, and is not forgotten.
    assert finished.returncode == 1, finished.stderr
    assert "1 of 3 runs have failed" in finished.stderr
    assert "Traceback" not in finished.stderr
    rows = results.read(directory)
    (best,) = results.best_rates(rows).values()
    assert f"single: learning rate {best:g}" in finished.stdout
    tried = {(row["fold"], row["seed"], row["learning_rate"]) for row in rows}
    first = {("0", config.seed, rate) for rate in (1e-2, 1e-3)}
    assert tried == first | {("1", config.seed + 1, best)}
    report.write(directory)
