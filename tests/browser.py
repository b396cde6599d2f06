"""Real headless Chromium, and a report's page in it: a pytest plugin."""

import shutil

import numpy as np
import pytest

NEEDED = (
    "the page is tested in Chromium: install Debian's packages chromium and "
    "chromium-driver, and selenium by pip"
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason=NEEDED)
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip(NEEDED)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in (
        "headless=new",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=1400,1000",
        f"user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )
    service = webdriver.ChromeService(executable_path=programs[1])
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


class Page:
    """The page in the browser, in terms of who reads it."""

    def __init__(self, driver, path):
        self.driver, self.path = driver, path
        self.open()

    def open(self, view=""):
        self.driver.get("about:blank")
        self.driver.get(self.path.as_uri() + view)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def draw_all(self):
        self.run("dispatchEvent(new Event('beforeprint'))")

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def texts(self, selector):
        return self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((element) => element.textContent)",
            selector,
        )

    def choose(self, name, value):
        self.find(f"select[name={name}] option[value='{value}']").click()

    def press(self, *keys):
        from selenium.webdriver.common.keys import Keys

        for key in keys:
            special = getattr(Keys, key) if len(key) > 1 else key
            self.driver.switch_to.active_element.send_keys(special)

    def focus(self, attribute):
        return self.run(f"return document.activeElement.{attribute}")

    def ids(self):
        return self.run(
            "return [...document.querySelectorAll('#cards .card')]"
            ".map((card) => card.dataset.image)"
        )

    def numbers(self, place, side):
        """[image, metric] as {image id: {metric: (number, text)}} of what is shown."""
        cells = self.run(
            "return [...document.querySelectorAll(arguments[0])].map((cell) => "
            "[cell.closest('.card')?.dataset.image ?? '', cell.dataset.metric, "
            "cell.dataset.value, cell.textContent])",
            f"{place} dd[data-side={side}]",
        )
        found = {}
        for image, metric, value, text in cells:
            found.setdefault(image, {})[metric] = (value, text)
        return found

    def outline(self, selector, count=400):
        """Points [count, 2] along a path as the browser understands it."""
        return np.array(
            self.run(
                "const path = document.querySelector(arguments[0]);"
                "const length = path.getTotalLength();"
                "return Array.from({length: arguments[1]}, (_, i) => "
                "path.getPointAtLength(i * length / arguments[1]))"
                ".map(({x, y}) => [x, y])",
                selector,
                count,
            )
        )
