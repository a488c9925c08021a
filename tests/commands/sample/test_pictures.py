"""The files beside a sample set: pictures, npz, grid and path."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.tiny import draw


def test_outputs(run: Path) -> None:
    """Catches: a file that is promised and not written, or written wrongly."""
    from PIL import Image

    samples = draw(run, "set", png=True, npz=True, show_path=True)
    folder = samples.directory
    assert np.array_equal(np.load(folder / "samples.npz")["arr_0"], samples.images)
    assert np.array_equal(
        np.array(Image.open(folder / "png" / "000003_red.png")), samples.images[3]
    )
    assert {"grid.png", "path.png", "meta.json"} <= {p.name for p in folder.iterdir()}
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["evaluations_per_image"] == 8
    assert meta["class_names"] == ["red", "green", "blue"]
    single = draw(run, "alone.h5", show_path=True)
    assert single.path.name == "alone.h5"
    assert np.array_equal(single.images, samples.images)
    assert (folder.parent / "alone.grid.png").exists()
    assert (folder.parent / "alone.path.png").exists()  # not shared with the set beside it


def test_grid_of_single_images_is_square(run: Path) -> None:
    """Catches: a picture one image wide and as long as there are classes."""
    from PIL import Image

    draw(run, "three", num=3)
    draw(run, "six", num=6)
    widths = [Image.open(run.parents[1] / name / "grid.png").width for name in ("three", "six")]
    assert widths[0] < widths[1]  # without and with the margin of class names


def test_pictures_go_on_under_the_names_they_began_with(run: Path) -> None:
    """Catches: two files for one picture of a set that an earlier version began, and files of which
    no class is to be seen."""
    draw(run, "set", num=4, png=True)
    png = run.parents[1] / "set" / "png"
    names = sorted(path.name for path in png.iterdir())
    assert names == ["000000_red.png", "000001_green.png", "000002_blue.png", "000003_red.png"]
    (png / names[1]).unlink()
    draw(run, "set", num=4, png=True)
    assert sorted(path.name for path in png.iterdir()) == names
    for i, name in enumerate(names):
        (png / name).rename(png / f"{i:06d}.png")
    (png / "000002.png").unlink()
    draw(run, "set", num=4, png=True)
    assert sorted(path.name for path in png.iterdir()) == [f"{i:06d}.png" for i in range(4)]
