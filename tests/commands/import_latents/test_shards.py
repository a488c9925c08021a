"""LightningDiT's shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sitcli.commands.import_latents.shards import find_shards
from sitcli.errors import SitError, UsageError
from tests.commands.import_latents.others import (
    LABELS,
    NUM,
    half,
    imported,
    store_of,
    write_shards,
)


def change(shard: Path, **tensors: torch.Tensor | None) -> None:
    content = load_file(shard) | tensors
    save_file({k: v for k, v in content.items() if v is not None}, shard)


def test_rows_of_all_shards_and_their_statistics(tmp_path: Path) -> None:
    """Catches: mirrored latents lost or exchanged, a row at a shard's border, a mean that is added,
    a std that multiplies."""
    values = write_shards(tmp_path / "l")
    store = store_of(tmp_path / "l", tmp_path / "a.h5")
    assert (store.kind, store.has_flips, store.image_size) == ("latents", True, 64)
    assert store.labels.tolist() == LABELS
    for copy in (0, 1):
        flip = np.full(NUM, bool(copy))
        assert np.array_equal(store.read(range(NUM), flip=flip), half(values[copy]))
    statistics = torch.load(tmp_path / "l" / "latents_stats.pt", weights_only=True)
    expected = (values[0].half().float() - statistics["mean"]) / statistics["std"]
    # As LightningDiT's loader computes it; its division and our factor differ by two roundings.
    np.testing.assert_allclose(store.batch(range(NUM)), expected, rtol=2.0**-21, atol=2.0**-22)
    assert store.image_paths()[8] == "latents_rank00_shard001.safetensors:1"


def test_one_shard_alone(tmp_path: Path) -> None:
    """Catches: a shard read as an array of any origin, unscaled and not mirrored."""
    values = write_shards(tmp_path / "l")
    shard = tmp_path / "l" / "latents_rank00_shard001.safetensors"
    assert find_shards(shard) == shard
    store = store_of(shard, tmp_path / "a.h5")
    assert np.array_equal(store.read(range(5)), half(values[0, 7:]))
    assert store.scaling.per_channel


def test_without_statistics_they_are_computed(tmp_path: Path) -> None:
    """Catches: latents of std 3 that a network is trained on as they are."""
    write_shards(tmp_path / "l", statistics=False)
    result, _ = imported(tmp_path / "l", tmp_path / "a.h5")
    assert "states no statistics" in result.data["notes"][0]
    np.testing.assert_allclose(result.data["std"], np.ones(32), rtol=1e-9)
    np.testing.assert_allclose(result.data["mean"], np.zeros(32), atol=1e-9)


def test_shards_that_disagree_or_lack_something_are_named(tmp_path: Path) -> None:
    """Catches: labels of other images, latents of two autoencoders in one store."""
    latents = torch.randn(5, 32, 4, 4)
    for number, (tensors, message) in enumerate((
        (dict(labels=None), "shard001.safetensors has no 'labels'"),
        (dict(latents_flip=None), "shard001.safetensors has no 'latents_flip'"),
        (dict(labels=torch.zeros(4, dtype=torch.int64)), "5 x 32 x 4 x 4 latents and 4 'labels'"),
        (dict(labels=torch.full((5,), -1)), "shard001.safetensors:0 is -1"),
        (dict(latents=latents[:, :16].contiguous()), "disagree: latents is .* and 5 x 16 x 4 x 4"),
        (dict(latents=latents.half()), "disagree: latents is .* float16"),
        (dict(latents=latents.long()), "int64, not floating-point"),
    )):  # fmt: skip
        write_shards(tmp_path / f"{number}")
        change(tmp_path / f"{number}" / "latents_rank00_shard001.safetensors", **tensors)
        with pytest.raises(SitError, match=message):
            store_of(tmp_path / f"{number}", tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()
    assert store_of(tmp_path / "0", tmp_path / "a.h5", labels="none").num_classes == 0
    with pytest.raises(UsageError, match="have labels of their own"):
        store_of(tmp_path / "1", tmp_path / "b.h5", labels="x.npy")


def test_statistics_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Catches: statistics of other latents, and a pickle that runs."""
    write_shards(tmp_path / "l")
    file = tmp_path / "l" / "latents_stats.pt"
    for content, message in (
        ({"mean": torch.zeros(1, 16, 1, 1), "std": torch.ones(1, 16, 1, 1)}, "for each of 32"),
        ({"mean": torch.zeros(32), "std": torch.zeros(32)}, "a positive std"),
        ({"average": torch.zeros(32)}, "a positive std"),
        ({"mean": Path, "std": 1}, "more than tensors"),
    ):
        torch.save(content, file)
        with pytest.raises(SitError, match=message):
            store_of(tmp_path / "l", tmp_path / "a.h5")
