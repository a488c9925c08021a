"""Labels by dataset.json as EDM2's dataset_tool.py writes it, by folders, or none."""

import json

import pytest

from sitcli.errors import SitError, UsageError
from sitcli.images.labels import MOST_CLASSES, are_counters, read_labels
from sitcli.images.source import SECOND_LISTING, open_source
from tests.images import archives
from tests.images.archives import (
    TREE,
    encoded,
    flat_image,
    tar_of_tars,
    write_folder,
    write_zip,
)

NAMES = [f"{i // 4:05d}/img{i:08d}.png" for i in range(10)]
LABELS = [3, 0, 3, 1, 0, 0, 5, 1, 3, 0]
BARE = {name: encoded(flat_image(i)) for i, name in enumerate(NAMES)}


def sheet(labels, names=NAMES):
    pairs = [[name, label] for name, label in zip(names, labels, strict=True)]
    return {"dataset.json": json.dumps({"labels": pairs}).encode()}


SET = BARE | sheet(LABELS)
PACKED = archives.PACKED | {
    "zip with a top folder": lambda tmp, files: write_zip(
        tmp / "x.zip", {f"top/{name}": data for name, data in files.items()}
    ),
}


@pytest.mark.parametrize("form", PACKED)
def test_labels_are_those_of_the_file(tmp_path, form):
    """Catches: the counters 00000, 00001, ... taken for classes, or labels in another order.

    A class without images (2, 4) keeps its number, as in EDM2's ImageFolderDataset.
    """
    source = open_source(PACKED[form](tmp_path, SET))
    assert source.class_names == ["0", "1", "2", "3", "4", "5"]
    assert [item.label for item in source.items] == LABELS
    assert [item.name for item in source.items] == NAMES
    assert source.labelled.origin == "dataset.json"


@pytest.mark.parametrize("form", PACKED)
def test_one_folder_of_images_is_no_class_beside_the_file(tmp_path, form):
    """Catches: the only counter of a small set, which is an archive's top folder or a class."""
    few = {name: SET[name] for name in NAMES[:4]}
    assert open_source(PACKED[form](tmp_path, few | sheet(LABELS[:4], NAMES[:4]))).class_names == [
        "0", "1", "2", "3",
    ]  # fmt: skip


@pytest.mark.parametrize("form", PACKED)
def test_null_labels_are_none(tmp_path, form):
    """EDM2's tool writes null if an image has no label."""
    source = open_source(PACKED[form](tmp_path, BARE | {"dataset.json": b'{"labels": null}'}))
    assert (source.class_names, {item.label for item in source.items}) == ([], {0})


@pytest.mark.parametrize("form", PACKED)
def test_counters_without_the_file_are_a_question(tmp_path, form):
    """Catches: classes that are thousands of unrelated images."""
    path = PACKED[form](tmp_path, BARE)
    with pytest.raises(UsageError, match=r"00000, 00001, 00002 classes\?") as failure:
        open_source(path)
    assert "--labels none" in failure.value.hint
    assert "--labels folders" in failure.value.hint
    assert open_source(path, labels="none").class_names == []
    assert open_source(path, labels="folders").class_names == ["00000", "00001", "00002"]
    names = [[item.name for item in open_source(path, labels=how).items]
             for how in ("none", "folders")]  # fmt: skip
    assert names == [NAMES, NAMES]


def test_labels_say_what_the_user_says(tmp_path):
    """Catches: --labels folders that reads the file all the same, and a mixture refused for
    classes that nobody wants."""
    path = write_folder(tmp_path / "x", SET)
    assert open_source(path, labels="folders").class_names == ["00000", "00001", "00002"]
    mixed = write_folder(tmp_path / "y", {**TREE, "top.png": TREE["a/0.png"]})
    with pytest.raises(SitError, match="beside them"):
        open_source(mixed)
    assert len(open_source(mixed, labels="none")) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "does not have the form"),
        ("[]", "does not have the form"),
        ('{"classes": {}}', "does not have the form"),
        ('{"labels": {"a": 1}}', "does not have the form"),
        ('{"labels": [["a"]]}', "does not have the form"),
        ('{"labels": [[1, 2]]}', "does not have the form"),
        ('{"labels": [["a", [0.0, 1.0]]]}', "label of a is a list of 2 numbers"),
        ('{"labels": [["a", 0.5]]}', "label of a is 0.5, not the number"),
        ('{"labels": [["a", true]]}', "label of a is true, not the number"),
        ('{"labels": [["a", "cat"]]}', 'label of a is "cat", not the number'),
        ('{"labels": [["a", null]]}', "label of a is null, not the number"),
        ('{"labels": [["a", -1]]}', "label of a is -1; classes are"),
        (f'{{"labels": [["a", {MOST_CLASSES}]]}}', "classes are numbered from 0 to 99999"),
        ('{"labels": [["a", 1], ["a", 2]]}', "gives a two labels, 1 and 2"),
    ],
)
def test_files_of_another_form_are_refused(text, message):
    """Catches: tracebacks, vectors cut to numbers, and a table of a trillion classes."""
    with pytest.raises(UsageError, match=f"where.*{message}"):
        read_labels(text.encode(), "where")


def test_every_image_needs_a_label(tmp_path):
    """Catches: an image without a label that becomes class 0."""
    path = write_folder(tmp_path / "x", BARE | sheet(LABELS[2:], NAMES[2:]))
    message = f"has no label for 2 of 10 images, {NAMES[0]} among"
    with pytest.raises(UsageError, match=message):
        open_source(path)


def test_a_part_of_a_set_keeps_its_classes(tmp_path):
    """Catches: the numbers of another set of classes, and images that went unnoticed."""
    part = {name: data for name, data in SET.items() if name != NAMES[6]}  # the only one of class 5
    labelled = open_source(write_folder(tmp_path / "x", part)).labelled
    assert labelled.class_names == ["0", "1", "2", "3", "4", "5"]
    assert labelled.absent == [NAMES[6]]


def test_the_file_of_a_part_is_refused(tmp_path):
    """Catches: two sets side by side, whose names become classes."""
    both = {f"{side}/{name}": data for side in "ab" for name, data in SET.items()}
    path = write_folder(tmp_path / "x", both)
    with pytest.raises(UsageError, match=r"the dataset\.json in a/ is of a part"):
        open_source(path)
    assert open_source(path, labels="folders").class_names == ["a", "b"]


def test_latents_beside_the_images_change_nothing(tmp_path):
    """REPA keeps images/ and vae-sd/ side by side, each with its dataset.json."""
    files = {f"images/{name}": data for name, data in SET.items()}
    files |= {f"vae-sd/{name}"[:-3] + "npy": b"x" for name in NAMES}
    files |= {"vae-sd/dataset.json": b"another"}
    path = write_folder(tmp_path / "repa", files)
    assert [item.label for item in open_source(path).items] == LABELS
    with pytest.raises(SitError, match=r"holds 10 \.npy arrays and no images: latents"):
        open_source(path / "vae-sd")


def test_tars_of_tars_are_no_counters(tmp_path):
    """Catches: a question about ImageNet."""
    assert open_source(tar_of_tars(tmp_path / "x.tar", TREE)).class_names == ["a", "b"]


def numbered(folders, count, name, *, first=0):
    """(names, classes): `count` images in each folder; name(folder's number, image's, running)."""
    names = [
        f"{folder}/{name(k, i, first + k * count + i)}"
        for k, folder in enumerate(folders)
        for i in range(count)
    ]
    return names, list(folders)


def running(k, i, n):
    return f"img{n:08d}.png"


def own(k, i, n):
    return f"{i:05d}.png"


COUNTERS = {
    "EDM2": numbered([f"{k:05d}" for k in range(12)], 10, running),
    "EDM2, cut": (lambda names, all: (names[:-3], all))(
        *numbered([f"{k:05d}" for k in range(12)], 10, running)
    ),
    "EDM2, from the middle": numbered([f"{k:05d}" for k in range(7, 12)], 10, running, first=70),
    "EDM2, one folder": ([f"00000/img{i:08d}.png" for i in range(30)], ["00000"]),
    "FFHQ": numbered([f"{k:05d}" for k in range(0, 70000, 1000)], 10, running),
}
CLASSES = {
    "MNIST, equal": numbered([str(k) for k in range(10)], 10, running),
    "MNIST, two digits": numbered([f"{k:02d}" for k in range(10)], 10, running),
    "CIFAR-100": numbered([f"{k:02d}" for k in range(100)], 5, running),
    "ImageNet by numbers": numbered([f"{k:03d}" for k in range(1000)], 2, running),
    "GTSRB, equal": numbered([f"{k:05d}" for k in range(43)], 5, own),
    "GTSRB": (
        [f"{k:05d}/{i:05d}_00001.ppm" for k in range(43) for i in range(3 + k % 4)],
        [f"{k:05d}" for k in range(43)],
    ),
    "unequal": (
        [f"{k:05d}/img{100 * k + i:08d}.png" for k in range(5) for i in range(9 + k)],
        [f"{k:05d}" for k in range(5)],
    ),
    "synsets": numbered(["n01440764", "n01443537", "n01484850"], 4, running),
    "names": numbered(["cat", "dog"], 4, running),
    "years": numbered(["1999", "2003", "2004"], 4, running),
    "one class": ([f"7/{i:05d}.png" for i in range(9)], ["7"]),
    "no numbers": ([f"{k:05d}/{c}.png" for k in range(3) for c in "abc"],
                   [f"{k:05d}" for k in range(3)]),
}  # fmt: skip


@pytest.mark.parametrize("of", [*COUNTERS, *CLASSES])
def test_counters_are_told_from_classes(of):
    """Catches: data sets with numbered classes that are asked about, and counters that are not."""
    names, classes = (COUNTERS | CLASSES)[of]
    assert are_counters(sorted(names), sorted(classes)) == (of in COUNTERS)


def test_the_validation_set_without_its_classes_is_a_question(tmp_path):
    """Catches: ImageNet's validation images as they are shipped, encoded without classes."""
    flat = {f"ILSVRC2012_val_{i:08d}.JPEG": BARE[NAMES[i]] for i in range(1, 4)}
    for path in (write_folder(tmp_path / "val", flat), write_zip(tmp_path / "val.zip", flat)):
        with pytest.raises(UsageError, match="do not tell their classes") as failure:
            open_source(path)
        assert "--labels none" in failure.value.hint
        assert open_source(path, labels="none").class_names == []
        # A store that version 0.8 began goes on.
        assert len(open_source(path, listing=SECOND_LISTING)) == 3
    sorted_ones = {f"n0/{name}": data for name, data in flat.items()}
    assert open_source(write_folder(tmp_path / "x", sorted_ones)).class_names == ["n0"]
    told = flat | {"dataset.json": b'{"labels": null}'}
    assert open_source(write_folder(tmp_path / "y", told)).class_names == []
