"""The source's rows written into the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.import_latents import fill
from sitcli.errors import SitError
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import MISSING, Rows
from tests.commands.import_latents.others import NUM, half, imported, store_of, write_repa


def test_only_missing_batches_are_read(tmp_path: Path, monkeypatch) -> None:
    """Catches: a command that begins again, or a row that stays empty."""
    monkeypatch.setattr(fill, "BATCH_BYTES", 2 * 2 * 8 * 4 * 4)  # two rows
    values = write_repa(tmp_path / "r")
    out = tmp_path / "a.h5"
    store_of(tmp_path / "r", out)
    whole = out.read_bytes()
    with Rows(out, writable=True) as file:
        file.write([4, 5, 9], status=MISSING, latents=np.zeros((3, 8, 4, 4), np.float16))
        file.set_attrs(complete=False)
    # A file of a row that is there is not looked at again; its size still is.
    np.save(tmp_path / "r" / "vae-sd" / "00000" / "img-mean-std-00000001.npy", values[2])
    result, events = imported(tmp_path / "r", out)
    assert [e.done for e in events if hasattr(e, "done")][:3] == [9, 11, 12]
    assert out.read_bytes() == whole
    assert result.data["images"] == NUM


def test_a_bad_value_stops_and_what_was_written_stays(tmp_path: Path, monkeypatch) -> None:
    """Catches: a NaN in a store that says it is complete, and work done twice after the repair."""
    monkeypatch.setattr(fill, "BATCH_BYTES", 2 * 2 * 8 * 4 * 4)
    # All rows would be looked at for their scale before anything is written.
    monkeypatch.setattr("sitcli.commands.import_latents.scales.ROWS", 2)
    values = write_repa(tmp_path / "r")
    name = "00000/img-mean-std-00000007.npy"
    bad = values[7].copy()
    bad[1, 2, 3] = np.nan
    np.save(tmp_path / "r" / "vae-sd" / name, bad)
    out = tmp_path / "a.h5"
    with pytest.raises(SitError, match=f"{name} holds a value that is no number") as caught:
        imported(tmp_path / "r", out)
    assert "the same command goes on" in caught.value.hint
    with pytest.raises(SitError, match="is not complete") as caught:
        LatentStore.open(out)
    assert caught.value.hint.endswith(f"sit import-latents {tmp_path / 'r'} {out}")
    np.save(tmp_path / "r" / "vae-sd" / name, values[7])
    store = store_of(tmp_path / "r", out)
    assert np.array_equal(store.read(range(NUM)), half(values))
