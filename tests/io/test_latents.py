"""The latent store as its readers see it."""

import h5py
import numpy as np
import pytest
import torch

from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.readback import ReadBack
from sitcli.latents.store import LatentStore
from sitcli.storage import rows
from sitcli.storage.rows import BROKEN, DONE, Rows

NUM, C, SIDE = 12, 3, 4
SPEC = dict(
    name="v", kind="kl", latent_channels=C, downsample=8, deterministic=False, shift=0.25, hash="ab"
)


def make_store(path, *, kind="moments", flips=True, complete=True, scaling=0.5, **other):
    """A store of random latents in which image 4 is broken; returns what was written."""
    shape = (2 * C if kind == "moments" else C, SIDE, SIDE)
    create_store(
        path,
        **dict(
            paths=[f"k{i % 3}/{i}.png" for i in range(NUM)],
            labels=np.arange(NUM) % 3,
            class_names=["k0", "k1", "k2"],
            row_shape=shape,
            kind=kind,
            flips=flips,
            autoencoder=SPEC,
            autoencoder_arrays={"basis": np.eye(3, dtype=np.float32)},
            scaling=scaling,
            image_size=32,
            crop="adm",
            source="/data/some where",
            source_fingerprint="f",
            vae="some/vae",
            batch_size=4,
            precision="fp32",
        )
        | other,
    )
    rng = np.random.default_rng(0)
    data = np.abs(rng.normal(size=(2, NUM, *shape))).astype(np.float16)
    data[:, 4] = 0
    values = {"latents": data[0]} | ({"latents_flipped": data[1]} if flips else {})
    status = np.full(NUM, DONE)
    status[4] = BROKEN
    with Rows(path, writable=True) as file:
        problems = ["cut short" if i == 4 else "" for i in range(NUM)]
        crc = row_checksums(*values.values())
        file.write(np.arange(NUM), status=status, problems=problems, crc32=crc, **values)
        file.set_attrs(complete=complete)
    return data


def test_items_are_the_readable_images(tmp_path):
    """Catches a broken image's zeros reaching training, or labels shifted by it."""
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
    """Catches wrong offsets, mean and std mixed up, and flips taken from the wrong rows."""
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
    """Catches channels taken for a posterior's std where there is none."""
    data = make_store(tmp_path / "a.h5", kind="latents", flips=False)
    store = LatentStore.open(tmp_path / "a.h5")
    assert store.latent_shape == (C, SIDE, SIDE)
    result = store.batch([1, 2], noise=torch.ones(2, C, SIDE, SIDE))
    np.testing.assert_allclose(result, (data[0, 1:3] - 0.25) * 0.5, atol=1e-3)
    with pytest.raises(ValueError, match="no mirrored"):
        store.batch([1], flip=np.array([True]))


def test_reading_never_changes_the_store(tmp_path):
    """Catches an in-place operation on the mapped file."""
    make_store(tmp_path / "a.h5", kind="latents")
    before = (tmp_path / "a.h5").read_bytes()
    store = LatentStore.open(tmp_path / "a.h5")
    store.batch(np.arange(5)).zero_()
    store.batch(np.arange(5), flip=np.ones(5, bool)).zero_()
    assert (tmp_path / "a.h5").read_bytes() == before


def test_statistics_are_those_of_the_latents_training_draws(tmp_path):
    """Catches broken rows counted, the posterior's spread or the scaling left out."""
    scale = np.array([0.5, 2.0, 3.0])
    data = make_store(tmp_path / "a.h5", scaling=scale.tolist())
    check = ReadBack(LatentStore.open(tmp_path / "a.h5"))
    assert list(check)[-1] == NUM
    # A draw is (m + s z - shift) scale with z ~ N(0, 1): its variance is Var m + E s^2.
    good = np.delete(data.astype(np.float64), 4, axis=1)
    means, stds = good[:, :, :C], good[:, :, C:]
    axes = (0, 1, 3, 4)
    expected = np.sqrt(means.var(axes) + np.square(stds).mean(axes)) * scale
    # The store sums float16 values in float64 after squaring them in float32: 2^-24 each.
    np.testing.assert_allclose(check.mean, (means.mean(axes) - SPEC["shift"]) * scale, rtol=1e-6)
    np.testing.assert_allclose(check.std, expected, rtol=1e-6)


def test_checksum_sees_latents_flips_and_labels(tmp_path):
    """Catches a checksum blind to part of the contents, or different for equal ones."""
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


def test_reading_back_finds_damaged_rows(tmp_path, monkeypatch):
    """Catches a verification that compares a file with itself, or looks at one copy only."""
    monkeypatch.setattr("sitcli.latents.store.READ_BYTES", 1000)  # several pieces
    path = tmp_path / "a.h5"
    make_store(path)
    check = ReadBack(LatentStore.open(path))
    for _ in check:
        pass
    assert check.damaged == set()
    assert check.checksum == LatentStore.open(path).checksum()
    with Rows(path, writable=True) as file:
        file.write([3], latents=np.ones((1, 2 * C, SIDE, SIDE), np.float16))
        file.write([9], latents_flipped=np.ones((1, 2 * C, SIDE, SIDE), np.float16))
    check = ReadBack(LatentStore.open(path))
    for _ in check:
        pass
    assert check.damaged == {3, 9}


def test_fingerprint_is_of_the_contents_not_of_the_file(tmp_path):
    """Catches two different stores that a run would take for the same, and the reverse."""
    fingerprints = []
    variants = [{}, {"batch_size": 8}, {"image_size": 64}, {"crop": "resize"},
                {"autoencoder": {**SPEC, "hash": "cd"}}, {"source_fingerprint": "g"}]  # fmt: skip
    for number, change in enumerate(variants):
        make_store(tmp_path / f"{number}.h5", **change)
        fingerprints.append(LatentStore.open(tmp_path / f"{number}.h5").fingerprint)
    assert fingerprints[0] == fingerprints[1]
    assert len(set(fingerprints)) == len(variants) - 1


def test_what_is_not_a_complete_store_is_refused(tmp_path):
    """Catches training on half a store, and a hint that does not continue it."""
    make_store(tmp_path / "part.h5", complete=False)
    with pytest.raises(SitError, match="not complete: 12 of 12") as failure:
        LatentStore.open(tmp_path / "part.h5")
    assert "sit encode-latents '/data/some where'" in failure.value.hint
    assert "--vae some/vae --image-size 32 --crop adm" in failure.value.hint
    assert LatentStore.open(tmp_path / "part.h5", allow_incomplete=True).num_items == NUM - 1
    rows.create(tmp_path / "other.h5", {"images": ((2,), "uint8")}, attrs={"format": "other"})
    with pytest.raises(SitError, match="not a latent store"):
        LatentStore.open(tmp_path / "other.h5")
    Rows(tmp_path / "part.h5").set_attrs(format_version=2)
    with pytest.raises(SitError, match="has format 2"):
        LatentStore.open(tmp_path / "part.h5")
    with pytest.raises(SitError, match="does not exist"):
        LatentStore.open(tmp_path / "none.h5")


def test_the_autoencoders_arrays_come_back(tmp_path):
    """Catches a store whose latents could not be decoded again."""
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    assert store.autoencoder == SPEC
    assert list(store.autoencoder_arrays) == ["basis"]
    np.testing.assert_array_equal(store.autoencoder_arrays["basis"], np.eye(3))


def make_two(path, **second):
    """Stores a.h5 and b.h5 of different images."""
    make_store(path / "a.h5")
    make_store(path / "b.h5", **dict(source_fingerprint="g", scaling=0.5) | second)
    return [path / "a.h5", path / "b.h5"]


def test_several_stores_are_read_as_one(tmp_path):
    """Fault: items of one store taken from another, at a wrong place, or out of their order."""
    paths = make_two(tmp_path)
    with Rows(paths[1], writable=True) as file:
        latents, status = np.array(file.array("latents")), file.written
        for name, factor in (("latents", 2), ("latents_flipped", 3)):
            values = (factor * latents).astype(np.float16)
            file.write(np.arange(NUM), status=status, **{name: values})
    joined, parts = open_stores(paths), [LatentStore.open(path) for path in paths]
    assert joined.num_items == 2 * (NUM - 1)
    assert joined.labels.tolist() == [*parts[0].labels, *parts[1].labels]
    assert joined.image_paths() == parts[0].image_paths() + parts[1].image_paths()
    indices = np.random.default_rng(0).permutation(joined.num_items)
    flip = np.random.default_rng(1).random(len(indices)) < 0.5
    noise = torch.randn(len(indices), C, SIDE, SIDE)
    for more in ({}, {"noise": noise}):
        result = joined.batch(indices, flip=flip, **more)
        for k, index in enumerate(indices):
            part, item = divmod(int(index), NUM - 1)
            one = {name: value[k : k + 1] for name, value in more.items()}
            expected = parts[part].batch([item], flip=flip[k : k + 1], **one)
            torch.testing.assert_close(result[k : k + 1], expected, rtol=0, atol=0)
    assert list(joined.autoencoder_arrays) == ["basis"]


def test_one_store_is_itself_and_the_order_of_several_counts(tmp_path):
    """Fault: a run on one store that no longer finds itself; and the other order, in which an item
    has another number, taken for the same data."""
    paths = make_two(tmp_path)
    assert open_stores(paths[:1]).fingerprint == LatentStore.open(paths[0]).fingerprint
    there, back = open_stores(paths).fingerprint, open_stores(paths[::-1]).fingerprint
    assert len({there, back, open_stores(paths[:1]).fingerprint}) == 3
    assert open_stores(paths).fingerprint == there


def test_classes_are_joined_by_name(tmp_path):
    """Fault: class 0 of one store trained as class 0 of another that calls it otherwise."""
    make_store(tmp_path / "a.h5", class_names=["k0", "k2", "k5"])
    make_store(tmp_path / "b.h5", class_names=["k1", "k2", "k9"], source_fingerprint="g")
    joined = open_stores([tmp_path / "b.h5", tmp_path / "a.h5"])
    assert joined.class_names == ["k0", "k1", "k2", "k5", "k9"]
    labels = np.delete(np.arange(NUM) % 3, 4)
    assert joined.labels.tolist() == [*np.array([1, 2, 4])[labels], *np.array([0, 2, 3])[labels]]
    assert joined.num_classes == 5


def test_without_classes(tmp_path):
    """Fault: stores of unlabelled images that cannot be joined, or only with labelled ones."""
    plain = dict(class_names=[], labels=np.zeros(NUM))
    paths = make_two(tmp_path, **plain)
    with pytest.raises(UsageError, match=r"a\.h5 holds classes and .*b\.h5 none"):
        open_stores(paths)
    make_store(tmp_path / "c.h5", source_fingerprint="h", **plain)
    joined = open_stores([tmp_path / "b.h5", tmp_path / "c.h5"])
    assert (joined.num_classes, joined.labels.tolist()) == (0, [0] * 2 * (NUM - 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": {**SPEC, "hash": "cd"}}, r"autoencoder is v \(ab\) and v \(cd\)"),
        ({"kind": "latents"}, "kind is moments and latents"),
        ({"scaling": [0.5, 0.5, 1.0]}, r"scaling is 0.5 and \[0.5, 0.5, 1.0\]"),
        ({"image_size": 64}, "image size is 32 and 64"),
        ({"crop": "resize"}, "crop is adm and resize"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_stores_that_do_not_fit_together_are_refused(tmp_path, change, message):
    """Fault: latents of two scales or two autoencoders in one training."""
    with pytest.raises(UsageError, match=f"a.h5 and .*b.h5 cannot be read as one: .*{message}"):
        open_stores(make_two(tmp_path, **change))


def test_the_same_images_twice_are_refused(tmp_path):
    """Fault: a store named twice by mistake, whose images then count double."""
    paths = make_two(tmp_path)
    with pytest.raises(UsageError, match=r"a\.h5 and .*a\.h5 hold the same images"):
        open_stores([paths[0], paths[1], tmp_path / "." / "a.h5"])
