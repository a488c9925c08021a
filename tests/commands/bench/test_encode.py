"""`sit bench encode`: images a second beside the bare autoencoder's."""

from __future__ import annotations

import statistics

import pytest

from sitcli.commands.bench.stage import bench
from sitcli.settings.tools import BenchSettings
from tests.tiny import finish


def test_encoding_stands_beside_the_bare_autoencoder(tmp_path) -> None:
    """Catches: images left behind, or a ratio of other rounds."""
    settings = BenchSettings(
        what="encode", vae="pixels", image_size=16, images=6, batch_size=4, rounds=2,
        device="cpu", dir=tmp_path,
    )  # fmt: skip
    data = finish(bench(settings)).data
    pairs = zip(data["stage_images_per_second"], data["bare_images_per_second"], strict=True)
    assert data["ratio"] == pytest.approx(statistics.median(s / b for s, b in pairs))
    assert [*tmp_path.iterdir()] == []
