"""Malformed and unusual inputs through the public commands, each with its outcome.

All commands run in forks of one process, and all photographs in one command. The table
of docs/reliability.md: pytest tests/corpus -k table -s.
"""

import csv
import dataclasses
import importlib.util
import json
import pathlib
import re
import shutil

import forked_commands
import pytest
from corpus import datasets, networks, photographs, settings
from corpus.case import NEAR, SAME
from training_fixtures import once

pytest_plugins = ("training_fixtures",)

OTHERS = [*datasets.CASES, *networks.CASES, *settings.CASES]
# What several commands would import one by one.
MODULES = ["mtl_jax.data.refuge", "mtl_jax.reporting.evaluation", "mtl_jax.weights"]
if importlib.util.find_spec("torch"):
    MODULES.append("torch")

CASES = [*photographs.CASES, *OTHERS]


@dataclasses.dataclass
class Place:
    """Where a case writes, and what all cases share."""

    own: pathlib.Path
    source: pathlib.Path
    workdir: pathlib.Path


def identity(case):
    return f"{case.kind}: {case.name}"


def shown(case):
    """The name in a table."""
    return printable(case.name if len(case.name) < 60 else f"{case.name[:20]}…")


def printable(text):
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@pytest.fixture(scope="module")
def found(shared_dir, tiny_run, compiled):
    """Code and outcome of each case, which one worker finds out for all."""
    done = shared_dir / "corpus.json"
    with once(done, shared_dir / "corpus.lock") as first:
        if first:
            outcomes = run(shared_dir / "corpus", tiny_run.workdir, compiled)
            done.write_text(json.dumps(outcomes))
    return json.loads(done.read_text())


def run(root, workdir, env):
    for name in ("cases", "printed"):
        (root / name).mkdir(parents=True)
    photographs.write(root / "photographs")
    datasets.write_source(root / "source")
    predict = ["predict", f"--workdir={workdir}", f"--output={root / 'predicted'}"]
    commands = {"predict": [*predict, f"--images={root / 'photographs'}/*"]}
    places = {}
    for number, case in enumerate(OTHERS):
        place = Place(root / "cases" / str(number), root / "source", workdir)
        place.own.mkdir()
        commands[str(number)] = case.make(place)
        places[str(number)] = case, place
    ended = forked_commands.run(commands, root / "printed", env, MODULES)
    outcomes = of_photographs(root, ended["predict"])
    for number, (case, place) in places.items():
        text = outcome(ended[number], root)
        if ended[number].code and (place.own / "new").exists():
            text = f"a leftover: {text}"
        outcomes[identity(case)] = ended[number].code, text
    shutil.rmtree(root)
    return outcomes


def outcome(ended, root):
    """What came out, or the sentence, in one line without the folder's name."""
    lines = forked_commands.said(ended.err) if ended.code else ended.out.splitlines()
    text = " ".join(" ".join(lines).split())
    if "Traceback" in ended.err:
        text = f"a traceback: {text}"
    return short(printable(text if ended.code else f"used: {text}"), root)


def short(text, root):
    for folder in (root, forked_commands.ROOT):
        text = text.replace(f"{folder}/", "").replace(str(folder), ".")
    return re.sub(r"\bcases/\d+/", "", text)


def of_photographs(root, ended):
    """The row of each photograph, or its sentence."""
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err
    with (root / "predicted/predictions.csv").open(newline="") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    sentences = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    plain = next(row for name, row in rows.items() if name.endswith(photographs.PLAIN))
    # Equal rows prove nothing if they are empty.
    assert all(float(plain[name]) > 0 for name in ("probability", "disc_area"))
    outcomes = {}
    for case in photographs.CASES:
        path = str(root / "photographs" / case.name)
        row = rows.get(path) or rows.get(f"'{path}")
        start = f"error: {path} "
        refused = [line for line in sentences if line.startswith(start)]
        assert bool(row) + len(refused) == 1, (case, ended.err)
        text = f"{compared(row, plain)}" if row else refused[0]
        outcomes[identity(case)] = len(refused), short(text, root)
    return outcomes


NUMBERS = (
    "probability",
    "probability_fc",
    "probability_vcdr",
    "vcdr",
    "fovea_x",
    "fovea_y",
    "disc_height",
    "disc_area",
    "cup_height",
    "cup_area",
)


def compared(row, plain):
    """Says how like a row is to that of the plain PNG."""
    size = "width", "height"
    if all(row[name] == plain[name] for name in (*NUMBERS, *size, "quality")):
        return f"used: {SAME}"
    a, b = ([float(one[name] or "nan") for name in NUMBERS] for one in (row, plain))
    # A pixel is a twentieth of a structure's height.
    if a == pytest.approx(b, rel=0.15, abs=0.05, nan_ok=True):
        return f"used: {NEAR}"
    return f"used: {row['width']} x {row['height']}; {row['quality']}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {shown(case)}")
def test_case(case, found):
    code, text = found[identity(case)]
    if case.expected in (SAME, NEAR):
        # A lossy file may decode to the very same numbers.
        assert text in (f"used: {case.expected}", f"used: {SAME}")
    else:
        assert re.search(case.expected, text)
    assert code == case.code
    assert not text.startswith(("a traceback", "a leftover"))


def cells(case):
    """What the table says of a case without running it."""
    expected = f"{case.code}: `{case.expected}`"
    return [f"{case.kind}: {shown(case)}", case.given, expected]


def line(texts):
    escaped = (text.replace("|", "\\|") for text in texts)
    return f"| {' | '.join(escaped)} |"


def test_table(found):
    """Prints the corpus as the table of docs/reliability.md."""
    assert len(CASES) == len(found) >= 150
    print()
    print(line(["case", "input", "expected", "found"]))
    print("|---|---|---|---|")
    for case in CASES:
        code, text = found[identity(case)]
        cut = text if len(text) < 160 else f"{text[:160]}…"
        print(line([*cells(case), f"{code}: {cut}"]))


def test_the_page_has_every_case():
    page = (forked_commands.ROOT / "docs/reliability.md").read_text()
    started = [line(cells(case)).removesuffix("|") for case in CASES]
    assert [start for start in started if start not in page] == []
