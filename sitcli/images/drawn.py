"""The quickstart's pictures: ten classes of anti-aliased coloured shapes, a function of the seed.

A shape is a function (x, y) -> whether the point is inside, on coordinates in which the shape
about fills the unit disc and y points up. To add a class, write one and add a row to `SHAPES`.
"""

from __future__ import annotations

import colorsys
import hashlib

import numpy as np

SUPERSAMPLE = 6  # samples per pixel and axis; a pixel is their mean, which smooths the edges


def draw_shape(name: str, index: int, *, size: int, seed: int) -> np.ndarray:
    """Picture number `index` of class `name`: (size, size, 3) uint8.

    Colour, background, position, size and rotation depend on (seed, name, index) alone, so new
    pictures or classes leave the others unchanged. The name is text: it is hashed to numpy's seed,
    with the others, to 64 bits.
    """
    digest = hashlib.blake2b(repr((seed, name, index)).encode(), digest_size=8).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    foreground, background = _colours(rng)
    angle = rng.uniform(-0.12, 0.12)
    radius = rng.uniform(0.75, 0.85)
    center = rng.uniform(-1, 1, size=2) * (0.92 - radius) / 2

    ticks = (np.arange(size * SUPERSAMPLE) + 0.5) / (size * SUPERSAMPLE) * 2 - 1
    x = (ticks[None, :] - center[0]) / radius
    y = -(ticks[:, None] - center[1]) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    inside = SHAPES[name](cos * x + sin * y, cos * y - sin * x)
    coverage = inside.reshape(size, SUPERSAMPLE, size, SUPERSAMPLE).mean(axis=(1, 3))[..., None]
    return np.rint(255 * (coverage * foreground + (1 - coverage) * background)).astype(np.uint8)


def _colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A vivid foreground and a pale or dark background of the same hue, in clear contrast."""
    hue = rng.integers(6) / 6 + rng.uniform(-0.02, 0.02)
    vivid = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.85, 1.0), rng.uniform(0.85, 1.0))
    luminance = np.dot((0.2126, 0.7152, 0.0722), vivid)
    # Blue needs a pale ground and yellow a dark one; those in between stand out on either.
    if luminance < 0.2 or (luminance < 0.55 and rng.random() < 0.5):
        ground = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.0, 0.05), rng.uniform(0.95, 1.0))
    else:
        ground = colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.0, 0.3), rng.uniform(0.08, 0.15))
    return np.array(vivid), np.array(ground)


def _regular(x: np.ndarray, y: np.ndarray, corners: int, radius: float) -> np.ndarray:
    """A regular polygon with a corner at the top, as an intersection of half-planes."""
    angles = np.pi / 2 + (2 * np.arange(corners) + 1) * np.pi / corners
    apothem = radius * np.cos(np.pi / corners)
    return np.all([np.cos(a) * x + np.sin(a) * y < apothem for a in angles], axis=0)


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x**2 + y**2 < 0.88**2


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(abs(x), abs(y)) < 0.78


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _regular(x, y + 0.1, corners=3, radius=1.03)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Five points: inside at least four of a pentagram's five half-planes."""
    angles = -np.pi / 2 + 2 * np.pi * np.arange(5) / 5
    edge = 1.06 * np.cos(2 * np.pi / 5)
    return np.sum([np.cos(a) * x + np.sin(a) * y < edge for a in angles], axis=0) >= 4


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.maximum(abs(x), abs(y)) < 0.9) & (np.minimum(abs(x), abs(y)) < 0.28)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = x**2 + y**2
    return (square > 0.5**2) & (square < 0.95**2)


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = 1.2 * x, 1.2 * y + 0.1
    return (x**2 + y**2 - 1) ** 3 < x**2 * y**3


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Open upwards: all ten shapes are their own mirror images, so flips keep the class."""
    return (x**2 + y**2 < 0.98**2) & (x**2 + (y - 0.45) ** 2 > 0.76**2)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return abs(x) / 0.6 + abs(y) < 1.05


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pointing up: a triangular head on a shaft."""
    head = (y > 0) & (abs(x) < 0.95 - y)
    shaft = (y > -0.95) & (y <= 0) & (abs(x) < 0.3)
    return head | shaft


SHAPES = {
    "arrow": _arrow,
    "circle": _circle,
    "crescent": _crescent,
    "cross": _cross,
    "diamond": _diamond,
    "heart": _heart,
    "ring": _ring,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
}
