"""The page in real headless Chromium."""

import base64
import io
import json

import numpy as np
import photograph_files
import pytest
from PIL import Image

from mtl_jax.data import images

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

pytest_plugins = ("browser", "untrained_network", "served_page")

WAIT = 120


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    return tmp_path_factory.mktemp("corrected")


@pytest.fixture(scope="module")
def client(serve, corrected, browser):
    with serve(corrected) as client:
        yield client
        browser.get("about:blank")


class Window:
    """The page in one window of the browser, in terms of who uses it."""

    def __init__(self, driver, client):
        self.driver, self.client = driver, client
        self.handle = driver.current_window_handle
        self.open()

    def open(self):
        self.driver.get(self.client.address)
        self.until("return document.documentElement.dataset.ready")

    def front(self):
        self.driver.switch_to.window(self.handle)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def until(self, script, *arguments):
        from selenium.webdriver.support.wait import WebDriverWait

        waiting = WebDriverWait(self.driver, WAIT, 0.05)
        return waiting.until(lambda _: self.run(script, *arguments), script)

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".filter((one) => one.checkVisibility()).map((one) => one.textContent)",
            selector,
        )

    def count(self, listed, errors):
        """Waits until so many photographs and sentences are there."""
        self.until(
            "const count = (found) => document.querySelectorAll(found).length;"
            "return count('#list button') === arguments[0] &&"
            " count('#errors li') === arguments[1] &&"
            " document.getElementById('status').textContent === ''",
            listed,
            errors,
        )

    def show(self, name):
        self.until(
            "const found = [...document.querySelectorAll('#list button')]"
            ".find((one) => one.textContent.startsWith(arguments[0]));"
            "found?.click(); return Boolean(found)",
            name,
        )
        self.until(
            "return document.getElementById('title').textContent === arguments[0] &&"
            "document.getElementById('canvas').getAttribute('aria-label')"
            "?.startsWith(arguments[0])",
            name,
        )

    def press(self, keys):
        self.find("#canvas").send_keys(keys)

    def choose(self, name, value):
        self.find(f"input[name={name}][value={value}]").click()

    def offset(self, one, xy):
        """Where a point of the view is, from the middle of the canvas."""
        width, height = self.run(
            "const c = document.getElementById('canvas');"
            "return [c.clientWidth, c.clientHeight]"
        )
        rows, columns = one["view"]
        scale = min(width / columns, height / rows)
        return [
            round((xy[0] - columns / 2) * scale),
            round((xy[1] - rows / 2) * scale),
        ]

    def drag(self, one, start, *points):
        """Drags the pointer over points of the view, while it shows all of it."""
        from selenium.webdriver import ActionChains

        canvas = self.find("#canvas")
        chain = ActionChains(self.driver, duration=20)
        chain.move_to_element_with_offset(canvas, *self.offset(one, start))
        chain.click_and_hold()
        for point in points:
            chain.move_to_element_with_offset(canvas, *self.offset(one, point))
        chain.release().perform()

    def save(self, begins="Saved."):
        self.find("#save").click()
        self.until(
            "return document.getElementById('saved').textContent"
            ".startsWith(arguments[0])",
            begins,
        )

    def pixels(self):
        """What the canvas shows, uint8 [H, W, 3], after the next frame."""
        address = self.driver.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => "
            "done(document.getElementById('canvas').toDataURL())))"
        )
        content = base64.b64decode(address.partition(",")[2])
        return np.array(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)

    def complaints(self):
        """What the browser complains of, but refusals that the tests provoke."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if "the server responded with a status of 4" not in entry["message"]
        ]


@pytest.fixture
def window(client, browser):
    window = Window(browser, client)
    browser.get_log("browser")
    yield window
    assert window.complaints() == []


@pytest.fixture(scope="module")
def uploaded(client, photographs):
    """Both photographs, as the page describes them, by name."""
    found = [client.upload(photographs / n)[1] for n in ("left.png", "right.jpg")]
    return {one["name"]: one for one in found}


def test_files_are_dropped_and_chosen(window, photographs, client):
    assert "no medical device" in window.find(".banner").text
    names = photographs / "left.png", photographs / "letter.txt"
    window.find("#files").send_keys("\n".join(map(str, names)))
    window.count(1, 1)
    assert window.texts("#list .value") != [""]
    (error,) = window.texts("#errors li")
    assert error.startswith("letter.txt is not an image, is damaged at its start")
    # As a real drop, of a file that the test hands over as text.
    content = base64.b64encode((photographs / "right.jpg").read_bytes()).decode()
    window.run(
        "const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));"
        "const files = new DataTransfer();"
        "files.items.add(new File([bytes], 'right.jpg'));"
        "document.getElementById('drop').dispatchEvent(new DragEvent('drop', "
        "{dataTransfer: files, bubbles: true, cancelable: true}))",
        content,
    )
    window.count(2, 0)
    assert [one["name"] for one in client.ask("photographs")[1]] == [
        "left.png",
        "right.jpg",
    ]
    window.open()
    assert window.texts("#count") == ["2 of 2 photographs"]


def test_what_is_found_is_drawn(window, uploaded):
    one = uploaded["left.png"]
    window.show("left.png")
    assert set(one["masks"]) == {"disc", "cup"}
    numbers = dict(
        zip(window.texts("#numbers dt"), window.texts("#numbers dd"), strict=True)
    )
    found = one["numbers"]
    assert numbers["Probability of glaucoma, not calibrated"] == (
        f"{found['probability']:.2f}"
    )
    assert numbers["vCDR"] == f"{found['vcdr']:.2f}"
    assert window.texts("#quality li") == one["quality"]
    drawn = window.pixels()
    window.press("o")
    bare = window.pixels()
    changed = (drawn != bare).any(-1)
    assert 0.001 < changed.mean() < 0.9
    window.press("o")
    window.run(
        "const o = document.getElementById('opacity'); o.value = 20;"
        "o.dispatchEvent(new Event('input'))"
    )
    faint = window.pixels()
    difference = [np.abs(shown - bare).sum() for shown in (faint, drawn)]
    assert 0 < difference[0] < 0.5 * difference[1]
    window.press("g")
    window.until(
        "return document.getElementById('gradient').checked &&"
        "document.getElementById('wait').hidden"
    )
    assert (window.pixels() != faint).any(-1).mean() > 0.05


def test_keys_sort_and_filter(window, uploaded):
    from selenium.webdriver.common.keys import Keys

    title = "return document.getElementById('title').textContent"
    window.show("left.png")
    window.press(Keys.ARROW_RIGHT)
    window.until(f"{title} === 'right.jpg'")
    window.press(Keys.ARROW_LEFT)
    window.until(f"{title} === 'left.png'")
    window.find("#sort option[value=probability]").click()
    names = sorted(uploaded, key=lambda n: -uploaded[n]["numbers"]["probability"])
    shown = window.run(
        "return [...document.querySelectorAll('#list button')]"
        ".map((one) => one.firstChild.textContent)"
    )
    assert shown == names
    window.find("#find").send_keys("RIG")
    assert window.texts("#count") == ["1 of 2 photographs"]
    # A letter that is typed is no key.
    assert window.run(title) == "left.png"
    window.find("#find").clear()
    window.find("#find").send_keys(" ")
    window.find("#find").send_keys(Keys.BACKSPACE)
    window.find("#filter option[value=corrected]").click()
    assert window.texts("#count") == ["0 of 2 photographs"]


def test_a_correction_is_drawn_saved_and_there_again(
    window, uploaded, client, corrected
):
    one = uploaded["left.png"]
    window.show("left.png")
    # The disc anew: a circle of points, of which one is pulled out to the right.
    window.choose("part", "disc")
    window.find("#clear").click()
    window.choose("tool", "points")
    window.drag(one, (150, 120))
    radius = 0.05 * 240
    window.drag(one, (150 + radius, 120), (150 + 25, 120), (150 + 40, 120))
    # The cup anew: two strokes of the brush, of which one is wiped off.
    window.choose("part", "cup")
    window.find("#clear").click()
    window.choose("tool", "brush")
    window.drag(one, (150, 116), (150, 124))
    window.drag(one, (60, 60), (80, 60))
    window.choose("tool", "erase")
    window.drag(one, (50, 60), (90, 60))
    window.drag(one, (50, 58), (90, 58))
    window.drag(one, (50, 62), (90, 62))
    window.choose("part", "fovea")
    window.drag(one, (60, 100), (80, 130))
    window.find("#glaucoma option[value='1']").click()
    assert window.texts("#saved") == ["Changed and not saved: disc, cup, fovea, label."]
    window.find("#undo").click()
    assert window.texts("#saved") == ["Changed and not saved: disc, cup, fovea."]
    window.find("#glaucoma option[value='1']").click()
    window.save()
    saved = client.ask(f"photographs/{one['id']}")[1]
    assert saved["correction"]["glaucoma"] == 1
    np.testing.assert_allclose(saved["fovea"], (80 - 0.5, 130 - 0.5), atol=1)
    masks = {
        path.name.split("_")[-2]: images.read_mask(path) > 0
        for path in (corrected / "masks").iterdir()
    }
    disc, cup = masks["disc"], masks["cup"]
    # At (x, y), which are its columns and rows.
    assert [bool(disc[y, x]) for x, y in ((150, 120), (172, 120), (150, 110))] == (
        [True] * 3
    )
    assert not any(disc[y, x] for x, y in ((195, 120), (130, 120), (180, 140)))
    assert (cup[120, 150], cup[60, 70]) == (True, False)
    assert disc[cup].all()
    assert window.texts("#list .flags")[0].endswith("✓ corrected")
    window.open()
    window.show("left.png")
    assert window.run("return document.getElementById('glaucoma').value") == "1"
    assert window.texts("#saved") == ["A correction is saved."]
    # The next correction keeps what it does not touch.
    window.find("#glaucoma option[value='']").click()
    window.save()
    again = client.ask(f"photographs/{one['id']}")[1]
    assert again["correction"]["glaucoma"] is None
    assert again["fovea"] == saved["fovea"]
    for path in (corrected / "masks").iterdir():
        part = path.name.split("_")[-2]
        np.testing.assert_array_equal(images.read_mask(path) > 0, masks[part])


def test_the_fovea_is_dragged_from_where_it_is(window, uploaded, client):
    one = uploaded["right.jpg"]
    status, one = client.correct(one, fovea=[99.5, 99.5])
    assert status == 200
    window.open()
    window.show("right.jpg")
    # Elsewhere it moves the photograph.
    window.drag(one, (150, 200), (150, 200))
    assert window.texts("#saved") == ["A correction is saved."]
    window.drag(one, (100, 100), (110, 110), (120, 140))
    window.save()
    found = client.ask(f"photographs/{one['id']}")[1]["fovea"]
    np.testing.assert_allclose(found, (119.5, 139.5), atol=1)
    window.find("#withdraw").click()
    window.until(
        "return document.getElementById('saved').textContent ==="
        " 'The correction is withdrawn.'"
    )
    assert client.ask(f"photographs/{one['id']}")[1] == uploaded["right.jpg"]


def test_two_windows(window, uploaded, client, browser):
    one = uploaded["right.jpg"]
    window.show("right.jpg")
    browser.switch_to.new_window("window")
    other = Window(browser, client)
    try:
        other.show("right.jpg")
        other.find("#glaucoma option[value='1']").click()
        other.save()
        window.front()
        window.find("#glaucoma option[value='0']").click()
        window.save("Another window has saved a correction of this photograph")
        kept = client.ask(f"photographs/{one['id']}")[1]
        assert kept["correction"]["glaucoma"] == 1
        window.find("#load").click()
        window.until(
            "return document.getElementById('glaucoma').value === '1' &&"
            "document.getElementById('load').hidden"
        )
        window.find("#glaucoma option[value='0']").click()
        window.save()
        kept = client.ask(f"photographs/{one['id']}")[1]
        assert kept["correction"]["glaucoma"] == 0
    finally:
        other.front()
        browser.close()
        window.front()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_windows_of_other_sizes(width, scheme, window, uploaded, browser):
    """Nothing sticks out, and text stands out from its ground."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        window.open()
        window.show("left.png")
        assert window.run("return innerWidth") == width
        assert window.run("return document.documentElement.scrollWidth") <= width
        colours = window.run(
            "return ['html', '.banner', '#numbers dt', '#save', '#hint'].map((one) => {"
            "const element = document.querySelector(one);"
            "let ground = element;"
            "while (getComputedStyle(ground).backgroundColor === 'rgba(0, 0, 0, 0)')"
            "  ground = ground.parentElement;"
            "return [getComputedStyle(element).color,"
            "  getComputedStyle(ground).backgroundColor].map("
            "  (text) => text.match(/\\d+/g).slice(0, 3).map(Number))})"
        )
        for pair in colours:
            assert contrast(*pair) > 4.5
        assert (np.mean(colours[0][1]) < 100) == (scheme == "dark")
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(*colours):
    """Contrast of WCAG 2."""
    values = np.array(colours) / 255
    linear = np.where(
        values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
    )
    dark, light = sorted(linear @ (0.2126, 0.7152, 0.0722))
    return (light + 0.05) / (dark + 0.05)


def test_it_asks_no_other_machine(window, client, browser):
    browser.get_log("performance")
    window.open()
    asked = [
        json.loads(entry["message"])["message"]["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if 'Network.requestWillBeSent"' in entry["message"]
    ]
    assert client.address + "/page.js" in asked
    assert [u for u in asked if not u.startswith((client.address, "data:"))] == []


def test_a_chosen_file_that_changes_is_said(window, photographs, tmp_path):
    """Between the choice and its turn, while the file before it is sent."""
    changing = tmp_path / "changing.png"
    changing.write_bytes((photographs / "left.png").read_bytes())
    window.run(
        "window.send = fetch; window.fetch = (...all) => new Promise("
        "(go) => { window.go = () => go(send(...all)); })"
    )
    names = photographs / "letter.txt", changing
    window.find("#files").send_keys("\n".join(map(str, names)))
    window.until("return Boolean(window.go)")
    changing.write_bytes(b"changed")
    window.run("window.fetch = window.send; window.go()")
    window.until("return document.querySelectorAll('#errors li').length === 2")
    said = "changing.png has changed or is gone; drop it again."
    assert window.texts("#errors li")[1] == said
    errors = [
        one for one in window.complaints() if "ERR_UPLOAD_FILE_CHANGED" not in one
    ]
    assert errors == []


def test_formats_that_no_browser_shows(window, photographs, tmp_path):
    pixels = np.array(Image.open(photographs / "left.png"))
    photograph_files.write_dicom(tmp_path / "eye.dcm", pixels)
    photograph_files.write_heic(tmp_path / "eye.heic", pixels)
    deep = photograph_files.tiff16_bytes(pixels * np.uint16(257))
    (tmp_path / "eye.tiff").write_bytes(deep)
    names = ["eye.dcm", "eye.heic", "eye.tiff"]
    files = window.find("#files")
    files.send_keys("\n".join(str(tmp_path / name) for name in names))
    for name in names:
        window.show(name)
        assert window.pixels().max() > 100
    assert window.texts("#errors li") == []
