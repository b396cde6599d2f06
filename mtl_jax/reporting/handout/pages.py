"""Lays out the report as pages of PDF."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mtl_jax.reporting.handout import pdf

if TYPE_CHECKING:
    from mtl_jax.reporting.handout import Content, Page

# Okabe and Ito's blue, and a dark form of their vermilion, which differ without colour
# vision too; greys.
_MARK, _DOUBT = (0.0, 0.447, 0.698), (0.64, 0.29, 0.0)
_QUIET, _LINE, _GROUND = (0.357, 0.392, 0.439), (0.835, 0.855, 0.878), (0.09,) * 3
_LEFT, _RIGHT, _TOP, _BOTTOM = 51.0, pdf.WIDTH - 51.0, 54.0, pdf.HEIGHT - 42.0
_GAP, _HIGHEST = 14.0, 330.0
# Left edges and widths of the columns of the cover's table.
_COLUMNS = ((0, 162), (170, 92), (270, 67), (345, 37), (390, 103))
_COLUMNS = tuple((_LEFT + left, width) for left, width in _COLUMNS)
_TITLE = "Predictions on fundus photographs"


def write(of: "Content", notice: str, path: pathlib.Path) -> None:
    """Writes the report as PDF."""
    with path.open("wb") as file:
        document = pdf.Document(file, _TITLE)
        _cover(document, of, notice)
        for page in of.pages():
            _page(document, page, of, notice)
        document.close()


def _lines(
    document: pdf.Document,
    x: float,
    y: float,
    texts: Iterable[str],
    width: float,
    size: float = 9.5,
    weight: str = "regular",
    colour: pdf.Colour = pdf.BLACK,
) -> float:
    """Writes paragraphs below y; returns where they end."""
    for text in texts:
        for line in pdf.wrapped(text, width, size, weight):
            y += 1.4 * size
            document.text(x, y - 0.3 * size, line, size, weight, colour)
        y += 0.3 * size
    return y


def _notice(document: pdf.Document, y: float, notice: str, size: float) -> float:
    end = _lines(
        document, _LEFT + 9, y, [notice], _RIGHT - _LEFT - 9, size, weight="bold"
    )
    document.box(_LEFT, y, 2.5, end - y, _MARK)
    return end


def _head(document: pdf.Document, title: str, size: float, below: str = "") -> float:
    y = _lines(document, _LEFT, _TOP - 8, [title], _RIGHT - _LEFT, size, "bold")
    if below:
        y = _lines(document, _LEFT, y - 3, [below], _RIGHT - _LEFT, 7.5, colour=_QUIET)
    document.box(_LEFT, y + 3, _RIGHT - _LEFT, 1.2, _MARK)
    return y + 16


def _cover(document: pdf.Document, of: "Content", notice: str) -> None:
    y = _notice(document, _head(document, _TITLE, 20), notice, 9.5) + 10
    for name, text in of.facts:
        _lines(document, _LEFT, y, [name], 95, colour=_QUIET)
        y = _lines(document, _LEFT + 100, y, [text], _RIGHT - _LEFT - 100)
    y = _lines(document, _LEFT, y + 6, [of.calibration], _RIGHT - _LEFT) + 10
    y = _row(document, y, of.heads, 7.5, _QUIET)
    for row in of.rows():
        if y + _height(row, 8.5) > _BOTTOM:
            document.end_page()
            y = _row(document, _TOP, of.heads, 7.5, _QUIET)
        y = _row(document, y, row, 8.5, pdf.BLACK)
    document.end_page()


def _row(
    document: pdf.Document,
    y: float,
    cells: Sequence[str],
    size: float,
    colour: pdf.Colour,
) -> float:
    ends = [
        _lines(document, left, y, [cell], width, size, colour=colour)
        for (left, width), cell in zip(_COLUMNS, cells, strict=True)
    ]
    document.box(_LEFT, max(ends), _RIGHT - _LEFT, 0.6, _LINE)
    return max(ends) + 2


def _height(cells: Sequence[str], size: float) -> float:
    """Height of a row of the table."""
    most = max(
        len(pdf.wrapped(cell, width, size))
        for (_, width), cell in zip(_COLUMNS, cells, strict=True)
    )
    return 1.4 * size * most + 0.3 * size


def _page(document: pdf.Document, page: "Page", of: "Content", notice: str) -> None:
    y = _head(document, page.name, 16, page.file)
    y = _pictures(document, y, page)
    middle = _LEFT + 185
    _heading(document, _LEFT, y, "Decision of the network")
    left = _lines(document, _LEFT, y + 14, [page.decision], 165, 14, "bold") + 8
    _heading(document, _LEFT, left, "Quality")
    if page.doubts:
        _lines(document, _LEFT, left + 14, page.doubts, 165, colour=_DOUBT)
    else:
        _lines(document, _LEFT, left + 14, ["No doubt about the photograph."], 165)
    _heading(document, middle, y, "Numbers")
    y += 14
    for name, value in page.numbers:
        end = _lines(document, middle, y, [name], 180)
        start = _RIGHT - pdf.width_of(value, 9.5)
        _lines(document, start, y, [value], _RIGHT - start + 1)
        document.box(middle, end, _RIGHT - middle, 0.6, _LINE)
        y = end + 2
    _foot(document, of, notice)
    document.end_page()


def _heading(document: pdf.Document, x: float, y: float, text: str) -> None:
    _lines(document, x, y, [text.upper()], 300, 7.5, "bold", _MARK)


def _pictures(document: pdf.Document, y: float, page: "Page") -> float:
    width = (_RIGHT - _LEFT - _GAP) / 2
    height = 0.0
    for number, jpeg in enumerate((page.photograph, page.overlay)):
        x = _LEFT + number * (width + _GAP)
        if jpeg is None:
            gone = ["The photograph cannot be read any more."]
            _lines(document, x, y, gone, width, colour=_QUIET)
            continue
        columns, rows = pdf.size_of(jpeg)
        scale = min(width / columns, _HIGHEST / rows)
        size = scale * columns, scale * rows
        document.image(x + (width - size[0]) / 2, y, *size, jpeg)
        height = max(height, size[1])
    return y + height + 14


def _foot(document: pdf.Document, of: "Content", notice: str) -> None:
    texts = [of.calibration, " ".join(of.limits)]
    width = _RIGHT - _LEFT
    lines = sum(len(pdf.wrapped(text, width, 7.5)) for text in texts)
    lines += len(pdf.wrapped(notice, width - 9, 7.5, "bold"))
    y = _BOTTOM - lines * 10.5 - 12
    document.box(_LEFT, y - 4, width, 0.6, _LINE)
    y = _lines(document, _LEFT, y, texts, width, 7.5, colour=_QUIET)
    _notice(document, y + 2, notice, 7.5)
