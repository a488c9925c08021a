"""Sources of every layout: what is listed, in which order, under which classes."""

import json
import pickle
import tarfile
import zipfile

import pytest

from sitcli.errors import SitError
from sitcli.images.source import FIRST_LISTING, open_source
from tests.images import archives
from tests.images.archives import (
    TREE,
    encoded,
    flat_image,
    prefixed,
    tar_of_tars,
    write_folder,
    write_tar,
    write_zip,
)

LAYOUTS = {
    "folder": lambda tmp: write_folder(tmp / "x", TREE),
    "folder in a folder": lambda tmp: write_folder(tmp / "x", prefixed("top/")),
    "tar": lambda tmp: write_tar(tmp / "x.tar", TREE),
    "tar with ./": lambda tmp: write_tar(tmp / "x.tar", prefixed("./")),
    "tar with a top folder": lambda tmp: write_tar(tmp / "x.tar", prefixed("top/")),
    "tar with two": lambda tmp: write_tar(tmp / "x.tar", prefixed("top/images/")),
    "gnu tar, long names": lambda tmp: write_tar(
        tmp / "x.tar", prefixed("t" * 150 + "/"), format=tarfile.GNU_FORMAT
    ),
    "pax tar, long names": lambda tmp: write_tar(
        tmp / "x.tar", prefixed("é" * 150 + "/"), format=tarfile.PAX_FORMAT
    ),
    "tar of tars": lambda tmp: tar_of_tars(tmp / "x.tar", TREE),
    "tar of tars in a folder": lambda tmp: tar_of_tars(tmp / "x.tar", TREE, top="train/"),
    "zip": lambda tmp: write_zip(tmp / "x.zip", prefixed("top/")),
    "stored zip": lambda tmp: write_zip(tmp / "x.zip", TREE, zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_source(tmp_path, layout):
    """Catches: wrong byte offsets, labels that are not sorted order, wrappers taken for classes."""
    source = pickle.loads(pickle.dumps(open_source(LAYOUTS[layout](tmp_path))))
    assert source.class_names == ["a", "b"]
    assert [item.name for item in source.items] == sorted(TREE)
    assert [item.label for item in source.items] == [0, 0, 0, 1, 1, 1]
    for index, item in enumerate(source.items):
        assert source.read_bytes(index) == TREE[item.name]
        assert source.read(index).getpixel((0, 0)) == (10 * (item.name[0] == "a") + index % 3,) * 3
    assert source.fingerprint == open_source(write_folder(tmp_path / "same", TREE)).fingerprint


def test_flat_sources_have_no_classes(tmp_path):
    """Catches: a flat folder's wrapper taken for a class."""
    flat = {f"{i}.jpg": encoded(flat_image(i), "JPEG") for i in range(3)}
    wrapped = {f"photos/{name}": data for name, data in flat.items()}
    for path in (
        write_folder(tmp_path / "x", flat),
        write_tar(tmp_path / "x.tar", flat),
        write_tar(tmp_path / "y.tar", wrapped),
        write_zip(tmp_path / "y.zip", wrapped),
    ):
        source = open_source(path)
        assert source.class_names == []
        assert [item.name for item in source.items] == ["0.jpg", "1.jpg", "2.jpg"]
        assert {item.label for item in source.items} == {0}


def test_one_class_folder_is_a_class(tmp_path):
    """Catches: a single class that is seen through, so that its name is lost."""
    one = {name: data for name, data in TREE.items() if name.startswith("a/")}
    for path in (
        write_folder(tmp_path / "x", one),
        write_tar(tmp_path / "x.tar", {f"top/{n}": d for n, d in one.items()}),
        tar_of_tars(tmp_path / "y.tar", one),
    ):
        assert open_source(path).class_names == ["a"]


def test_other_files_are_skipped_and_counted(tmp_path):
    """Catches: notes and a file manager's litter encoded as images, or mistaken for classes."""
    litter = {"readme.txt": b"x", "a/.DS_Store": b"x", "__MACOSX/a/._0.png": b"x", "._a": b"x"}
    for path in (
        write_folder(tmp_path / "x", {**TREE, **litter}),
        write_tar(tmp_path / "x.tar", {**TREE, **litter}),
        write_zip(tmp_path / "x.zip", {**TREE, **litter}),
    ):
        source = open_source(path)
        assert (len(source), source.skipped, source.class_names) == (6, 4, ["a", "b"])


def test_the_fingerprint_sees_names_and_sizes(tmp_path):
    """Catches: a changed source that would be mixed into an old store."""
    kinds = [TREE, {**TREE, "a/9.png": b""}, {**TREE, "a/0.png": TREE["a/0.png"] + b"x"}]
    prints = {open_source(write_folder(tmp_path / str(i), f)).fingerprint
              for i, f in enumerate(kinds)}  # fmt: skip
    assert len(prints) == 3


def test_sources_that_cannot_be_used_are_named(tmp_path):
    """Catches: tracebacks, and a compressed tar read as if it had byte offsets."""
    write_folder(tmp_path / "mixed", {**TREE, "top.png": TREE["a/0.png"]})
    write_folder(tmp_path / "none", {"a.txt": b"", "b/c.csv": b""})
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("hello")
    write_tar(tmp_path / "x.tar.gz", TREE, mode="w:gz")
    write_tar(tmp_path / "x.tar.xz", TREE, mode="w:xz")
    whole = write_tar(tmp_path / "whole.tar", TREE).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:1280])
    (tmp_path / "neat.tar").write_bytes(whole[:2048])
    inner = tar_of_tars(tmp_path / "inner.tar", TREE).read_bytes()
    (tmp_path / "inner.tar").write_bytes(inner.replace(TREE["a/1.png"], b"", 1))
    packed = write_zip(tmp_path / "whole.zip", TREE).read_bytes()
    (tmp_path / "cut.zip").write_bytes(packed[:-40])
    write_zip(tmp_path / "bz.zip", TREE, zipfile.ZIP_BZIP2)
    (tmp_path / "fake.tar").write_bytes(b"not a tar" * 200)
    for name, message in [
        ("absent", "does not exist"), ("empty", "holds no images"),
        ("none", "holds no images, only 2 other"), ("mixed", "beside them .top.png."),
        ("notes.md", "neither a folder nor"), ("x.tar.gz", "is compressed"),
        ("x.tar.xz", "is compressed"), ("cut.tar", "damaged or cut short"),
        ("neat.tar", "damaged or cut short"), ("inner.tar", "damaged or cut short"),
        ("cut.zip", "damaged or cut short"), ("bz.zip", "uncommon compression"),
        ("fake.tar", "damaged or cut short"),
    ]:  # fmt: skip
        with pytest.raises(SitError, match=message):
            open_source(tmp_path / name)


HEIC = b"\0\0\0\x18ftypheic"
# A class of pictures that cannot be read, a class with one of them, and a folder of notes.
PARTLY = TREE | {"aa/1.heic": HEIC, "aa/2.HEIC": HEIC, "b/9.heic": HEIC, "notes/x.txt": b"x"}
PACKED = archives.PACKED | {
    "tar of tars": lambda tmp, files: tar_of_tars(tmp / "x.tar", files),
}


@pytest.mark.parametrize("form", PACKED)
def test_a_class_without_a_readable_picture_keeps_its_number(tmp_path, form):
    """Catches: the numbers of all later classes shifted by a folder of a phone's photos."""
    source = open_source(PACKED[form](tmp_path, PARTLY))
    assert source.class_names == ["a", "aa", "b"]
    assert [item.label for item in source.items] == [0, 0, 0, 2, 2, 2]
    assert source.unread == ["aa/1.heic", "aa/2.HEIC", "b/9.heic"]
    assert source.others == {".heic": 3, ".txt": 1}


@pytest.mark.parametrize("form", PACKED)
def test_an_older_listing_is_that_of_its_version(tmp_path, form):
    """Catches: a store begun by 0.7 that cannot go on, or goes on with other class numbers."""
    new = {"aa/3.avif": b"x", "b/7.jfif": TREE["b/0.png"], "dataset.json": b"no labels"}
    if form == "tar of tars":
        del new["dataset.json"]
    source = open_source(PACKED[form](tmp_path, PARTLY | new), listing=FIRST_LISTING)
    assert source.class_names == ["a", "b"]
    assert [item.name for item in source.items] == sorted(TREE)
    assert source.fingerprint == open_source(write_folder(tmp_path / "old", TREE)).fingerprint


def test_unread_pictures_do_not_change_what_is_a_class(tmp_path):
    """Catches: names of images that depend on files beside the folder of all classes."""
    files = prefixed("train/") | {"extra/1.heic": HEIC}
    source = open_source(write_folder(tmp_path / "x", files))
    assert (source.class_names, source.items[0].name) == (["a", "b"], "a/0.png")
    assert source.unread == ["extra/1.heic"]


LARGE = {f"{i}.ppm": encoded(flat_image(i, (200, 200)), "PPM") for i in range(3)}  # 120 kB each


@pytest.mark.parametrize("form", [*PACKED, "stored zip"])
def test_the_content_is_seen_and_does_not_depend_on_the_archive(tmp_path, form):
    """Catches: other pictures of the same names and sizes taken for the same, at their beginning,
    in the middle or at the end; and a tar of a folder taken for other pictures."""
    packed = PACKED | {
        "stored zip": lambda tmp, files: write_zip(tmp / "x.zip", files, zipfile.ZIP_STORED)
    }
    tree = {f"a/{name}": data for name, data in LARGE.items()} | {"b/0.png": TREE["b/0.png"]}
    same = open_source(write_folder(tmp_path / "same", tree))
    source = open_source(packed[form](tmp_path, tree))
    assert (source.content, source.fingerprint) == (same.content, same.fingerprint)
    assert (source.members is None) == ("zip" not in form)
    found = {source.content}
    for place in (100, 60_000, -1):
        other = bytearray(tree["a/1.ppm"])
        other[place] ^= 1
        changed = open_source(packed[form](tmp_path, tree | {"a/1.ppm": bytes(other)}))
        assert changed.fingerprint == source.fingerprint
        found.add(changed.content)
    assert len(found) == 4


def test_the_content_covers_labels(tmp_path):
    """Catches: the same images under other labels."""
    path = write_folder(tmp_path / "x", {f"00000/img{i}.png": TREE["a/0.png"] for i in range(2)})
    found = set()
    for labels in (None, [0, 1], [1, 0]):
        pairs = labels and [[f"00000/img{i}.png", label] for i, label in enumerate(labels)]
        (path / "dataset.json").write_text(json.dumps({"labels": pairs}))
        found.add(open_source(path).content)
    assert len(found) == 3


def test_a_part_of_many_files_is_read(tmp_path, monkeypatch):
    """Catches: every file of a large source read, or always the first ones."""
    monkeypatch.setattr("sitcli.images.source.COMPARED", 3)
    tree = {f"{i:02d}.bin.png": bytes([i]) * 10 for i in range(11)}
    path = write_folder(tmp_path / "x", tree)
    before = open_source(path).content
    for index in range(11):
        (path / f"{index:02d}.bin.png").write_bytes(b"changed..!")
        changed = open_source(path).content
        assert (changed != before) == (index in (0, 5, 10))
        (path / f"{index:02d}.bin.png").write_bytes(tree[f"{index:02d}.bin.png"])


def test_the_content_of_a_lost_file(tmp_path):
    """Catches: a traceback for a dangling link."""
    path = write_folder(tmp_path / "x", TREE)
    (path / "a" / "link.png").symlink_to(path / "nowhere.png")
    assert open_source(path).content != open_source(write_folder(tmp_path / "y", TREE)).content
