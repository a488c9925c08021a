"""Images to compare, from everything they can lie in."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sitcli.errors import SitError
from sitcli.images.sets import batches, kind_of, open_images
from tests.images.archives import samples_of, write_parquet, write_shard
from tests.tiny import write_folder, write_samples


def pixels(num, height=6, width=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), dtype=np.uint8)


def read_all(images, indices=None, batch_size=4):
    indices = np.arange(images.num) if indices is None else indices
    parts = [b.permute(0, 2, 3, 1).numpy() for b in batches(images, indices, batch_size)]
    return np.concatenate(parts)


@pytest.mark.parametrize("kind", ["folder", "sample set", "npz", "deflated"])
@pytest.mark.parametrize("indices", [list(range(9)), [0, 3, 4, 8]])
def test_the_images_asked_for_come_in_order(tmp_path, kind, indices):
    """Catches: rows at wrong offsets of an npz or store, and threads that overtake each other."""
    images = pixels(9, 5, 7)
    path = tmp_path / "it"
    if kind == "folder":
        write_folder(path, images)
    elif kind == "sample set":
        write_samples(path, images, store="x")
    else:
        path = tmp_path / "it.npz"
        save = np.savez if kind == "npz" else np.savez_compressed
        save(path, arr_0=images, mu=np.zeros(3))
    opened = open_images(path)
    assert (opened.num, opened.size) == (9, (5, 7))
    np.testing.assert_array_equal(read_all(opened, indices), images[indices])


def test_batches_are_uint8_and_channels_first(tmp_path):
    """Catches: an extractor that is given NHWC or floats."""
    path = write_folder(tmp_path / "it", pixels(5))
    shapes = [(tuple(b.shape), b.dtype) for b in batches(open_images(path), range(5), 4)]
    assert shapes == [((4, 3, 6, 6), torch.uint8), ((1, 3, 6, 6), torch.uint8)]


def test_a_reference_folder_is_cropped_to_the_samples(tmp_path):
    """Catches: photographs compared at their own size or shape."""
    path = write_folder(tmp_path / "it", pixels(3, 20, 30))
    opened = open_images(path, size=(8, 8))
    assert read_all(opened).shape == (3, 8, 8, 3)
    assert opened.preparation == "crop adm to 8"
    same = write_folder(tmp_path / "same", pixels(3, 8, 8))
    np.testing.assert_array_equal(read_all(open_images(same, size=(8, 8))), pixels(3, 8, 8))


def test_mixed_sizes_and_broken_pictures_are_named(tmp_path):
    """Catches: a stack of unequal arrays, and a decoder's own exception."""
    path = write_folder(tmp_path / "it", pixels(3))
    Image.fromarray(pixels(1, 6, 8)[0]).save(path / "wide.png")
    with pytest.raises(SitError, match=r"wide\.png is 8x6, not 6x6"):
        read_all(open_images(path))
    (path / "wide.png").write_bytes(b"no picture")
    with pytest.raises(SitError, match=r"wide\.png"):
        read_all(open_images(path))


def test_a_damaged_npz_is_one_line(tmp_path):
    """Catches: zipfile's, zlib's and numpy's own errors, and damage that is not noticed."""
    path = tmp_path / "it.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, arr_0=pixels(40))
        whole = path.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        for damaged in (b"", whole[:middle], b"PK\3\4" + bytes(50), flipped):
            path.write_bytes(damaged)
            with pytest.raises(SitError) as caught:
                read_all(open_images(path))
            assert "it.npz" in caught.value.message
            assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "array",
    [
        pixels(4).astype(np.float32),
        pixels(4)[..., :1],
        np.asfortranarray(pixels(4)),
        pixels(4)[0],
    ],
)
def test_an_npz_of_other_arrays_is_refused(tmp_path, array):
    """Catches: bytes of floats, grey or Fortran-ordered arrays read as colours."""
    np.savez(tmp_path / "it.npz", arr_0=array)
    with pytest.raises(SitError, match="arr_0 is"):
        open_images(tmp_path / "it.npz")


def test_fingerprints_follow_the_pixels(tmp_path):
    """Catches: kept features of old images used for new ones of the same name and size."""
    a = write_samples(tmp_path / "a", pixels(4))
    b = write_samples(tmp_path / "b", pixels(4))
    c = write_samples(tmp_path / "c", pixels(4, seed=1))
    prints = [open_images(p).version for p in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]
    folder = write_folder(tmp_path / "folder", pixels(4))
    for name in ("000.ppm", "001.ppm"):
        Image.fromarray(pixels(1)[0]).save(folder / name)
    before = open_images(folder)
    version = before.version
    Image.fromarray(pixels(1, seed=5)[0]).save(folder / "001.ppm")
    after = open_images(folder)
    assert before.fingerprint != after.fingerprint  # though equally many bytes
    assert before.first_fingerprint == after.first_fingerprint
    assert version != after.version
    np.savez(tmp_path / "a.npz", arr_0=pixels(4))
    np.savez(tmp_path / "b.npz", arr_0=pixels(4, seed=1))
    assert (
        open_images(tmp_path / "a.npz").fingerprint != open_images(tmp_path / "b.npz").fingerprint
    )


def test_unfinished_samples_are_refused(tmp_path):
    """Catches: black rows measured as samples."""
    path = write_samples(tmp_path / "a", pixels(4), finish=False)
    with pytest.raises(SitError, match="not finished"):
        open_images(path)


def test_kinds(tmp_path):
    """Catches: a sample set's file taken for something else, and nonsense for a folder."""
    path = write_samples(tmp_path / "a", pixels(4))
    assert kind_of(path) == kind_of(path / "samples.h5") == "sample set"
    (tmp_path / "x.txt").write_text("x")
    for bad in (tmp_path / "x.txt", tmp_path / "nothing"):
        with pytest.raises(SitError):
            kind_of(bad)


def test_labels_of_a_folder(tmp_path):
    """Catches: counters taken for the classes of a reference, or a comparison that is refused, as
    it does without classes."""
    folder = tmp_path / "folder"
    files = [f"{i // 3:05d}/img{i:08d}.png" for i in range(6)]
    for name, image in zip(files, pixels(6), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
    for sheet, labels, class_names in (
        (None, [0] * 6, []),
        ("broken", [0] * 6, []),
        ({"labels": [[name, i % 2] for i, name in enumerate(files)]}, [0, 1] * 3, ["0", "1"]),
    ):
        if sheet:
            text = sheet if isinstance(sheet, str) else json.dumps(sheet)
            (folder / "dataset.json").write_text(text)
        opened = open_images(folder)
        assert (opened.labels.tolist(), opened.class_names) == (labels, class_names)
        np.testing.assert_array_equal(read_all(opened), pixels(6))


@pytest.mark.parametrize("form", ["wds", "wds/x-{0..2}.tar", "hf", "hf/*.parquet", "hf/1.parquet"])
def test_shards_are_a_reference(tmp_path, form):
    """Catches: shards that cannot be compared with, in another order, or without their classes."""
    for shard in range(3):
        numbers = range(40 * shard, 40 * shard + 40)
        write_shard(tmp_path / "wds" / f"x-{shard}.tar", samples_of(numbers))
        write_parquet(tmp_path / "hf" / f"{shard}.parquet", numbers, names=["a", "b", "c"])
    opened = open_images(tmp_path / form, size=(4, 4))
    numbers = np.arange(40, 80) if form == "hf/1.parquet" else np.arange(120)
    assert (kind_of(opened.path), opened.num) == ("folder", len(numbers))
    np.testing.assert_array_equal(read_all(opened)[:, 0, 0, 0], numbers)
    np.testing.assert_array_equal(read_all(opened, [1, 30, 39])[:, 0, 0, 0], numbers[[1, 30, 39]])
    np.testing.assert_array_equal(opened.labels, numbers % 3)
    assert opened.class_names == (["a", "b", "c"] if "hf" in form else ["0", "1", "2"])
    before, folder = opened.version, opened.stats_folder
    assert folder.parent == opened.path.parent
    assert not set("*{}") & set(folder.name)
    (tmp_path / form.partition("/")[0]).joinpath("1.parquet" if "hf" in form else "x-1.tar").touch()
    assert open_images(tmp_path / form, size=(4, 4)).version != before


def test_labels_in_doubt_do_not_hinder_a_comparison(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", range(3), labels=[-1, -1, -1])
    assert open_images(path, size=(4, 4)).class_names == []
