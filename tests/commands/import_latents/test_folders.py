"""REPA's and fast-DiT's folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.import_latents.folders import (
    find_fast_dit,
    find_repa,
    open_fast_dit,
    open_repa,
)
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from tests.commands.import_latents.others import (
    LABELS,
    NUM,
    SD,
    half,
    settings_for,
    store_of,
    write_fast_dit,
    write_repa,
)


def test_repa_s_rows_labels_and_scaling(tmp_path: Path) -> None:
    """Catches: mean and std exchanged, files in another order than their labels, a lost 0.18215."""
    values = write_repa(tmp_path / "repa")
    assert find_repa(tmp_path / "repa") == find_repa(tmp_path / "repa" / "vae-sd")
    assert find_repa(tmp_path) is None
    store = store_of(tmp_path / "repa", tmp_path / "a.h5")
    assert (store.kind, store.has_flips, store.image_size) == ("moments", False, 32)
    assert store.autoencoder["name"] == "stabilityai/sd-vae-ft-mse"
    assert store.scaling == Scaling(SD)
    assert store.labels.tolist() == LABELS
    assert store.class_names == ["0", "1", "2"]
    assert np.array_equal(store.read(range(NUM)), half(values))
    assert store.image_paths()[9] == "00001/img-mean-std-00000009.npy"


def test_repa_s_labels_that_are_missing_or_wrong(tmp_path: Path) -> None:
    """Catches: images trained under the label of another, and a store without the classes."""
    write_repa(tmp_path / "a", labels=None)
    assert store_of(tmp_path / "a", tmp_path / "a.h5").num_classes == 0
    write_repa(tmp_path / "b")
    file = tmp_path / "b" / "vae-sd" / "dataset.json"
    pairs = json.loads(file.read_text())["labels"]
    for change, message in (
        (pairs[:-1], "has no label for 00001/img-mean-std-00000011.npy"),
        ([[n, -1] for n, _ in pairs], "00000000.npy is -1"),
        ([[n, [0.0, 1.0]] for n, _ in pairs], "a list of 2 numbers"),
    ):
        file.write_text(json.dumps({"labels": change}))
        with pytest.raises(UsageError, match=message):
            store_of(tmp_path / "b", tmp_path / "b.h5")
    file.unlink()
    with pytest.raises(UsageError, match=r"has no dataset\.json") as caught:
        store_of(tmp_path / "b", tmp_path / "b.h5")
    assert caught.value.hint == "add --labels none"
    assert not (tmp_path / "b.h5").exists()
    assert store_of(tmp_path / "b", tmp_path / "b.h5", labels="none").num_classes == 0


def test_fast_dit_s_rows_are_unscaled(tmp_path: Path) -> None:
    """Catches: files 0, 1, 10, 11, 2, ... beside labels in another order, and a scaling that
    training would apply a second time."""
    values = write_fast_dit(tmp_path / "f")
    for place in (tmp_path / "f", tmp_path / "f" / "imagenet256_features"):
        assert find_fast_dit(place) == tmp_path / "f" / "imagenet256_features"
    store = store_of(tmp_path / "f", tmp_path / "a.h5")
    assert (store.kind, store.latent_shape, store.image_size) == ("latents", (4, 4, 4), 32)
    assert store.labels.tolist() == LABELS
    assert np.array_equal(store.read(range(NUM)), half(values / np.float32(SD)))
    # float16 rounds the unscaled latents by 2^-11 of themselves.
    np.testing.assert_allclose(store.batch(range(NUM)), values, rtol=2.0**-10)


def test_fast_dit_s_labels_that_are_missing_or_wrong(tmp_path: Path) -> None:
    """Catches: a label of another image, or none, taken in silence."""
    write_fast_dit(tmp_path / "f")
    labels = tmp_path / "f" / "imagenet256_labels"
    np.save(labels / "4.npy", np.array([-2]))
    with pytest.raises(UsageError, match=r"the label of 4\.npy is -2"):
        store_of(tmp_path / "f", tmp_path / "a.h5")
    np.save(labels / "4.npy", np.array([7]))
    with pytest.raises(UsageError, match=r"4\.npy is 7, and classes are numbered from 0 to 2"):
        store_of(tmp_path / "f", tmp_path / "a.h5", num_classes=3)
    (labels / "4.npy").unlink()
    with pytest.raises(UsageError, match=r"labels has no 4\.npy"):
        store_of(tmp_path / "f", tmp_path / "a.h5")
    with pytest.raises(UsageError, match="has labels of its own"):
        store_of(tmp_path / "f", tmp_path / "a.h5", labels="x.npy")
    assert store_of(tmp_path / "f", tmp_path / "a.h5", labels="none").num_classes == 0


def test_shapes_that_are_no_latents_are_refused(tmp_path: Path) -> None:
    """Catches: pictures, or vectors, trained on as latents."""
    for number, (shape, dtype, message) in enumerate((
        ((7, 4, 4), "f4", "mean and standard deviation of as many channels"),
        ((8, 4, 2), "f4", "square images"),
        ((8,), "f4", "C x h x w"),
        ((8, 4, 4), "u1", "uint8, not latents"),
    )):  # fmt: skip
        folder = tmp_path / f"{number}" / "vae-sd"
        folder.mkdir(parents=True)
        np.save(folder / "0.npy", np.ones(shape, dtype))
        with pytest.raises(SitError, match=message):
            open_repa(folder, settings_for(folder, tmp_path / "a.h5", labels="none"))
    features = tmp_path / "x_features"
    features.mkdir()
    np.save(features / "0.npy", np.ones((2, 4, 4, 4), "f4"))
    with pytest.raises(SitError, match="2 x 4 x 4 x 4"):
        open_fast_dit(features, settings_for(features, tmp_path / "a.h5", labels="none"))
