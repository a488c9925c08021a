"""What is odd about the scale of latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import UsageError
from tests.commands.import_latents.others import (
    imported,
    normal,
    store_of,
    write_fast_dit,
    write_repa,
    write_shards,
)


def warnings_of(source: Path, out: Path, **more) -> list[str]:
    return imported(source, out, overwrite=True, **more)[0].data["warnings"]


def test_what_fits_is_not_questioned(tmp_path: Path) -> None:
    """Catches: a warning that everyone learns to overlook."""
    write_repa(tmp_path / "r")
    write_fast_dit(tmp_path / "f")
    write_shards(tmp_path / "l")
    for name in "rfl":
        assert warnings_of(tmp_path / name, tmp_path / "a.h5") == []


def test_scaled_and_unscaled_taken_for_each_other_is_an_error(tmp_path: Path) -> None:
    """Catches: days of training on latents of a sixth of their scale, or of six times."""
    write_fast_dit(tmp_path / "f")
    with pytest.raises(UsageError, match=r"scaled by 0.18215, .* deviation of 0.18") as caught:
        store_of(tmp_path / "f", tmp_path / "a.h5", values="unscaled")
    assert "--values scaled" in caught.value.hint
    assert not (tmp_path / "a.h5").exists()
    assert warnings_of(tmp_path / "f", tmp_path / "a.h5", values="unscaled", check=False)
    np.save(tmp_path / "z.npy", normal(6, 4, 4, 4) / 0.18215)
    options = dict(labels="none", scaling="0.18215", values="scaled")
    with pytest.raises(UsageError, match=r"as their values are, .* deviation of 5.\d") as caught:
        store_of(tmp_path / "z.npy", tmp_path / "a.h5", **options)
    assert "--values unscaled" in caught.value.hint


def test_what_may_be_a_mistake_is_a_warning(tmp_path: Path) -> None:
    """Catches: statistics of other latents, log variances taken for standard deviations."""
    np.save(tmp_path / "z.npy", normal(6, 4, 4, 4) * 3)
    (text,) = warnings_of(tmp_path / "z.npy", tmp_path / "a.h5", labels="none", scaling="1")
    assert "scaled by 1.0, the latents have a standard deviation of 2.9" in text or "of 3" in text
    (text,) = warnings_of(
        tmp_path / "z.npy", tmp_path / "a.h5", labels="none", scaling="0.33", shift="0,0,9,0"
    )
    assert "channel 2 has mean -" in text
    assert not warnings_of(tmp_path / "z.npy", tmp_path / "a.h5", labels="none",
                           normalize="channels")  # fmt: skip
    write_repa(tmp_path / "r")
    file = tmp_path / "r" / "vae-sd" / "00000" / "img-mean-std-00000003.npy"
    row = np.load(file)
    row[5] = -1
    np.save(file, row)
    (text,) = warnings_of(tmp_path / "r", tmp_path / "a.h5")
    assert "00000003.npy holds negative standard deviations" in text
