"""Which layout a path is of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sitcli.commands.import_latents.layouts import open_source
from sitcli.errors import SitError, UsageError
from tests.commands.import_latents.others import (
    normal,
    settings_for,
    write_fast_dit,
    write_repa,
    write_shards,
)


def layout_of(path: Path, **more) -> str:
    return open_source(settings_for(path, path.with_name("a.h5"), **more)).layout


def test_each_is_told_by_its_files(tmp_path: Path) -> None:
    """Catches: one project's latents read, and scaled, as another's."""
    write_repa(tmp_path / "r")
    write_fast_dit(tmp_path / "f")
    write_shards(tmp_path / "l")
    np.save(tmp_path / "z.npy", normal(2, 4, 4, 4))
    save_file({"z": torch.from_numpy(normal(2, 4, 4, 4))}, tmp_path / "z.safetensors")
    assert layout_of(tmp_path / "r") == "REPA's latents"
    assert layout_of(tmp_path / "f") == "fast-DiT's features"
    shard = next((tmp_path / "l").glob("*.safetensors"))
    assert {layout_of(tmp_path / "l"), layout_of(shard)} == {"LightningDiT's shards"}
    for name in ("z.npy", "z.safetensors"):
        assert layout_of(tmp_path / name, labels="none") == "an array"


def test_what_is_none_of_them_is_refused(tmp_path: Path) -> None:
    """Catches: a traceback for a folder of images, and an option that does nothing."""
    with pytest.raises(SitError, match="there is no"):
        layout_of(tmp_path / "none")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    with pytest.raises(SitError, match="no latents that sit knows") as caught:
        layout_of(tmp_path / "photos")
    assert "vae-sd" in caught.value.hint
    write_repa(tmp_path / "r")
    with pytest.raises(UsageError, match="--key has no effect"):
        layout_of(tmp_path / "r", key="z")
