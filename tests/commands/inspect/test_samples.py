"""What `sit inspect` says of a sample set."""

from __future__ import annotations

import numpy as np
from PIL import Image

from tests.commands.inspect.artefacts import facts, inspected, make_samples


def test_samples_are_described(tmp_path):
    """Catches: a sampler's settings left out, and an unfinished set called complete."""
    make_samples(tmp_path / "set")
    result = inspected(tmp_path / "set", verify=True, preview=tmp_path / "grid.png")
    shown = facts(result)
    assert shown["images"] == "6, 8 x 8 pixels, latents kept"
    assert (shown["solver"], shown["cfg scale"], shown["evaluations"]) == ("heun", "1.5", "198")
    assert shown["evaluations per image"] == "33.0"
    assert result.next == f"sit evaluate {tmp_path / 'set'}"
    picture = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert picture[20, -30].argmax() == 0
    assert picture[20 + 66, -30].argmax() == 1

    make_samples(tmp_path / "part", done=4)
    part = inspected(tmp_path / "part" / "samples.h5", verify=True, preview=tmp_path / "part.png")
    assert np.asarray(Image.open(tmp_path / "part.png"))[20, 20].max() > 150  # no blank image
    assert "4 of 6 drawn" in facts(part)["images"]
    assert not part.data["complete"]
