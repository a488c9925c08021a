"""Sources of every layout: what is listed, in which order, under which classes."""

import pickle
import tarfile
import zipfile

import pytest

from sitcli.errors import SitError
from sitcli.images.source import open_source
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
