"""Masks as the page sends them."""

import base64
import io

import numpy as np
from PIL import Image


def disc_at(size, centre, radius):
    """uint8 of a (height, width): 1 within a radius of (x, y)."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    x, y = centre
    return ((columns - x) ** 2 + (rows - y) ** 2 <= radius**2).astype(np.uint8)


def png_of(mask):
    """A PNG in base64 that is opaque inside."""
    picture = Image.new("RGBA", mask.shape[::-1], (255, 255, 255, 0))
    picture.putalpha(Image.fromarray(np.uint8(mask) * np.uint8(255)))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
