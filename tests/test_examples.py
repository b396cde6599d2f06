"""The examples, in a form that takes seconds."""

import importlib.util
import pathlib

import numpy as np
import pytest
from PIL import Image

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


@pytest.fixture
def digits():
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_digits_compares_methods_of_each_kind(digits, tmp_path, capsys):
    path = tmp_path / "digits.png"
    digits.main(
        [
            "--steps=40",
            "--seeds=2",
            "--methods=weighted_sum,stch,alternating",
            f"--output={path}",
        ]
    )
    heading, _, *rows = capsys.readouterr().out.strip().splitlines()
    cells = {row.split("|")[1].strip(): row.split("|")[2:-1] for row in rows}
    assert list(cells) == ["STL", "weighted_sum", "stch", "alternating"]
    assert all(len(row) == heading.count("|") - 2 for row in cells.values())
    # Far more than one in ten digits are read, in either problem.
    for row in cells.values():
        assert all(float(row[i].split("±")[0]) > 20 for i in (0, 1, 2, 3))
    assert np.asarray(Image.open(path)).std() > 5
