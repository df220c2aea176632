"""Arrays as pictures that stand in a page: PNG, in a data URI."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from convsurgeon.base.arrays import Array

_LARGEST = 256
"""Pixels along a side; larger pictures are thinned out."""
_COLOURS = bytes.fromhex("264653 e9c46a 2a9d8f e76f51 805ad5 90be6d f9844a 577590 f071b2 43aa8b b5651d c8c8c8")
_PALETTE = np.frombuffer(_COLOURS, np.uint8).reshape(-1, 3)


def draw_values(values: Array, low: float, high: float) -> str:
    """Return an image (1 or 3, H, W) as a picture, `low` black and `high` white."""
    scaled = np.clip((values.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
    return _picture(np.broadcast_to(255 * scaled.transpose(1, 2, 0), (*values.shape[1:], 3)))


def draw_classes(classes: Array) -> str:
    """Return a map (H, W) of class numbers as a picture, a colour for each."""
    return _picture(_PALETTE[classes.astype(np.int64) % len(_PALETTE)])


def draw_marks(marked: Array) -> str:
    """Return a map (H, W) of yes and no as a picture: red where it is yes."""
    return _picture(np.where(marked[..., None], [220, 50, 40], [235, 235, 235]))


def _picture(pixels: Array) -> str:
    """Return pixels (H, W, 3) from 0 to 255 as a data URI."""
    step = -(-max(pixels.shape[:2]) // _LARGEST)
    small = np.ascontiguousarray(pixels[::step, ::step]).round().astype(np.uint8)
    height, width, _ = small.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), small.reshape(height, -1)], 1)  # no filter
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"
