import base64
import html.parser
import io
import re
import tracemalloc
import zlib

import numpy as np
import pypdf
import pytest
from PIL import Image

from mtl_jax.reporting import handout, predictions
from mtl_jax.reporting.handout import pages, pdf

pytest_plugins = ("browser", "untrained_network")

NAMES = ("left", "Ζαφείρης <b>&amp;", "dark", "gone")
LONG = "of_a_word_that_is_longer_than_its_line_" * 5


def jpeg(side=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def content(count, side=64):
    def page(number):
        return handout.Page(
            name=NAMES[number % len(NAMES)],
            file=f"in/{LONG}{number}.jpg",
            decision="no glaucoma",
            numbers=[("P(glaucoma)", "0.31 ± 0.02"), ("disc [pixels]", f"{number}")],
            doubts=["blurred: its sharpness is 0.1%"] * (number % 2),
            photograph=None if number % 4 == 3 else jpeg(side, 2 * number),
            overlay=jpeg(side, 2 * number + 1),
        )

    return handout.Content(
        facts=[("photographs", str(count))],
        calibration="The probabilities are not calibrated.",
        limits=("One.", "Two."),
        heads=("photograph", "decision", "P", "vCDR", "quality"),
        rows=lambda: ((f"row {k}", "no", "0.31", "–", LONG) for k in range(count)),
        pages=lambda: map(page, range(count)),
    )


def objects(data):
    """The objects of a PDF, by the table at its end."""
    start = int(re.search(rb"startxref\n(\d+)\n%%EOF\n\Z", data)[1])
    table = data[start:]
    count = int(re.match(rb"xref\n0 (\d+)\n", table)[1])
    entries = re.findall(rb"(\d{10}) \d{5} n \n", table)
    assert len(entries) == count - 1
    found = {}
    for number, offset in enumerate(map(int, entries), 1):
        head = f"{number} 0 obj\n".encode()
        assert data[offset:].startswith(head)
        found[number] = data[offset + len(head) :]
    return found


def stream(of):
    head = of[: of.index(b"stream\n") + 7]
    body = of[len(head) :][: int(re.search(rb"/Length (\d+)", head)[1])]
    return zlib.decompress(body) if b"/FlateDecode" in head else body


def texts(data):
    """The lines of text on each page, by the table of characters in the file."""
    found = objects(data)
    characters = {}
    for of in found.values():
        if of.startswith(b"<< /Type /Font /Subtype /Type0"):
            table = stream(found[int(re.search(rb"/ToUnicode (\d+)", of)[1])])
            pairs = re.findall(rb"<(\w{4})> <(\w{4,8})>\n", table)
            characters |= {a: bytes.fromhex(b.decode()) for a, b in pairs}
    result = []
    for of in found.values():
        if of.startswith(b"<< /Type /Page /"):
            drawn = stream(found[int(re.search(rb"/Contents (\d+)", of)[1])])
            result.append(
                [
                    b"".join(
                        characters[line[k : k + 4]] for k in range(0, len(line), 4)
                    ).decode("utf-16-be")
                    for line in re.findall(rb"<(\w*)> Tj", drawn)
                ]
            )
    return result


def test_a_pdf_has_a_cover_and_a_page_for_each(tmp_path):
    of = content(4)
    handout.write("pdf", of, tmp_path / "a.pdf")
    data = (tmp_path / "a.pdf").read_bytes()
    cover, *others = texts(data)
    assert {"photographs", "4", "row 0", "row 3", "0.31"} <= {*cover}
    assert len(others) == 4
    for page, lines in zip(of.pages(), others, strict=True):
        said = "".join(lines).replace(" ", "")
        for text in (page.name, page.file, *of.limits, handout.NOTICE, of.calibration):
            assert text.replace(" ", "") in said
        for text in (page.decision, *sum(page.numbers, ())):
            assert text in lines
        assert ("No doubt about the photograph." in lines) == (not page.doubts)
        assert page.overlay in data
        assert page.photograph is None or page.photograph in data
    assert "The photograph cannot be read any more." in others[3]


def test_a_long_table_has_heads_on_each_page(tmp_path):
    of = content(80)._replace(pages=lambda: iter(()))
    handout.write("pdf", of, tmp_path / "a.pdf")
    cover, *more = texts((tmp_path / "a.pdf").read_bytes())
    assert len(more) > 1
    for lines in more:
        assert lines[: len(of.heads)] == [*of.heads]
    found = [line for page in (cover, *more) for line in page if "row " in line]
    assert found == [f"row {number}" for number in range(80)]


def test_a_viewer_reads_it(tmp_path):
    handout.write("pdf", content(40), tmp_path / "a.pdf")
    shown = pypdf.PdfReader(tmp_path / "a.pdf", strict=True).pages
    assert len(shown) > 41
    found = [page.extract_text() for page in shown]
    assert sum("Ζαφείρης <b>&amp;" in text for text in found) == 10
    # Every page but each fourth, whose photograph is gone, has two pictures.
    sizes = [[image.image.size for image in page.images] for page in shown[-40:]]
    assert sizes == [[(64, 64)] * (1 if k % 4 == 3 else 2) for k in range(40)]


def test_no_text_leaves_its_column():
    for text in ("", "one", LONG, f"a {LONG} b", "some words of usual length " * 9):
        lines = pdf.wrapped(text, 80, 9)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert max(pdf.width_of(line, 9) for line in lines) <= 80


@pytest.mark.parametrize("form", ["pdf", "html"])
def test_a_page_is_on_the_disk_before_the_next_is_made(form, tmp_path):
    path, sizes = tmp_path / f"a.{form}", []
    of = content(30, side=256)
    size = len(jpeg(256))

    def made():
        for page in of.pages():
            sizes.append(path.stat().st_size)
            yield page

    def peak(count):
        shown = content(count, side=256)
        tracemalloc.start()
        handout.write(form, shown, tmp_path / "b")
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    handout.write(form, of._replace(pages=made), path)
    assert sizes[-1] > 28 * size
    assert np.all(np.diff(sizes[2:]) > 0)
    assert peak(60) < peak(20) + 10 * size


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.sections, self.sources, self.text = [], 0, [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in ("meta", "link", "img"):
            self.open.append(tag)
        self.sections += attrs.get("class", "").split()[:1] == ["page"]
        if tag == "img":
            self.sources.append(attrs["src"])
        assert not {"onload", "onerror"} & attrs.keys()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_has_a_cover_and_a_page_for_each(tmp_path):
    of = content(4)
    handout.write("html", of, tmp_path / "a.html")
    reader = Reader()
    reader.feed((tmp_path / "a.html").read_text("utf-8"))
    assert (reader.open, reader.sections) == ([], 5)
    wanted = [x for page in of.pages() for x in (page.photograph, page.overlay) if x]
    head = "data:image/jpeg;base64,"
    assert [base64.b64decode(x.removeprefix(head)) for x in reader.sources] == wanted
    said = "".join(reader.text)
    for page in of.pages():
        assert page.name in said
        assert page.file in said
    assert said.count(handout.NOTICE) == 5


def test_a_report_of_a_prediction(network_folder, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pixels = np.full((60, 80, 3), (190, 90, 40), np.uint8)
    for name in ("=a", "bad\udcff", "c"):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    out = tmp_path / "out"
    predictions.write(network_folder, str(folder), out, report="pdf")
    predictions.write(network_folder, str(folder), out, resume=True, report="html")
    cover, *others = texts((out / "report.pdf").read_bytes())
    assert [lines[0] for lines in others] == ["=a", "bad_xff", "c"]
    assert {"=a", "bad_xff", "c"} <= {*cover}
    assert "The probabilities are not calibrated. From 0.5 on, the decision is" in (
        " ".join(cover)
    )
    assert "80 × 60" in others[0]
    assert (out / "report.html").read_text("utf-8").count('class="page"') == 3
    # It is ours, and may be replaced.
    predictions.write(network_folder, str(folder / "c.png"), out)
    assert not (out / "report.pdf").exists()


def test_the_colours_of_the_page_can_be_read():
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5 on white."""
    for colour in (pages._MARK, pages._DOUBT, pages._QUIET, pdf.BLACK):
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour
        ]
        luminance = np.dot(linear, (0.2126, 0.7152, 0.0722))
        assert 1.05 / (luminance + 0.05) >= 4.5


def test_a_browser_prints_a_cover_and_a_page_for_each(browser, tmp_path):
    """Tall pictures, many doubts and many numbers included."""
    of, tall = content(4), io.BytesIO()
    Image.new("RGB", (50, 400)).save(tall, "JPEG")
    full = [
        page._replace(
            numbers=[(f"number {k}", "0.31 ± 0.02") for k in range(9)],
            doubts=["blurred: its sharpness is 0.1%, usual 1.0-4.5%"] * 4,
            photograph=tall.getvalue(),
            overlay=tall.getvalue(),
        )
        for page in of.pages()
    ]
    of = of._replace(
        pages=lambda: iter(full),
        rows=lambda: [("a", "no", "0.31", "–", "blurred")] * len(full),
        limits=handout.BUILT_IN_LIMITS,
    )
    handout.write("html", of, tmp_path / "a.html")
    browser.get((tmp_path / "a.html").as_uri())
    printed = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    data = base64.b64decode(printed["data"])
    assert len(re.findall(rb"/Type /Page\b", data)) == 1 + len(full)
    assert {*re.findall(rb"/MediaBox \[([^]]*)\]", data)} == {
        b"0 0 594.95996 841.91998"
    }
