"""Parquet shards of images."""

import pickle
import sys

import numpy as np
import pytest

from sitcli.errors import SitError, UsageError
from sitcli.images import parquet
from sitcli.images.place import BrokenImage
from sitcli.images.source import open_source
from tests.images.archives import encoded, flat_image, write_parquet

NAMES = ["cat", "dog", "cow", "ant"]
PNG = encoded(flat_image(1))


@pytest.fixture
def shards(tmp_path):
    for number in range(3):
        path = tmp_path / "hf" / f"train-{number:05d}-of-00003.parquet"
        write_parquet(path, range(50 * number, 50 * number + 50), names=NAMES, group=20)
    return tmp_path / "hf"


@pytest.mark.parametrize("form", ["", "train-*.parquet", "train-0000{0..2}-of-00003.parquet"])
def test_rows_are_read_in_order_with_labels_and_names(shards, form):
    """Catches: the rows of another row group or shard, classes sorted by name."""
    source = pickle.loads(pickle.dumps(open_source(shards / form)))
    assert (len(source), source.class_names) == (150, NAMES)
    assert source.items[51].name == "train-00001-of-00003.parquet/1"
    assert [item.label for item in source.items] == [i % 3 for i in range(150)]
    order = [*range(150), 149, 0, 75, 74, 73, 20, 19]
    assert [source.read(k).getpixel((0, 0))[0] for k in order] == order
    assert source.labelled.origin == "column label"
    assert source.content == open_source(shards).content


def test_rows_are_unpacked_a_few_at_a_time(tmp_path, monkeypatch):
    """Catches: a row group, which may be the whole shard, in memory, and one that is unpacked again
    for each of its rows."""
    unpacked, piece = [], parquet._Piece

    def noted(where, start, rows):
        unpacked.append(len(rows))
        return piece(where, start, rows)

    monkeypatch.setattr(parquet, "_Piece", noted)
    source = open_source(write_parquet(tmp_path / "x.parquet", range(100), group=100))
    for index in range(100):
        source.read_bytes(index)
    assert unpacked == [16] * 6 + [4]
    for index in (97, 95, 90, 20):  # of the pieces that are kept
        source.read_bytes(index)
    assert len(unpacked) == 7
    # Of the one that is not, and of those that the way back leads past.
    assert [source.read(k).getpixel((0, 0))[0] for k in (3, 60, 20)] == [3, 60, 20]


def test_a_disk_that_fails_once_breaks_no_other_row(tmp_path, monkeypatch):
    """Catches: all later rows of a row group lost after one failed read."""
    source = open_source(write_parquet(tmp_path / "x.parquet", range(60), group=60))
    piece, failures = parquet._Piece, [OSError("timed out")]

    def once(where, start, rows):
        if start and failures:
            raise failures.pop()
        return piece(where, start, rows)

    monkeypatch.setattr(parquet, "_Piece", once)
    assert source.read(0).getpixel((0, 0))[0] == 0
    with pytest.raises(BrokenImage, match="timed out"):
        source.read(20)
    assert [source.read(k).getpixel((0, 0))[0] for k in (20, 21, 59)] == [20, 21, 59]


def test_threads_read_what_they_ask_for(shards):
    """Catches: a thread that moves the stream away under another."""
    from concurrent.futures import ThreadPoolExecutor

    source = open_source(shards)
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda k: source.read(k).getpixel((0, 0))[0], range(150))
    assert list(found) == list(range(150))


@pytest.mark.parametrize(
    "images",
    [
        [{"bytes": PNG, "path": None}] * 3,
        [PNG] * 3,
    ],
    ids=["struct", "bytes"],
)
def test_columns_of_bytes(tmp_path, images):
    path = write_parquet(tmp_path / "x.parquet", range(3), images=images)
    source = open_source(path)
    assert [source.read_bytes(k) for k in range(3)] == [PNG] * 3
    assert source.class_names == ["0", "1", "2"]


def test_columns_of_other_types_of_bytes(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    large = pa.array([PNG] * 3, pa.large_binary())
    for number, images in enumerate((large, large.dictionary_encode())):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), path)
        source = open_source(path)
        assert [source.read_bytes(k) for k in range(3)] == [PNG] * 3


def test_other_names_of_columns(tmp_path):
    """Catches: CIFAR-100's columns, and a column of masks taken for the images."""
    rows = [{"bytes": PNG, "path": None}] * 2
    table = dict(fine_label=[3, 1], coarse_label=[0, 0], img=rows)
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"mask": [b"x", b"y"], **table}), tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert (source.labelled.labels, source.labelled.origin) == ([3, 1], "column fine_label")
    assert source.read_bytes(0) == PNG


def test_classes_by_their_names(tmp_path):
    """Catches: a column of text that is refused, or numbered in the order of the rows."""
    path = write_parquet(tmp_path / "x.parquet", range(3), labels=["dog", "cat", "dog"])
    source = open_source(path)
    assert (source.class_names, source.labelled.labels) == (["cat", "dog"], [1, 0, 1])


def test_a_list_of_classes_beside_the_shards(tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    source = open_source(write_parquet(tmp_path / "x.parquet", range(3)))
    assert source.class_names == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, None, 1], None, r"x\.parquet/1 has no label: label is null"),
        ([0, 1, -1], None, r"x\.parquet/2: the label is -1; classes are numbered"),
        ([0, 1.5, 1], None, r"x\.parquet/1: the label is 1\.5, not the number"),
        ([0.0, 1.0, np.nan], None, r"x\.parquet/2: the label is NaN, not the number"),
        ([[0], [1], [2]], None, r"x\.parquet/0: the label is a list of 1 numbers"),
        ([True, False, True], None, r"x\.parquet/0: the label is true, not the number"),
        ([0, 1, 2], ["a", "b"], r"x\.parquet/2: the label is 2, and the shard's metadata name 2"),
    ],
)
def test_wrong_labels_are_named(tmp_path, labels, names, message):
    """Catches: images encoded without their label, or with another."""
    path = write_parquet(tmp_path / "x.parquet", range(3), labels=labels, names=names)
    with pytest.raises(UsageError, match=message) as failure:
        open_source(path)
    assert "--labels none" in failure.value.hint
    assert open_source(path, labels="none").class_names == []


def test_whole_floats_are_numbers(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", range(3), labels=[0.0, 2.0, 1.0])
    assert open_source(path).labelled.labels == [0, 2, 1]


def test_rows_without_an_image_are_broken_images(tmp_path):
    """Catches: an empty row that stops the work, or gives its neighbour's image."""
    images = [
        {"bytes": PNG, "path": None}, None, {"bytes": None, "path": "a.png"},
        {"bytes": b"", "path": None}, {"bytes": PNG, "path": None},
    ]  # fmt: skip
    source = open_source(write_parquet(tmp_path / "x.parquet", range(5), images=images))
    assert (source.read_bytes(0), source.read_bytes(4)) == (PNG, PNG)
    for index, message in (
        (1, "the row is empty"),
        (2, r"no bytes, only the path a\.png"),
        (3, "the row is empty"),
    ):
        with pytest.raises(BrokenImage, match=message):
            source.read_bytes(index)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (dict(names=["cat", "cow"]), "disagree: class 1 is dog and cow"),
        (dict(names=["cat", "dog", "cow"]), "disagree: 2 and 3 classes are named"),
        (dict(names=None), "disagree: 2 and 0 classes are named"),
        (dict(images=[PNG], names=["cat", "dog"]), "disagree: the images' type is struct"),
        (dict(labels=["cat"], names=["cat", "dog"]), "disagree: the labels' type is int64 and str"),
    ],
)
def test_shards_that_disagree_are_refused(tmp_path, second, message):
    """Catches: class numbers of two data sets mixed."""
    write_parquet(tmp_path / "0.parquet", [0], names=["cat", "dog"])
    write_parquet(tmp_path / "1.parquet", [1], **second)
    with pytest.raises(UsageError, match=rf"0\.parquet and 1\.parquet {message}"):
        open_source(tmp_path)


def test_shards_without_the_columns_are_named(tmp_path):
    """Catches: a traceback for a table of text, and labels that are lost without a word."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(UsageError, match="no column of images, only text: string"):
        open_source(tmp_path / "text.parquet")
    lists = pa.table({"image": [[PNG]], "pixels": [[1]], "label": [0]})
    pq.write_table(lists, tmp_path / "lists.parquet")
    with pytest.raises(UsageError, match="no column of images, only image: list"):
        open_source(tmp_path / "lists.parquet")
    pq.write_table(pa.table({"image": [PNG]}), tmp_path / "plain.parquet")
    with pytest.raises(UsageError, match="no column of labels, only image: binary") as failure:
        open_source(tmp_path / "plain.parquet")
    assert "--labels none" in failure.value.hint
    assert len(open_source(tmp_path / "plain.parquet", labels="none")) == 1
    with pytest.raises(UsageError, match="has rows, not folders"):
        open_source(write_parquet(tmp_path / "x.parquet", [0]), labels="folders")


def test_damaged_shards(shards):
    """Catches: a traceback for a shard that was not fetched to its end, and rows after damage in
    the middle that are lost with it."""
    path = shards / "train-00001-of-00003.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(SitError, match=r"train-00001-of-00003\.parquet is damaged or cut short"):
        open_source(shards)
    source = open_source(path.with_name("train-00000-of-00003.parquet"))
    path.write_bytes(whole)
    source = open_source(shards)
    place = source.items[50].place
    path.write_bytes(whole[:4] + b"\xff" * (place.size * 15) + whole[4 + place.size * 15 :])
    with pytest.raises(BrokenImage, match="damaged in the shard"):
        source.read_bytes(50)
    assert source.read(75).getpixel((0, 0))[0] == 75


def test_the_library_is_named(tmp_path, monkeypatch):
    """Catches: an ImportError for those who installed sit without it."""
    path = write_parquet(tmp_path / "x.parquet", [0])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SitError, match="needs pyarrow") as failure:
        open_source(path)
    assert failure.value.hint == "pip install 'sitcli[parquet]'"
