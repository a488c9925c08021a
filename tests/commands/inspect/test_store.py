"""What `sit inspect` says of a latent store, and the pictures it draws from it."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from tests.commands.inspect.artefacts import COLOURS, NUM, facts, inspected, make_store


def test_store_is_described(tmp_path):
    """Catches: facts taken from the wrong attribute, and broken images left out."""
    store = make_store(tmp_path / "a.h5")
    result = inspected(tmp_path / "a.h5", verify=True)
    shown, data = facts(result), result.data
    assert "12, and their mirror images; 1 broken: 1/4.png" in shown["images"]
    assert "3 of 3 to 5 images: red, green, blue" in shown["classes"]
    assert shown["latents"] == "6 x 2 x 2 float16, deterministic"
    assert "/data/colours" in shown["source"]
    assert (data["num_items"], data["num_rows"], data["complete"]) == (12, NUM, True)
    assert data["broken"] == [{"name": "1/4.png", "reason": "cut short"}]
    assert data["class_counts"] == [5, 3, 4]
    assert data["autoencoder"] == store.autoencoder
    assert data["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert data["verified"]
    assert result.next == f"sit train --latents {tmp_path / 'a.h5'}"
    json.dumps(data)


def test_a_grown_store_tells_what_it_was(tmp_path):
    make_store(tmp_path / "a.h5").rows.set_attrs(grown=[{"rows": 5}, {"rows": 9}])
    result = inspected(tmp_path / "a.h5")
    assert facts(result)["grown"] == "from 5 and 9 images"
    assert result.data["grown"] == [{"rows": 5}, {"rows": 9}]


def test_unfinished_store_is_described_too(tmp_path):
    """Catches: a refusal that hides the command which finishes the store."""
    make_store(tmp_path / "a.h5", complete=False, encoded=8)
    result = inspected(tmp_path / "a.h5", verify=True, preview=tmp_path / "grid.png")
    assert facts(result)["complete"] == "no"
    assert "7 of 13 encoded" in facts(result)["images"]
    assert result.next.startswith("sit encode-latents /data/colours")
    assert (tmp_path / "grid.png").exists()


def test_preview_rows_are_the_classes(tmp_path):
    """Catches: a row under another class's name, or latents that are drawn without unscaling."""
    make_store(tmp_path / "a.h5")
    result = inspected(tmp_path / "a.h5", preview=tmp_path / "new" / "grid.png")
    assert result.path == tmp_path / "new" / "grid.png"
    picture = np.asarray(Image.open(result.path)).astype(int)
    assert picture.shape[0] == 3 * 66 + 2  # three rows of 64 pixels and their gaps
    for row, colour in enumerate(COLOURS):
        tile = picture[2 + row * 66 + 20 : 2 + row * 66 + 40, -40:-20]
        assert np.abs(tile.mean((0, 1)) - (colour + 9.5)).max() < 8
