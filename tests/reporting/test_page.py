import csv
import json
import re

import numpy as np
import pytest
from browser import Page
from markupsafe import Markup
from PIL import Image

from mtl_jax import metrics, tasks
from mtl_jax.data.synthetic import renderer
from mtl_jax.reporting import page
from mtl_jax.reporting.drawing import overlay

pytest_plugins = ("browser",)

HOSTILE = "</script><img src=x onerror=alert(1)>"
RUNS = ("STL, fold 0", "MTL-IO, fold 0", "MTL-IO <b>, fold 1")
METRICS = metrics.at("page")
COUNT = 40
LARGE = 1  # The index of a photograph that is reduced,
UNREAD = 7  # and of one that the second run was not applied to.
ANGLES = np.linspace(0, 2 * np.pi, 100, endpoint=False)


def wavy_circle(xy, radius):
    waves = radius * (1 + 0.1 * np.sin(5 * ANGLES))
    return xy + waves[:, None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], -1)


def marks(rng, size):
    height, width = size
    xy = (width, height) * rng.uniform(0.4, 0.6, 2)
    radius = 0.2 * height
    return {
        "disc": [wavy_circle(xy, radius)],
        "cup": [wavy_circle(xy, radius / 2)],
        "fovea": xy - radius / 3,
    }


def numbers(rng, index):
    drawn = {
        "probability": rng.random(),
        # Few values, so that many are equal.
        "dice_disc": rng.integers(5, 9) / 10,
        "dice_cup": rng.random(),
        "fovea_error": rng.integers(0, 6) / 1,
        "vcdr": rng.random(),
        "vcdr_error": rng.random() / 10,
    }
    absent = rng.random(len(drawn)) < 0.2
    values = {
        key: None if is_absent else float(value)
        for (key, value), is_absent in zip(drawn.items(), absent, strict=True)
    }
    # The edge of a diagnosis, of eyes of either kind.
    if index < 4:
        values["probability"] = (0.5, 0.5, 0.4999999999, 0.4999999999)[index]
    return values


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    rng = np.random.default_rng(5)
    figure = tmp_path_factory.mktemp("figures") / "roc.png"
    Image.new("RGB", (40, 30), "white").save(figure)
    photographs = []
    for index, number in enumerate(rng.permutation(COUNT)):
        size = (600, 900) if index == LARGE else (48, 64)
        photographs.append(
            page.Photograph(
                image_id=HOSTILE if index == 5 else f"Eye {number}",
                pixels=rng.integers(0, 256, (*size, 3), np.uint8),
                glaucoma=None if index % 9 == 8 else index % 2,
                truth=marks(rng, size),
            )
        )
    readings = {
        label: [
            page.Reading(marks(rng, each.pixels.shape[:2]), numbers(rng, index))
            for index, each in enumerate(photographs)
        ]
        for label in RUNS
    }
    readings[RUNS[1]][UNREAD] = None
    return page.Content(
        title="Experiment <1> & others",
        facts={"Data set": "a <b> set"},
        tables={
            "Table & text": page.Table(
                ("method <i>", "AUC & more"),
                [("<u>STL</u>", Markup("<b>{}</b>").format("<93>") + " < 94")],
                "A <note>.",
            )
        },
        figures={"ROC <mean>": figure},
        photographs=photographs,
        readings=readings,
    )


@pytest.fixture(scope="module")
def place(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    page.write(path, content)
    return path


@pytest.fixture(scope="module")
def lines(content, tmp_path_factory):
    """By run, the lines of a CSV, whose text is what expectations are made from."""
    path = tmp_path_factory.mktemp("csv") / "numbers.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "image_id", "glaucoma", *METRICS])
        for label, readings in content.readings.items():
            for photograph, reading in zip(content.photographs, readings, strict=True):
                values = reading.numbers if reading else {}
                writer.writerow(
                    [label, photograph.image_id, photograph.glaucoma]
                    + [values.get(key) for key in METRICS]
                )
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {label: [row for row in rows if row["run"] == label] for label in RUNS}


@pytest.fixture
def report(browser, place):
    return Page(browser, place)


def values_of(lines, metric):
    return np.array([float(line[metric] or "nan") for line in lines])


def rank_by_id(lines):
    ids = [line["image_id"] for line in lines]
    return np.array([-1 if i == HOSTILE else int(i.split()[1]) for i in ids])


def expected_order(lines, metric, descending):
    """Ids by a metric; those without one last, equal ones by the number in the id."""
    values, ids = values_of(lines, metric), [line["image_id"] for line in lines]
    key = np.nan_to_num(-values if descending else values)
    return [ids[i] for i in np.lexsort([rank_by_id(lines), key, np.isnan(values)])]


def expected_outcome(lines, outcome):
    """Set of ids."""
    ids = np.array([line["image_id"] for line in lines])
    probability = values_of(lines, "probability")
    label = values_of(lines, "glaucoma")
    if outcome == "missed":
        return set(ids[(label == 1) & (probability < 0.5)])
    if outcome == "alarm":
        return set(ids[(label == 0) & (probability >= 0.5)])
    dice = np.stack([values_of(lines, f"dice_{name}") for name in ("disc", "cup")])
    has_any = ~np.isnan(dice).all(0)
    mean = np.nanmean(dice[:, has_any], 0)
    order = np.lexsort([rank_by_id(lines)[has_any], mean])
    return set(ids[has_any][order[: max(1, has_any.sum() // 10)]])


def distance_to(outline, points):
    """How far each point [n, 2] is from the closed outline [m, 2]."""
    start, end = outline, np.roll(outline, -1, 0)
    along = end - start
    from_start = points[:, None] - start
    share = (from_start * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
    nearest = start + np.clip(share, 0, 1)[..., None] * along
    return np.linalg.norm(points[:, None] - nearest, axis=-1).min(1)


def test_headings_facts_tables_and_figures_are_shown(report, content):
    assert report.texts("h1") == [content.title]
    assert report.driver.title == content.title
    assert report.texts(".facts dt") == ["Data set"]
    assert report.texts(".facts dd") == ["a <b> set"]
    assert report.texts("h2")[:3] == ["Results", "Figures", "Test images"]
    assert report.texts(".results h3") == ["Table & text"]
    assert report.texts(".results thead th") == ["method <i>", "AUC & more"]
    assert report.texts(".results tbody th") == ["<u>STL</u>"]
    assert report.texts(".results td") == ["<93> < 94"]
    assert report.texts(".results td b") == ["<93>"]
    assert report.texts(".results p") == ["A <note>."]
    assert report.texts("figcaption") == ["ROC <mean>"]
    assert report.find("figure img").get_attribute("alt") == "ROC <mean>"
    assert report.run("return document.querySelector('figure img').naturalWidth") == 40


def test_a_long_table_is_folded(content):
    tables = {
        name: page.Table(("method", "AUC"), [("STL", "0.9")] * count)
        for name, count in (("Long", 20), ("Short", 19))
    }
    text = page.render(content._replace(tables=tables))
    assert text.count("<details><summary><h3>Long</h3></summary>") == 1
    assert "<summary><h3>Short</h3>" not in text


def test_numbers_are_those_of_the_csv(report, lines):
    for left, right in ((0, 1), (2, 0)):
        report.choose("left", RUNS[left])
        report.choose("right", RUNS[right])
        for side, run in (("left", left), ("right", right)):
            shown = report.numbers("#cards", side)
            assert set(shown) == {line["image_id"] for line in lines[RUNS[run]]}
            for line in lines[RUNS[run]]:
                for metric, described in METRICS.items():
                    value, text = shown[line["image_id"]][metric]
                    if line[metric] == "":
                        assert (value, text) == ("", "–")
                        continue
                    expected = float(line[metric])
                    assert float(value) == pytest.approx(expected, abs=1e-6)
                    half_a_digit = 0.51 * 10.0**-described.digits
                    assert float(text) == pytest.approx(expected, abs=half_a_digit)


@pytest.mark.parametrize("direction", ["ascending", "descending"])
def test_sorts_by_every_metric_of_either_run(report, lines, direction):
    if direction == "descending":
        report.find("button[name=direction]").click()
    for side, run in (("left", RUNS[0]), ("right", RUNS[1])):
        for metric in METRICS:
            report.choose("sort", f"{side}:{metric}")
            expected = expected_order(lines[run], metric, direction == "descending")
            assert report.ids() == expected, (side, metric)


def test_sorts_by_the_numbers_in_image_ids(report, lines):
    ids = [line["image_id"] for line in lines[RUNS[0]]]
    expected = [ids[i] for i in np.argsort(rank_by_id(lines[RUNS[0]]))]
    assert report.ids() == expected
    report.find("button[name=direction]").click()
    assert report.ids() == expected[::-1]


@pytest.mark.parametrize("outcome", ["missed", "alarm", "worst"])
def test_outcomes_are_of_the_left_run(report, lines, outcome):
    for run in (0, 1):
        report.choose("left", RUNS[run])
        report.choose("outcome", outcome)
        expected = expected_outcome(lines[RUNS[run]], outcome)
        assert 0 < len(expected) < COUNT
        shown = report.ids()
        assert len(shown) == len(expected)
        assert set(shown) == expected
        assert report.texts("#count") == [f"{len(expected)} of {COUNT} images"]
        words = {"missed": "missed glaucoma", "alarm": "false alarm"}.get(outcome)
        if words:
            said = report.texts("#cards [data-side=left] .outcome")
            assert set(said) == {words}


def test_search_narrows_an_outcome_and_is_by_part_of_the_id(report, lines):
    report.find("input[name=search]").send_keys("EYE 1")
    ids = {line["image_id"] for line in lines[RUNS[0]]}
    begun = {i for i in ids if i.startswith("Eye 1")}
    assert set(report.ids()) == begun
    report.choose("outcome", "missed")
    missed = expected_outcome(lines[RUNS[0]], "missed")
    assert set(report.ids()) == begun & missed
    report.find("input[name=search]").send_keys("nothing")
    assert report.ids() == []
    assert report.texts("#count") == [f"0 of {COUNT} images"]


def test_two_runs_stand_side_by_side_or_one_alone(report):
    def shown(side):
        return report.find(f"#cards [data-side={side}]").is_displayed()

    def label(side):
        return report.find(f"#cards [data-side={side}] .run").text

    assert (label("left"), label("right")) == RUNS[:2]
    boxes = [report.find(f"#cards [data-side={s}]").rect for s in ("left", "right")]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    report.choose("sort", "right:vcdr")
    report.choose("right", "")
    assert (shown("left"), shown("right")) == (True, False)
    # What it was sorted by has gone.
    assert report.find("select[name=sort]").get_attribute("value") == "left:vcdr"
    report.choose("right", RUNS[2])
    assert (shown("right"), label("right")) == (True, RUNS[2])


def test_a_photograph_that_a_run_has_not_read(report, content):
    report.draw_all()
    report.find("input[name=search]").send_keys(content.photographs[UNREAD].image_id)
    assert report.texts("#cards [data-side=right] .outcome") == ["not read by this run"]
    assert report.find("#cards [data-side=right] [data-mark=disc]")
    paths = report.run(
        "return [...document.querySelectorAll('#cards [data-side=right] .ink path')]"
        ".filter((path) => path.getAttribute('d')).map((path) => path.dataset.mark)"
    )
    assert paths == ["true-disc", "true-cup", "true-fovea"]


@pytest.mark.parametrize("index", [0, LARGE])
def test_marks_are_where_they_were_found(report, content, index):
    report.draw_all()
    photograph = content.photographs[index]
    factor = np.array([256 / 900, 171 / 600]) if index == LARGE else 1
    card = f"#cards .card[data-index='{index}']"
    readings = [content.readings[run][index].marks for run in RUNS[:2]]
    for side, found in zip(("left", "right"), readings, strict=True):
        for prefix, each in (("", found), ("true-", photograph.truth)):
            for name in ("disc", "cup"):
                drawn = report.outline(
                    f"{card} [data-side={side}] .ink [data-mark={prefix}{name}]"
                )
                # Pixel centres are at whole numbers on the page as well.
                outline = (each[name][0] + 0.5) * factor - 0.5
                assert distance_to(outline, drawn).max() < 0.3
                assert distance_to(drawn, outline).max() < 0.3
            mark = f"{card} [data-side={side}] .ink [data-mark={prefix}fovea]"
            box = report.run(
                "const {x, y, width, height} = document.querySelector(arguments[0])"
                ".getBBox(); return [x + width / 2, y + height / 2]",
                mark,
            )
            expected = (each["fovea"] + 0.5) * factor - 0.5
            assert box == pytest.approx(expected, abs=0.1)


def test_the_picture_below_the_marks_is_the_photograph(report, content):
    report.draw_all()
    # The corner of the photograph is the corner of the viewBox.
    viewed, image = report.run(
        "const svg = document.querySelector('.card[data-index=\"0\"] svg');"
        "const box = svg.querySelector('image').getBBox();"
        "const {x, y, width, height} = svg.viewBox.baseVal;"
        "return [[x, y, width, height], [box.x, box.y, box.width, box.height]]"
    )
    assert viewed == image == [-0.5, -0.5, 64, 48]
    label = report.find(".card[data-index='0'] svg").get_attribute("aria-label")
    assert content.photographs[0].image_id in label
    assert "Predicted: disc, cup, fovea. Annotated: disc, cup, fovea." in label


def test_colours_are_those_of_other_pictures(report):
    report.draw_all()
    for mark, colour in (
        ("disc", tasks.TASKS["disc"].rgb),
        ("cup", tasks.TASKS["cup"].rgb),
        ("fovea", tasks.TASKS["fovea"].rgb),
        ("true-disc", overlay.TRUTH_COLOUR),
    ):
        for place in ("#cards .ink", "#controls .legend"):
            path = report.find(f"{place} [data-mark={mark}]")
            assert path.value_of_css_property("stroke") == f"rgb{colour}"


def test_marks_can_be_hidden(report):
    report.draw_all()

    def shown(mark):
        return report.find(f"#cards .ink [data-mark={mark}]").is_displayed()

    assert shown("disc")
    assert shown("true-disc")
    report.find("#controls [name=predictions]").click()
    assert not shown("disc")
    assert shown("true-disc")
    report.find(".open").click()
    boxes = ("predictions", "annotations")
    in_viewer = [report.find(f"#viewer [name={name}]") for name in boxes]
    assert [box.is_selected() for box in in_viewer] == [False, True]
    for box in in_viewer:
        box.click()
    assert shown("disc")
    assert not shown("true-disc")
    assert not report.find("#viewer .ink [data-mark=true-fovea]").is_displayed()


def test_all_can_be_done_with_the_keyboard(report, lines):
    for _ in range(40):
        report.press("TAB")
        if report.focus("name") == "sort":
            break
    # Chromium goes to the first option that begins with what is typed.
    report.press("f")
    assert report.focus("value") == "left:fovea_error"
    order = expected_order(lines[RUNS[0]], "fovea_error", False)
    assert report.ids() == order
    for _ in range(10):
        report.press("TAB")
        if report.run("return Boolean(document.activeElement.closest('.card'))"):
            break
    assert report.focus("textContent") == order[0]
    card = report.find(".card:has(:focus)")
    assert card.value_of_css_property("outline-style") == "solid"
    report.press("TAB")
    assert report.focus("textContent") == order[1]

    report.press("ENTER")
    viewer = report.find("#viewer")
    assert viewer.is_displayed()
    for key, expected in (
        ("ARROW_RIGHT", 2),
        ("j", 3),
        ("ARROW_LEFT", 2),
        ("k", 1),
        ("k", 0),
        ("k", 0),
        ("j", 1),
        ("j", 2),
    ):
        report.press(key)
        assert report.texts("#viewed") == [order[expected]], key
        assert report.texts("#viewer .position") == [f"({expected + 1} of {COUNT})"]
    for side, run in (("left", RUNS[0]), ("right", RUNS[1])):
        (shown,) = report.numbers("#viewer", side).values()
        (line,) = (each for each in lines[run] if each["image_id"] == order[2])
        for metric in METRICS:
            written = line[metric] and float(line[metric])
            assert (shown[metric][0] and float(shown[metric][0])) == written
        assert report.outline(f"#viewer [data-side={side}] [data-mark=disc]").any()
    report.press("ESCAPE")
    assert not viewer.is_displayed()
    wait_until(lambda: report.focus("textContent") == order[2])


def test_the_last_image_is_the_end(report):
    report.press("TAB")
    last = report.ids()[-1]
    report.run("[...document.querySelectorAll('.open')].at(-1).click()")
    report.press("ARROW_RIGHT")
    assert report.texts("#viewed") == [last]
    assert report.find("#next").get_attribute("aria-disabled") == "true"
    assert report.find("#previous").get_attribute("aria-disabled") == "false"


def test_a_view_has_an_address(report, lines):
    report.choose("left", RUNS[2])
    report.choose("right", RUNS[0])
    report.choose("outcome", "alarm")
    report.choose("sort", "right:dice_cup")
    report.find("button[name=direction]").click()
    report.find("#controls [name=annotations]").click()
    alarms = expected_outcome(lines[RUNS[2]], "alarm")
    in_order = expected_order(lines[RUNS[0]], "dice_cup", True)
    expected = [image for image in in_order if image in alarms]
    assert report.ids() == expected
    view = report.run("return location.hash")
    report.open()
    assert len(report.ids()) == COUNT
    report.open(view)
    assert report.ids() == expected
    assert report.find("#cards [data-side=left] .run").text == RUNS[2]
    assert not report.find("#controls [name=annotations]").is_selected()
    # Within the page, as by a link or by going back.
    report.run("location.hash = 'outcome=worst'")
    worst = expected_outcome(lines[RUNS[0]], "worst")
    assert set(report.ids()) == worst


def test_an_address_of_something_else_shows_all(report):
    report.open("#left=gone&right=gone&sort=gone:vcdr&direction=up&outcome=odd")
    assert len(report.ids()) == COUNT
    labels = [
        report.find(f"#cards [data-side={s}] .run").text for s in ("left", "right")
    ]
    assert labels == [*RUNS[:2]]


def test_pictures_are_drawn_when_they_come_near_and_before_printing(report):
    def drawn(nth):
        card = f"#cards .card:nth-child({nth})"
        script = "return document.querySelectorAll(arguments[0]).length"
        return report.run(script, f"{card} svg")

    wait_until(lambda: drawn(1) == 2)
    assert drawn(COUNT) == 0
    report.run("document.querySelector('#cards').lastChild.scrollIntoView()")
    wait_until(lambda: drawn(COUNT) == 2)
    report.open()
    report.draw_all()
    assert all(drawn(nth) == 2 for nth in range(1, COUNT + 1))


def test_a_new_order_draws_nothing_anew(report):
    report.draw_all()
    report.run("for (const svg of document.querySelectorAll('svg')) svg.isOld = true")
    report.choose("sort", "right:vcdr_error")
    report.find("button[name=direction]").click()
    assert report.run(
        "return [...document.querySelectorAll('#cards svg')].every((svg) => svg.isOld)"
    )


def test_another_run_is_drawn_at_once_where_it_is_in_view(report):
    def label():
        first = report.find("#cards [data-side=right] svg")
        return first.get_attribute("aria-label")

    wait_until(lambda: report.texts("#cards svg"))
    assert RUNS[1] in label()
    report.choose("right", RUNS[2])
    assert RUNS[2] in label()


def test_names_of_files_stay_text(report):
    assert HOSTILE in report.texts(".open")
    report.run("document.querySelector('.card[data-index=\"5\"] .open').click()")
    assert report.texts("#viewed") == [HOSTILE]
    assert report.run("return document.querySelectorAll('.images img').length") == 0
    options = report.texts("select[name=left] option")
    assert options == [*RUNS]


def test_nothing_is_fetched_and_nothing_goes_wrong(browser, place):
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    report = Page(browser, place)
    report.choose("right", RUNS[2])
    report.choose("outcome", "missed")
    report.find(".open").click()
    report.press("ARROW_RIGHT", "ESCAPE")
    report.draw_all()
    assert browser.get_log("browser") == []
    messages = [
        json.loads(line["message"])["message"]
        for line in browser.get_log("performance")
    ]
    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert place.as_uri() in urls
    others = {url for url in urls if not url.startswith("data:")}
    assert others <= {place.as_uri(), "about:blank"}
    entries = report.run(
        "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert [name for name in entries if not name.startswith("data:")] == []
    assert not re.search("https?://", place.read_text())


@pytest.mark.parametrize("width", [1400, 500, 360])
def test_nothing_is_wider_than_the_window(report, width):
    # Headless Chromium has a least width of window, which a device's does not have.
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    report.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        report.open()
        overflow = "const {scrollWidth, clientWidth} = arguments[0];"
        overflow += "return scrollWidth - clientWidth"
        assert report.run("return innerWidth") == width
        assert report.run(overflow, report.find("html")) <= 0
        report.run("document.querySelector('.open').click()")
        assert report.run(overflow, report.find("#viewer")) <= 0
    finally:
        report.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_400_photographs_with_15_runs_are_below_20_megabytes(tmp_path):
    count, share, runs = 40, 10, 15
    rng = np.random.default_rng(0)
    rendered = [
        renderer.render(
            rng, (256, 256), renderer.EVALUATION_CAMERA, glaucoma
        ).photograph
        for glaucoma in (True, False)
    ]
    photographs, readings = [], {f"run {run}": [] for run in range(runs)}
    for index in range(count):
        shift = rng.integers(-30, 30, 2)
        pixels = np.roll(rendered[index % 2], shift, (0, 1)).astype(float)
        pixels = np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255)
        photographs.append(
            page.Photograph(
                f"V{index:04d}", pixels.astype(np.uint8), 1, marks(rng, (256, 256))
            )
        )
        for own in readings.values():
            values = dict.fromkeys(METRICS, rng.random())
            own.append(page.Reading(marks(rng, (256, 256)), values))
    path = tmp_path / "report.html"
    page.write(path, page.Content("", {}, {}, {}, photographs, readings))
    assert share * path.stat().st_size < 20e6


def wait_until(is_so):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(None, 5, poll_frequency=0.02).until(lambda _: is_so())


def test_small_and_empty_outlines_are_drawn(content):
    speck = np.array([(3.0, 2.5), (3.5, 3), (3, 3.5), (2.5, 3), (3.0, 2.5)])
    point = np.full((4, 2), 7.04)
    one = content.photographs[0]._replace(
        truth={"disc": [speck, point], "cup": [], "fovea": np.array([1, 2])}
    )
    text = page.render(
        content._replace(photographs=[one], readings={"run": [None]}, figures={})
    )
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["photographs"][0]["marks"] == {
        "disc": "M3 2.5l.5 .5-.5 .5-.5-.5 .5-.5zM7 7z",
        "cup": "",
        "fovea": [1, 2],
    }


def test_what_does_not_fit_is_refused(content):
    readings = content.readings[RUNS[0]]
    with pytest.raises(ValueError, match="longer"):
        page.render(content._replace(readings={"a": readings[1:]}))
    endless = readings[0]._replace(numbers={"vcdr": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        page.render(content._replace(readings={"a": [endless, *readings[1:]]}))
