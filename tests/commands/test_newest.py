"""The newest artefact below a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sitcli.commands.newest import newest_run, newest_samples, newest_store
from sitcli.errors import SitError
from sitcli.storage.rows import Rows
from tests.tiny import make_store, pictures, write_samples


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def age(path: Path, seconds: int) -> Path:
    os.utime(path, (1_700_000_000 - seconds,) * 2)
    return path


def test_the_newest_complete_store_is_taken() -> None:
    """Catches: an unfinished store, or somebody else's HDF5 file, taken because it is newer."""
    Path("data/sub").mkdir(parents=True)
    old = age(make_store(Path("old.h5")).path, 300)
    new = age(make_store(Path("data/sub/new.h5")).path, 200)
    unfinished = make_store(Path("unfinished.h5")).path
    with Rows(unfinished, writable=True) as file:
        file.set_attrs(complete=False)
    age(unfinished, 100)
    Path("other.h5").write_bytes(b"not HDF5")
    assert newest_store() == new
    new.unlink()
    assert newest_store() == old
    old.unlink()
    with pytest.raises(SitError, match=r"unfinished.h5 is not complete") as error:
        newest_store()
    assert error.value.hint.startswith("go on with: sit encode-latents")


def test_class_folders_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: listing ImageNet's million files before every training."""
    for i in range(201):
        Path(f"imagenet/n{i:03d}").mkdir(parents=True)
    make_store(Path("imagenet/beside.h5"))
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    assert newest_store() == Path("imagenet/beside.h5")
    assert listed == [".", "imagenet"]


def test_sample_sets() -> None:
    """Catches: an unfinished set evaluated because it is newer, or reported as none at all."""
    images, _ = pictures(4)
    write_samples(Path("samples/half"), images, finish=False)
    with pytest.raises(SitError, match="is not complete"):
        newest_samples()
    age(write_samples(Path("samples/whole"), images) / "samples.h5", 100)
    assert newest_samples() == Path("samples/whole/samples.h5")
    write_samples(Path("samples/inverted"), images, invert="photos")  # no samples of a model
    assert newest_samples() == Path("samples/whole/samples.h5")


def test_nothing_names_the_command_to_run() -> None:
    """Catches: a traceback, or no way on, in an empty folder."""
    for find, command in [
        (newest_store, "sit encode-latents"),
        (newest_run, "sit train"),
        (newest_samples, "sit sample"),
    ]:
        with pytest.raises(SitError, match="there is no") as error:
            find()
        assert command in error.value.hint
