"""Writes PDF page by page: a finished page is on the disk, and no longer in memory.

Only what the report needs is there: text in two fonts, JPEG as it is, lines and boxes.

Reference:
  ISO 32000-1:2008, Document management, Portable document format.
"""

import functools
import io
import zlib
from pathlib import Path
from typing import BinaryIO

import matplotlib
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image

# A4 in points.
WIDTH, HEIGHT = 595.28, 841.89
_FONTS = {"regular": "DejaVuSans.ttf", "bold": "DejaVuSans-Bold.ttf"}
# Entries of a part of a font's table of characters; no part may have more.
_MOST_ENTRIES = 100

Colour = tuple[float, float, float]
BLACK: Colour = (0.106, 0.122, 0.141)


def _font_file(weight: str) -> Path:
    return Path(matplotlib.get_data_path(), "fonts", "ttf", _FONTS[weight])


@functools.cache
def _font(weight: str) -> FT2Font:
    font = FT2Font(_font_file(weight))
    # Widths are then in thousandths of the size.
    font.set_size(1000, 72)
    return font


@functools.cache
def _glyph(weight: str, character: str) -> tuple[int, float]:
    """Number of a character's shape, and its width in thousandths of the size."""
    font = _font(weight)
    number = font.get_char_index(ord(character))
    shape = font.load_glyph(number, flags=LoadFlags.NO_HINTING)
    return number, shape.linearHoriAdvance / 65536


def width_of(text: str, size: float, weight: str = "regular") -> float:
    """Width of a text in points."""
    return size * sum(_glyph(weight, each)[1] for each in text) / 1000


def wrapped(text: str, width: float, size: float, weight: str = "regular") -> list[str]:
    """Breaks a text into lines of at most a width; long words are broken, too."""
    lines, room = [""], width
    space = width_of(" ", size, weight)
    for word in text.split():
        needed = width_of(word, size, weight)
        if lines[-1] and needed + space <= room:
            lines[-1] += f" {word}"
            room -= needed + space
            continue
        lines += [""] if lines[-1] else []
        room = width
        for character in word:
            step = width_of(character, size, weight)
            if step > room and lines[-1]:
                lines.append("")
                room = width
            lines[-1] += character
            room -= step
    return lines


class Document:
    """A PDF file that grows by pages; `close` completes it.

    Places are points from the left and from the top.
    """

    def __init__(self, file: BinaryIO, title: str) -> None:
        """Begins a document in an empty file."""
        self._file, self._title = file, title
        self._offsets: list[int] = []
        self._pages: list[int] = []
        self._used: dict[str, dict[int, str]] = {weight: {} for weight in _FONTS}
        self._drawn: list[str] = []
        self._images: list[int] = []
        file.write(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n")
        # The numbers of objects that every page names.
        self._tree, *fonts = (self._reserve() for _ in range(1 + len(_FONTS)))
        self._fonts = dict(zip(_FONTS, fonts, strict=True))

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: float,
        weight: str = "regular",
        colour: Colour = BLACK,
    ) -> None:
        """Writes a line; y is that of its base line."""
        codes = ""
        for character in text:
            number, _ = _glyph(weight, character)
            self._used[weight][number] = character
            codes += f"{number:04x}"
        red, green, blue = colour
        self._drawn.append(
            f"BT {red:.3f} {green:.3f} {blue:.3f} rg /{weight} {size:g} Tf "
            f"{x:.2f} {HEIGHT - y:.2f} Td <{codes}> Tj ET"
        )

    def box(
        self, x: float, y: float, width: float, height: float, fill: Colour
    ) -> None:
        """Fills a box; a thin one is a line."""
        red, green, blue = fill
        self._drawn.append(
            f"{red:.3f} {green:.3f} {blue:.3f} rg "
            f"{x:.2f} {HEIGHT - y - height:.2f} {width:.2f} {height:.2f} re f"
        )

    def image(
        self, x: float, y: float, width: float, height: float, jpeg: bytes
    ) -> None:
        """Places a JPEG in RGB; the box should have its proportions."""
        columns, rows = size_of(jpeg)
        number = self._reserve()
        entries = (
            f"/Type /XObject /Subtype /Image /Width {columns} /Height {rows} "
            "/ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /DCTDecode"
        )
        self._stream(number, entries, jpeg)
        self._images.append(number)
        self._drawn.append(
            f"q {width:.2f} 0 0 {height:.2f} {x:.2f} {HEIGHT - y - height:.2f} cm "
            f"/i{number} Do Q"
        )

    def end_page(self) -> None:
        """Writes the page, and begins another."""
        content, page = self._reserve(), self._reserve()
        drawn = zlib.compress("\n".join(self._drawn).encode())
        self._stream(content, "/Filter /FlateDecode", drawn)
        fonts = " ".join(f"/{name} {at} 0 R" for name, at in self._fonts.items())
        images = " ".join(f"/i{number} {number} 0 R" for number in self._images)
        self._object(
            page,
            f"<< /Type /Page /Parent {self._tree} 0 R /Contents {content} 0 R "
            f"/MediaBox [0 0 {WIDTH} {HEIGHT}] "
            f"/Resources << /Font << {fonts} >> /XObject << {images} >> >> >>",
        )
        self._pages.append(page)
        self._drawn, self._images = [], []

    def close(self) -> None:
        """Writes fonts and the table of contents."""
        for weight, number in self._fonts.items():
            self._write_font(weight, number)
        kids = " ".join(f"{page} 0 R" for page in self._pages)
        self._object(
            self._tree, f"<< /Type /Pages /Count {len(self._pages)} /Kids [{kids}] >>"
        )
        catalog, about = self._reserve(), self._reserve()
        self._object(catalog, f"<< /Type /Catalog /Pages {self._tree} 0 R >>")
        title = self._title.encode("utf-16-be").hex()
        self._object(about, f"<< /Title <feff{title}> /Producer (mtl_jax) >>")
        start = self._file.tell()
        lines = [f"xref\n0 {len(self._offsets) + 1}\n0000000000 65535 f \n"]
        lines += [f"{offset:010} 00000 n \n" for offset in self._offsets]
        lines.append(
            f"trailer\n<< /Size {len(self._offsets) + 1} /Root {catalog} 0 R "
            f"/Info {about} 0 R >>\nstartxref\n{start}\n%%EOF\n"
        )
        self._file.write("".join(lines).encode())

    def _write_font(self, weight: str, number: int) -> None:
        font, used = _font(weight), sorted(self._used[weight].items())
        name = font.postscript_name
        program, about, shapes, codes = (self._reserve() for _ in range(4))
        content = _font_file(weight).read_bytes()
        entries = f"/Filter /FlateDecode /Length1 {len(content)}"
        self._stream(program, entries, zlib.compress(content))
        # In thousandths of the size.
        scale = 1000 / font.units_per_EM
        box = " ".join(f"{scale * edge:.0f}" for edge in font.bbox)
        self._object(
            about,
            f"<< /Type /FontDescriptor /FontName /{name} /Flags 4 /FontBBox [{box}] "
            f"/ItalicAngle 0 /Ascent {scale * font.ascender:.0f} /Descent "
            f"{scale * font.descender:.0f} /CapHeight 729 /StemV 80 "
            f"/FontFile2 {program} 0 R >>",
        )
        widths = " ".join(
            f"{glyph} [{_glyph(weight, character)[1]:.0f}]" for glyph, character in used
        )
        self._object(
            shapes,
            f"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /{name} /CIDSystemInfo "
            "<< /Registry (Adobe) /Ordering (Identity) /Supplement 0 >> /DW 600 "
            f"/FontDescriptor {about} 0 R /CIDToGIDMap /Identity /W [{widths}] >>",
        )
        self._stream(codes, "", _characters(used))
        self._object(
            number,
            f"<< /Type /Font /Subtype /Type0 /BaseFont /{name} /Encoding /Identity-H "
            f"/DescendantFonts [{shapes} 0 R] /ToUnicode {codes} 0 R >>",
        )

    def _reserve(self) -> int:
        self._offsets.append(0)
        return len(self._offsets)

    def _object(self, number: int, text: str) -> None:
        self._offsets[number - 1] = self._file.tell()
        self._file.write(f"{number} 0 obj\n{text}\nendobj\n".encode())

    def _stream(self, number: int, entries: str, content: bytes) -> None:
        self._offsets[number - 1] = self._file.tell()
        head = f"{number} 0 obj\n<< {entries} /Length {len(content)} >>\nstream\n"
        self._file.write(head.encode() + content + b"\nendstream\nendobj\n")


def size_of(jpeg: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG in pixels."""
    with Image.open(io.BytesIO(jpeg)) as picture:
        return picture.size


def _characters(used: list[tuple[int, str]]) -> bytes:
    """The table by which a viewer finds and copies text."""
    parts = []
    for start in range(0, len(used), _MOST_ENTRIES):
        part = used[start : start + _MOST_ENTRIES]
        lines = [f"<{n:04x}> <{c.encode('utf-16-be').hex()}>" for n, c in part]
        parts += [f"{len(part)} beginbfchar", *lines, "endbfchar"]
    return "\n".join(
        [
            "/CIDInit /ProcSet findresource begin 12 dict begin begincmap",
            "/CMapName /Characters def /CMapType 2 def",
            "1 begincodespacerange <0000> <ffff> endcodespacerange",
            *parts,
            "endcmap CMapName currentdict /CMap defineresource pop end end",
        ]
    ).encode()
