"""The quickstart's shapes: pictures worth learning."""

import os
import subprocess
import sys

import numpy as np
import pytest

from sitcli.images.drawn import SHAPES, draw_shape


def mask(picture):
    """(H, W) in [0, 1]: how far each pixel is from the ground, which is the corner's colour."""
    distance = np.abs(picture.astype(float) - picture[0, 0]).sum(-1)
    return distance / distance.max()


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_whole_plain_and_anti_aliased(name):
    """Catches: a shape cut off by the frame, lost in its ground, or with jagged edges."""
    for index in range(30):
        picture = draw_shape(name, index, size=32, seed=3)
        assert picture.shape == (32, 32, 3)
        assert picture.dtype == np.uint8
        inside = mask(picture)
        border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        assert border.max() < 0.6, "more than the tip of an edge reaches the border"
        assert 0.05 < inside.mean() < 0.6
        assert np.any((inside > 0.2) & (inside < 0.8)), "no pixel is partly covered"
        contrast = np.abs(picture[inside > 0.99].mean(0) - picture[0, 0]).max()
        assert contrast > 80


def test_classes_are_told_apart():
    """Catches: two classes that look alike: nearest neighbours must name the shape."""

    def masks(indices):
        found = [
            (mask(draw_shape(name, i, size=32, seed=0)), label)
            for label, name in enumerate(SHAPES)
            for i in indices
        ]
        return np.stack([m.ravel() for m, _ in found]), np.array([label for _, label in found])

    known, labels = masks(range(60))
    asked, truth = masks(range(100, 115))
    distances = ((asked[:, None] - known[None]) ** 2).sum(-1)
    assert np.mean(labels[distances.argmin(1)] == truth) > 0.9


def test_pictures_are_a_function_of_seed_name_and_index():
    """Catches: a generator shared between pictures, or Python's salted hash as a seed."""
    picture = draw_shape("heart", 7, size=32, seed=1)
    assert not np.array_equal(picture, draw_shape("heart", 8, size=32, seed=1))
    assert not np.array_equal(picture, draw_shape("heart", 7, size=32, seed=2))
    program = (
        "from sitcli.images.drawn import draw_shape\n"
        "print(draw_shape('heart', 7, size=32, seed=1).tobytes().hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "42"}
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert bytes.fromhex(printed) == picture.tobytes()
