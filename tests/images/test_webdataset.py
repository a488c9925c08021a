"""WebDataset shards."""

import json
import pickle

import pytest

from sitcli.errors import SitError, UsageError
from sitcli.images.source import SECOND_LISTING, open_source
from tests.images.archives import (
    TREE,
    encoded,
    flat_image,
    samples_of,
    write_folder,
    write_shard,
    write_tar,
)

PNG = encoded(flat_image(1))


@pytest.fixture
def shards(tmp_path):
    """Three shards of four samples; the first file of a tar's sort order is not its first row."""
    for number in range(3):
        rows = range(4 * number, 4 * number + 4)
        write_shard(tmp_path / "wds" / f"x-{number:03d}.tar", samples_of(reversed(rows)))
    return tmp_path / "wds"


@pytest.mark.parametrize("form", ["", "x-{000..002}.tar", "*.tar"])
def test_shards_are_read_with_labels_in_their_order(shards, form):
    """Catches: labels of the neighbour, offsets in the wrong shard, rows that are sorted."""
    source = pickle.loads(pickle.dumps(open_source(shards / form)))
    numbers = [3, 2, 1, 0, 7, 6, 5, 4, 11, 10, 9, 8]
    assert [item.name for item in source.items] == [
        f"x-{i // 4:03d}.tar/{i:06d}.png" for i in numbers
    ]
    assert [item.label for item in source.items] == [i % 3 for i in numbers]
    assert [source.read(k).getpixel((0, 0))[0] for k in range(12)] == numbers
    assert (source.class_names, source.labelled.origin) == (["0", "1", "2"], ".cls")
    assert source.skipped == 0
    assert [file.name for file in source.files()] == ["x-000.tar", "x-001.tar", "x-002.tar"]
    assert source.content == open_source(shards).content


def test_a_single_shard_keeps_its_labels(shards):
    """Catches: a shard taken for a tar of images without classes, as versions up to 0.8 did."""
    source = open_source(shards / "x-001.tar")
    assert [item.label for item in source.items] == [i % 3 for i in (7, 6, 5, 4)]
    assert source.items[0].name == "x-001.tar/000007.png"
    older = open_source(shards / "x-001.tar", listing=SECOND_LISTING)
    assert (older.class_names, older.items[0].name) == ([], "000004.png")


def test_labels_say_what_the_user_says(shards):
    """Catches: --labels without its sense for shards."""
    none = open_source(shards, labels="none")
    assert (none.class_names, {item.label for item in none.items}) == ([], {0})
    assert none.fingerprint == open_source(shards).fingerprint
    folders = open_source(shards, labels="folders")
    assert folders.class_names == ["x-000", "x-001", "x-002"]
    assert [item.label for item in folders.items] == [0] * 4 + [1] * 4 + [2] * 4
    assert open_source(shards / "x-000.tar", labels="folders").class_names == []


def test_a_folder_of_tars_of_classes(tmp_path):
    """Catches: ImageNet's tars of classes in a folder, encoded without their classes or refused
    without a way on."""
    for name in "ba":
        own = {n[2:]: data for n, data in TREE.items() if n.startswith(name)}
        write_shard(tmp_path / f"{name}.tar", {}, **own)
    with pytest.raises(UsageError, match=r"a\.tar/0 has no label: it has neither") as failure:
        open_source(tmp_path)
    assert "--labels folders" in failure.value.hint
    source = open_source(tmp_path, labels="folders")
    assert (source.class_names, source.labelled.labels) == (["a", "b"], [0, 0, 0, 1, 1, 1])
    inside = (
        write_tar(tmp_path / "in" / "all.tar", TREE) if (tmp_path / "in").mkdir() is None else 0
    )
    assert open_source(inside.parent, labels="folders").class_names == ["a", "b"]


def test_labels_and_names_of_classes_in_a_json(tmp_path):
    """Catches: labels read from the .cls alone, and names of classes that are lost."""

    def sample(label, name):
        return {"jpg": PNG, "json": json.dumps({"label": label, "class_name": name}).encode()}

    path = write_shard(tmp_path / "0.tar", {"a": sample(2, "cat"), "b": sample(0, "dog")})
    source = open_source(path)
    assert (source.labelled.labels, source.class_names) == ([2, 0], ["dog", "1", "cat"])
    assert source.labelled.origin == ".json"
    write_shard(tmp_path / "1.tar", {"c": sample(2, "cow")})
    with pytest.raises(UsageError, match=r"1\.tar/c: class 2 is called cow, and cat in 0\.tar/a"):
        open_source(tmp_path)
    (tmp_path / "1.tar").unlink()
    (tmp_path / "classes.txt").write_text("x\ny\nz")
    assert open_source(tmp_path).class_names == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cls": b"cat"}, r'x\.tar/k\.cls: the label is "cat", not the number of a class'),
        ({"cls": b"1.5"}, r'x\.tar/k\.cls: the label is "1\.5", not the number'),
        ({"cls": b""}, r'x\.tar/k\.cls: the label is "", not the number'),
        ({"cls": b"nan"}, r'x\.tar/k\.cls: the label is "nan", not the number'),
        ({"cls": b"-1"}, r"x\.tar/k\.cls: the label is -1; classes are numbered from 0"),
        ({"cls": b"9" * 60}, r"x\.tar/k\.cls: the label is 9+; classes are numbered"),
        ({"json": b'{"label": 1.5}'}, r"x\.tar/k\.json: the label is 1\.5, not the number"),
        ({"json": b'{"label": NaN}'}, r"x\.tar/k\.json: the label is NaN, not the number"),
        ({"json": b'{"label": [0, 1]}'}, r"x\.tar/k\.json: the label is a list of 2 numbers"),
        ({"json": b'{"caption": "a"}'}, r"x\.tar/k has no label: it has no \.cls, and its \.json"),
        ({"json": b"{"}, r"x\.tar/k\.json is not a JSON object"),
        ({}, r"x\.tar/k has no label: it has neither a \.cls nor a \.json"),
    ],
)
def test_wrong_labels_are_named(tmp_path, members, message):
    """Catches: images encoded without their label, or with another."""
    path = write_shard(
        tmp_path / "x.tar", {"j": {"png": PNG, "cls": b"0"}, "k": {"png": PNG, **members}}
    )
    with pytest.raises(UsageError, match=message) as failure:
        open_source(path)
    assert "--labels none" in failure.value.hint
    assert len(open_source(path, labels="none")) == 2


def test_samples_of_several_files(tmp_path):
    """Catches: a depth map encoded as the image, a sample without an image that stops the work,
    hidden files that make samples."""
    path = write_shard(tmp_path / "x.tar", {
        "a": {"jpg": PNG, "depth.png": b"", "cls": b"1", "txt": b"words"},
        "b": {"cls": b"0"},
        "c": {"heic": b"", "cls": b"0"},
        "d.e": {"png": PNG, "cls": b"0"},
        "._a": {"jpg": b""},
    })  # fmt: skip
    with pytest.raises(UsageError, match=r"d has no label"):  # its key is d, up to the first dot
        open_source(path)
    path = write_shard(tmp_path / "x.tar", {
        "a": {"jpg": PNG, "depth.png": b"", "cls": b"1", "txt": b"words"},
        "b": {"cls": b"0"},
        "c": {"heic": b"", "cls": b"0"},
        "._a": {"jpg": b""},
    })  # fmt: skip
    source = open_source(path)
    assert [item.name for item in source.items] == ["x.tar/a.jpg"]
    assert source.labelled.absent == ["x.tar/b", "x.tar/c"]
    assert source.unread == ["x.tar/c.heic"]
    assert source.others == {".txt": 1, ".heic": 1, ".cls": 2, "hidden": 1}
    two = write_shard(tmp_path / "y.tar", {"a": {"jpg": PNG, "png": PNG, "cls": b"1"}})
    with pytest.raises(UsageError, match=r"y\.tar/a has 2 images: \.jpg, \.png"):
        open_source(two)


def test_shards_that_cannot_be_read_are_named(shards):
    """Catches: a shard cut short whose last images are lost without a word."""
    cut = shards / "x-001.tar"
    data = cut.read_bytes()
    cut.write_bytes(data[: len(data) // 2 // 512 * 512])
    with pytest.raises(SitError, match=r"x-001\.tar is damaged or cut short"):
        open_source(shards)
    cut.write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(SitError, match=r"x-001\.tar is compressed"):
        open_source(shards)
    cut.unlink()
    with pytest.raises(SitError, match=r"x-001\.tar does not exist"):
        open_source(shards / "x-{000..002}.tar")


def test_tars_and_folders_stay_what_they_are(tmp_path):
    """Catches: a tar of images, or photographs with an archive among them, taken for shards."""
    assert open_source(write_tar(tmp_path / "x.tar", TREE)).class_names == ["a", "b"]
    flat = {"0.png": PNG, "0.txt": b"a caption", "dataset.json": b'{"labels": null}'}
    assert open_source(write_tar(tmp_path / "y.tar", flat)).items[0].name == "0.png"
    folder = write_folder(tmp_path / "photos", TREE)
    write_tar(folder / "backup.tar", TREE)
    assert len(open_source(folder)) == 6
    below = write_shard(tmp_path / "hub" / "train" / "0.tar", samples_of([1])).parent.parent
    with pytest.raises(SitError, match=r"holds no images beside its 1 \.tar files") as failure:
        open_source(below)
    assert "pattern" in failure.value.hint
