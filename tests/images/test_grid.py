"""Grids of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sitcli.errors import SitError
from sitcli.images.grid import MIN_CELL, save_grid


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


@pytest.mark.parametrize("number", [1, 5, 6])
def test_images_stand_row_by_row(tmp_path: Path, number: int) -> None:
    """Catches: rows and columns exchanged, a last row that is lost, or a picture resampled."""
    images = np.random.default_rng(0).integers(0, 200, (number, 64, 80, 3), dtype=np.uint8)
    save_grid(tmp_path / "grid.png", images, columns=3, gap=2)
    grid = read(tmp_path / "grid.png")
    rows = -(-number // 3)
    assert grid.shape == (rows * 66 + 2, 3 * 82 + 2, 3)
    for i, image in enumerate(images):
        top, left = 2 + 66 * (i // 3), 2 + 82 * (i % 3)
        assert np.array_equal(grid[top : top + 64, left : left + 80], image)
    assert (grid == 255).all(2).sum() == grid[..., 0].size - number * 64 * 80


def test_small_images_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    """Catches: pixels blurred by a resize, or a grid of stamps that nobody can see."""
    image = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(1, 8, 8, 3)
    save_grid(tmp_path / "grid.png", image, columns=1, gap=0)
    grid = read(tmp_path / "grid.png")
    factor = MIN_CELL // 8
    assert grid.shape == (MIN_CELL, MIN_CELL, 3)
    assert np.array_equal(grid, image[0].repeat(factor, 0).repeat(factor, 1))


def test_labels_stand_left_of_their_rows(tmp_path: Path) -> None:
    """Catches: a label on another row, or one that is drawn over the first image."""
    images = np.full((4, 64, 64, 3), 90, np.uint8)
    save_grid(tmp_path / "grid.png", images, columns=2, row_labels=["", "heart"])
    grid = read(tmp_path / "grid.png")
    margin = grid.shape[1] - (2 * 66 + 2)
    assert (grid[:66, :margin] == 255).all()
    assert (grid[66:, :margin] == 0).any()
    assert (grid[2:66, margin + 2 : margin + 66] == 90).all()


def test_captions_stand_below_their_images(tmp_path: Path) -> None:
    """Catches: a name below another image, over one, or one that runs into its neighbour's."""
    images = np.full((3, 64, 64, 3), 90, np.uint8)
    save_grid(tmp_path / "plain.png", images, columns=2)
    save_grid(tmp_path / "grid.png", images, columns=2, captions=["", "heart", "long name " * 9])
    grid = read(tmp_path / "grid.png")
    below = (len(grid) - len(read(tmp_path / "plain.png"))) // 2
    for row, column, written in ((0, 0, False), (0, 1, True), (1, 0, True), (1, 1, False)):
        top, left = 2 + row * (66 + below), 2 + column * 66
        assert (grid[top : top + 64, left : left + 64] == (255 if row * column else 90)).all()
        caption = grid[top + 64 : top + 64 + below, left - 2 : left + 66]
        assert (caption < 128).any() == written
        assert (caption[:, [0, 1, -2, -1]] == 255).all()


def test_a_folder_in_the_way_is_one_line(tmp_path: Path) -> None:
    """Catches: a traceback of the system's error."""
    with pytest.raises(SitError, match="it is a folder"):
        save_grid(tmp_path, np.zeros((1, 64, 64, 3), np.uint8), columns=1)
