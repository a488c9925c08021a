"""The latent store as its readers see it."""

import h5py
import numpy as np
import pytest
import torch

from sitcli.errors import SitError
from sitcli.latents.store import LatentStore
from sitcli.storage import rows
from sitcli.storage.rows import Rows
from tests.latents.stores import NUM, SIDE, SPEC, C, make_store


def test_items_are_the_readable_images(tmp_path):
    """Catches: a broken image's zeros reaching training, or labels shifted by it."""
    data = make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    good = np.delete(np.arange(NUM), 4)
    assert store.num_items == NUM - 1
    assert store.labels.tolist() == (good % 3).tolist()
    assert store.image_paths() == [f"k{i % 3}/{i}.png" for i in good]
    assert store.broken() == [("k1/4.png", "cut short")]
    assert (store.num_classes, store.class_names) == (3, ["k0", "k1", "k2"])
    assert (store.latent_shape, store.kind, store.has_flips) == ((C, SIDE, SIDE), "moments", True)
    expected = (data[0, good, :C].astype(np.float32) - 0.25) * 0.5
    np.testing.assert_allclose(store.batch(np.arange(NUM - 1)), expected, atol=1e-7)


def test_batch_reads_what_h5py_reads(tmp_path):
    """Catches: wrong offsets, mean and std mixed up, and flips taken from the wrong rows."""
    path = tmp_path / "a.h5"
    make_store(path, scaling=[0.5, 2.0, 3.0])
    indices = np.array([7, 0, 3, 7, 10])
    flip = np.array([True, False, True, False, False])
    noise = torch.randn(5, C, SIDE, SIDE)
    with h5py.File(path) as file:
        plain, mirrored = file["latents"][:], file["latents_flipped"][:]
    items = np.delete(np.arange(NUM), 4)[indices]
    values = np.where(flip[:, None, None, None], mirrored[items], plain[items]).astype(np.float32)
    scale = np.array([0.5, 2.0, 3.0], np.float32)[:, None, None]
    drawn = (values[:, :C] + values[:, C:] * noise.numpy() - 0.25) * scale
    store = LatentStore.open(path)
    result = store.batch(indices, flip=flip, noise=noise)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result, drawn, rtol=1e-6, atol=1e-6)
    mode = store.batch(indices, flip=flip)
    np.testing.assert_allclose(mode, (values[:, :C] - 0.25) * scale, rtol=1e-6, atol=1e-6)


def test_a_deterministic_store_ignores_noise(tmp_path):
    """Catches: channels taken for a posterior's std where there is none."""
    data = make_store(tmp_path / "a.h5", kind="latents", flips=False)
    store = LatentStore.open(tmp_path / "a.h5")
    assert store.latent_shape == (C, SIDE, SIDE)
    result = store.batch([1, 2], noise=torch.ones(2, C, SIDE, SIDE))
    np.testing.assert_allclose(result, (data[0, 1:3] - 0.25) * 0.5, atol=1e-3)
    with pytest.raises(ValueError, match="no mirrored"):
        store.batch([1], flip=np.array([True]))


def test_reading_never_changes_the_store(tmp_path):
    """Catches: an in-place operation on the mapped file."""
    make_store(tmp_path / "a.h5", kind="latents")
    before = (tmp_path / "a.h5").read_bytes()
    store = LatentStore.open(tmp_path / "a.h5")
    store.batch(np.arange(5)).zero_()
    store.batch(np.arange(5), flip=np.ones(5, bool)).zero_()
    assert (tmp_path / "a.h5").read_bytes() == before


def test_checksum_sees_latents_flips_and_labels(tmp_path):
    """Catches: a checksum blind to part of the contents, or different for equal ones."""
    sums = set()
    for name, change in [("a", {}), ("b", {}), ("c", {"labels": np.zeros(NUM)})]:
        make_store(tmp_path / f"{name}.h5", **change)
        sums.add(LatentStore.open(tmp_path / f"{name}.h5").checksum())
    assert len(sums) == 2
    for name in ("latents", "latents_flipped"):
        with Rows(tmp_path / "b.h5", writable=True) as file:
            file.write([11], **{name: np.ones((1, 2 * C, SIDE, SIDE), np.float16)})
        sums.add(LatentStore.open(tmp_path / "b.h5").checksum())
    assert len(sums) == 4


def test_fingerprint_is_of_the_contents_not_of_the_file(tmp_path):
    """Catches: two different stores that a run would take for the same, and the reverse."""
    fingerprints = []
    variants = [{}, {"batch_size": 8}, {"image_size": 64}, {"crop": "resize"},
                {"autoencoder": {**SPEC, "hash": "cd"}}, {"source_fingerprint": "g"}]  # fmt: skip
    for number, change in enumerate(variants):
        make_store(tmp_path / f"{number}.h5", **change)
        fingerprints.append(LatentStore.open(tmp_path / f"{number}.h5").fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == len(variants) - 1


def test_what_is_not_a_complete_store_is_refused(tmp_path):
    """Catches: training on half a store, and a hint that does not continue it."""
    make_store(tmp_path / "part.h5", complete=False)
    with pytest.raises(SitError, match="not complete: 12 of 12") as failure:
        LatentStore.open(tmp_path / "part.h5")
    assert "sit encode-latents '/data/some where'" in failure.value.hint
    assert "--vae some/vae --image-size 32 --crop adm" in failure.value.hint
    assert LatentStore.open(tmp_path / "part.h5", allow_incomplete=True).num_items == NUM - 1
    rows.create(tmp_path / "other.h5", {"images": ((2,), "uint8")}, attrs={"format": "other"})
    with pytest.raises(SitError, match="not a latent store"):
        LatentStore.open(tmp_path / "other.h5")
    Rows(tmp_path / "part.h5").set_attrs(format_version=3)
    with pytest.raises(SitError, match="has format 3"):
        LatentStore.open(tmp_path / "part.h5")
    with pytest.raises(SitError, match="does not exist"):
        LatentStore.open(tmp_path / "none.h5")


def test_the_autoencoders_arrays_come_back(tmp_path):
    """Catches: a store whose latents could not be decoded again."""
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    assert store.autoencoder == SPEC
    assert list(store.autoencoder_arrays) == ["basis"]
    np.testing.assert_array_equal(store.autoencoder_arrays["basis"], np.eye(3))


def test_the_fingerprint_follows_the_contents_of_the_source(tmp_path):
    """Catches: other pictures of the same names and sizes taken for the same, and runs of 0.7 that
    do not find their store once it was encoded again."""
    prints, first = [], set()
    for content in (None, "a", "b"):
        facts = {"source_content": content} if content else {}
        make_store(tmp_path / "a.h5", source_facts=facts)
        store = LatentStore.open(tmp_path / "a.h5")
        prints.append(store.fingerprint)
        first.add(store.first_fingerprint)
    assert len(set(prints)) == 3
    assert first == {prints[0]}


def test_classes_without_images(tmp_path):
    """Catches: the class of broken images alone, or the one after the last image, overlooked."""
    make_store(tmp_path / "a.h5", class_names=["k0", "k1", "k2", "k3", "k4"])
    assert LatentStore.open(tmp_path / "a.h5").empty_classes == [3, 4]
    make_store(tmp_path / "b.h5", class_names=[], labels=np.zeros(NUM, int))
    assert LatentStore.open(tmp_path / "b.h5").empty_classes == []
