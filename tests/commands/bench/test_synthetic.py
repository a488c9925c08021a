"""Latent stores of random numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.bench import synthetic
from sitcli.commands.bench.synthetic import SHAPE, temporary_folder, write_synthetic
from sitcli.errors import SitError
from sitcli.latents.store import LatentStore


@pytest.mark.parametrize("rows", [4, 7, 100])
def test_a_store_of_numbers_reads_as_any_other(tmp_path: Path, monkeypatch, rows: int) -> None:
    """Catches: rows that are never written where pieces do not divide them, which are zeros and
    read from a disk in no time."""
    monkeypatch.setattr(synthetic, "WRITE_ROWS", rows)
    done = [event.done for event in write_synthetic(tmp_path / "a.h5", 10)]
    assert done == [*range(0, 10, rows)]
    store = LatentStore.open(tmp_path / "a.h5")
    assert (store.num_items, store.kind, store.has_flips) == (10, "moments", True)
    assert store.latent_shape == (SHAPE[0] // 2, *SHAPE[1:])
    assert store.labels.tolist() == [*range(10)]
    latents = store.batch(np.arange(10))
    assert float(latents.flatten(1).std(1).min()) > 0


def test_the_folder_goes_with_the_work(tmp_path: Path) -> None:
    """Catches: a folder that stays after an error, and a traceback where none can be made."""

    def work() -> None:
        with temporary_folder(tmp_path) as name:
            (Path(name) / "large").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SitError, match="cannot write in"), temporary_folder(tmp_path / "none"):
        pass
