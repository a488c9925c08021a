"""Arrays of latents of any origin."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from tests.commands.import_latents.others import LABELS, NUM, half, normal, store_of

LATENTS = normal(NUM, 3, 4, 4) * 2 + 1


def write(folder: Path, name: str) -> tuple[Path, dict]:
    """(file, options) of LATENTS with LABELS."""
    path, labels = folder / name, np.array(LABELS)
    if path.suffix == ".npy":
        np.save(path, LATENTS)
        np.save(folder / "labels.npy", labels)
        return path, dict(labels=str(folder / "labels.npy"))
    if path.suffix == ".safetensors":
        save_file({"z": torch.from_numpy(LATENTS), "y": torch.from_numpy(labels)}, path)
    elif path.suffix == ".npz":
        np.savez_compressed(path, z=LATENTS, y=labels[:, None])
    else:
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(str(path), mode="w")
        for key, value in (("z", LATENTS), ("y", labels)):
            group.create_dataset(key, shape=value.shape, chunks=(5, *value.shape[1:]),
                                 dtype=value.dtype)[:] = value  # fmt: skip
    return path, {}


@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.safetensors", "z.zarr"])
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    """Catches: a kind whose labels or values are lost."""
    path, options = write(tmp_path, name)
    store = store_of(path, tmp_path / "a.h5", scaling="0.5", shift="1", **options)
    assert np.array_equal(store.read(range(NUM)), half(LATENTS))
    assert store.labels.tolist() == LABELS
    assert (store.scaling, store.autoencoder["kind"]) == (Scaling(0.5, 1.0), "unknown")
    assert store.batch([0]).std() == pytest.approx(1, abs=0.3)


def test_which_array_is_which_must_be_clear(tmp_path: Path) -> None:
    """Catches: the first of two arrays, or labels of something else."""
    path = tmp_path / "a.npz"
    np.savez(path, a=LATENTS, b=LATENTS + 1, y=np.array(LABELS), n=np.arange(NUM))
    common = dict(scaling="0.5", shift="1")
    with pytest.raises(UsageError, match="a 12 x 3 x 4 x 4 float32, b 12 x 3") as caught:
        store_of(path, tmp_path / "a.h5", **common)
    assert "--key NAME" in caught.value.hint
    with pytest.raises(UsageError, match="which of its arrays are the labels"):
        store_of(path, tmp_path / "a.h5", key="a", **common)
    with pytest.raises(UsageError, match=r"--key c: .* holds a 12 x"):
        store_of(path, tmp_path / "a.h5", key="c", **common)
    with pytest.raises(UsageError, match=r"no latents \(N, C, h, w\)"):
        store_of(path, tmp_path / "a.h5", key="y", **common)
    store = store_of(path, tmp_path / "a.h5", key="a", labels="y", **common)
    assert np.array_equal(store.read([5]), half(LATENTS[5:6]))
    np.savez(path, a=LATENTS)
    with pytest.raises(UsageError, match="holds no labels"):
        store_of(path, tmp_path / "b.h5", **common)
    assert store_of(path, tmp_path / "b.h5", labels="none", **common).num_classes == 0


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    """Catches: labels of another set, and floats cut to whole numbers."""
    np.save(tmp_path / "z.npy", LATENTS)
    for labels, more, message in (
        (np.arange(5), {}, "holds 5 labels for 12 latents"),
        (np.ones(NUM), {}, "labels of float64, not class numbers"),
        (np.arange(NUM) - 3, {}, "the label of z.npy:0 is -3"),
        (np.arange(NUM), dict(num_classes=10), "z.npy:10 is 10, and .* 0 to 9"),
        (np.eye(NUM, dtype=int), {}, "12 x 12 labels"),
    ):
        np.save(tmp_path / "y.npy", labels)
        options = dict(scaling="0.5", shift="1", labels=str(tmp_path / "y.npy")) | more
        with pytest.raises(SitError, match=message):
            store_of(tmp_path / "z.npy", tmp_path / "a.h5", **options)
    with pytest.raises(UsageError, match="no effect without labels"):
        store_of(tmp_path / "z.npy", tmp_path / "a.h5", scaling="1", labels="none", num_classes=3)
