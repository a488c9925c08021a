"""What lies in a store's file: checksums, the command that makes it, and values no store has."""

from __future__ import annotations

import shlex
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.latents.layout import encode_command, open_rows, row_checksums
from sitcli.storage.rows import Rows
from tests.latents.stores import NUM, SPEC, C, make_store

FEATURES = dict(name="f", hash="h", asked="f.pt", shape=[5, 2, 2])


def test_checksums_are_of_each_row_and_copy() -> None:
    """Catches: a sum over the whole batch, or copies exchanged."""
    random = np.random.default_rng(0)
    plain, mirrored = random.normal(size=(2, 3, 4, 2, 2)).astype(np.float16)
    found = row_checksums(plain, mirrored)
    assert (found.shape, found.dtype) == ((3, 2), np.uint32)
    for row, sums in enumerate(found.tolist()):
        assert sums == [zlib.crc32(copy[row].tobytes()) for copy in (plain, mirrored)]
    assert row_checksums(plain).shape == (3, 1)


def test_the_command_goes_on_with_the_store(tmp_path: Path) -> None:
    """Catches: a hint that makes another store, or that a shell takes apart."""
    make_store(tmp_path / "a b.h5", crop="none", flips=False, align=FEATURES)
    command = encode_command(Rows(tmp_path / "a b.h5").attrs, tmp_path / "a b.h5")
    assert shlex.split(command) == [
        "sit", "encode-latents", "/data/some where", str(tmp_path / "a b.h5"), "--vae", "some/vae",
        "--image-size", "32", "--crop", "none", "--align-features", "f.pt", "--no-flip",
    ]  # fmt: skip
    pca = dict(SPEC, kind="patch-pca", patch=4, latent_channels=6)
    make_store(tmp_path / "b.h5", autoencoder=pca, vae="patch-pca")
    command = encode_command(Rows(tmp_path / "b.h5").attrs, tmp_path / "b.h5")
    assert command.endswith("--crop adm --pca-patch 4 --pca-channels 6")


def test_copies_and_features_have_their_datasets(tmp_path: Path) -> None:
    """Catches: room for mirrored latents or features where there are none, or none where there
    are."""
    for flips in (True, False):
        path = tmp_path / f"{flips}.h5"
        make_store(path, flips=flips, align=FEATURES)
        file = open_rows(path)
        assert ("latents_flipped" in file.names) == ("features_flipped" in file.names) == flips
        copies = 2 if flips else 1
        assert file.shape("crc32") == file.shape("features_crc32") == (NUM, copies)
        assert file.shape("features") == (NUM, 5, 2, 2)


DAMAGE = [
    (dict(kind="pixels"), {}, "kind 'pixels'"),
    (dict(scaling=[1.0, 2.0]), {}, "scaling"),
    (dict(scaling=0.0), {}, "scaling"),
    (dict(scaling=float("inf")), {}, "scaling"),
    (dict(image_size=0), {}, "of images of 0 pixels"),
    (dict(image_size=1 << 20), {}, "of images of 1048576 pixels"),
    (dict(autoencoder=dict(name="v", shift=0.0)), {}, "autoencoder without 'hash'"),
    (dict(autoencoder=dict(SPEC, shift="no")), {}, "autoencoder without 'shift'"),
    (dict(align=FEATURES | {"shape": [5, 2]}), {}, "features 5 x 2 x 2"),
    (dict(align={"shape": [5, 2, 2], "name": "f"}), {}, "features without 'hash'"),
    (dict(grown=[1]), {}, "a history [1]"),
    (dict(grown=[{"rows": "1"}]), {}, "a history"),
    (dict(grown=[{"rows": 2}, {"rows": 2}]), {}, "a history"),
    (dict(grown=[{"rows": NUM}]), {}, "a history"),
    ({}, {"latents_flipped": (NUM, 2 * C, 2, 2)}, "mirrored latents of another shape"),
    ({}, {"crc32": (NUM, 1)}, "checksums of another number"),
    ({}, {"features_crc32": (NUM, 1)}, "checksums of another number"),
    ({}, {"features_flipped": (NUM, 5, 2, 1)}, "mirrored images of another shape"),
]


@pytest.mark.parametrize(("attrs", "shapes", "message"), DAMAGE)
def test_values_that_no_store_has_are_named(tmp_path: Path, attrs, shapes, message: str) -> None:
    """Catches: a traceback, or a training on latents that are read at wrong places."""
    path = tmp_path / "a.h5"
    make_store(path, align=FEATURES)
    open_rows(path)
    with h5py.File(path, "r+") as file:
        for name, shape in shapes.items():
            dtype = file[name].dtype
            del file[name]
            file.create_dataset(name, data=np.zeros(shape, dtype))
    if attrs:
        Rows(path).set_attrs(**attrs)
    with pytest.raises(SitError, match="is damaged") as caught:
        open_rows(path)
    assert message in caught.value.message


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    """Catches: a traceback for a folder of images in place of the store."""
    with pytest.raises(SitError, match="is a folder, not a latent store"):
        open_rows(tmp_path)
