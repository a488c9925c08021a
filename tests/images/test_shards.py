"""Which files a folder or a pattern of shards names."""

import pytest

from sitcli.errors import SitError, UsageError
from sitcli.images.shards import by_number, expanded, is_pattern, is_there, shards_at


def touched(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("x-{000..002}.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("x-{002..001}.tar", ["x-001.tar", "x-002.tar"]),
        ("x-{000,002}.tar", ["x-000.tar", "x-002.tar"]),
        ("x-00[01].tar", ["x-000.tar", "x-001.tar"]),
        ("x-*.tar", ["x-000.tar", "x-001.tar", "x-002.tar"]),
        ("{x-000,y/{9..10}}.tar", ["x-000.tar", "y/10.tar", "y/9.tar"]),
        ("{y/*,x-001.tar}", ["x-001.tar", "y/10.tar", "y/9.tar", "y/{z}.tar"]),
        ("*/{z}.tar", ["y/{z}.tar"]),
    ],
)
def test_a_pattern_names_the_files_that_the_shell_names(tmp_path, pattern, expected):
    """Catches: numbers without their zeros, a range that goes down, braces in braces."""
    names = ("x-000.tar", "x-001.tar", "x-002.tar", "y/9.tar", "y/10.tar", "y/{z}.tar")
    touched(tmp_path, *names)
    path = tmp_path / pattern
    assert is_pattern(path)
    assert [str(file.relative_to(tmp_path)) for file in expanded(path)] == expected


def test_a_file_with_braces_in_its_name_is_no_pattern(tmp_path):
    assert not is_pattern(touched(tmp_path, "{a,b}.tar") / "{a,b}.tar")


def test_what_is_there(tmp_path):
    """Catches: a complete store that cannot be opened since its shards are deleted."""
    touched(tmp_path, "x-1.tar")
    for name, there in {
        "x-1.tar": True, "x-2.tar": False, "x-*.tar": True, "y-*.tar": False, "x-{0..1}.tar": True,
        "x-{2..3}.tar": False,
    }.items():  # fmt: skip
        assert is_there(tmp_path / name) == there


def test_a_shard_that_braces_name_must_be_there(tmp_path):
    """Catches: an epoch without the shard that was not fetched."""
    touched(tmp_path, "x-0.tar", "x-2.tar")
    with pytest.raises(SitError, match=r"x-1\.tar does not exist"):
        expanded(tmp_path / "x-{0..2}.tar")
    with pytest.raises(SitError, match="no file is named"):
        expanded(tmp_path / "y-*.tar")


@pytest.mark.parametrize(
    ("names", "failure", "message", "hint"),
    [
        (["train-0.tar", "train-1.tar", "validation-0.tar"], UsageError,
         r"2 sets: train-\*\.tar, validation-\*\.tar", "train-*.tar"),
        (["in1k-train-0000.tar", "in1k-validation-00.tar"], UsageError, "2 sets", "in1k-train-*"),
        (["test.tar", "train.tar"], UsageError, "2 sets: test.tar, train.tar", "test.tar"),
        (["train-00000-of-00003.tar", "train-00002-of-00003.tar"], SitError,
         "lacks shard 00001 of 3: 2 are there", "train-*.tar"),
        (["a-1-of-3.tar", "a-3-of-3.tar"], SitError, "lacks shard 2 of 3", "a-*.tar"),
    ],
)  # fmt: skip
def test_a_folder_holds_one_whole_set(tmp_path, names, failure, message, hint):
    """Catches: training on the validation images, and a set that lacks a shard."""
    with pytest.raises(failure, match=message) as error:
        shards_at(touched(tmp_path, *names), ".tar")
    assert hint in error.value.hint


@pytest.mark.parametrize(
    "names",
    [
        ["n01440764.tar", "n01443537.tar"], ["cat.tar", "dog.tar"], ["0.tar", "10.tar"],
        ["train-00000-of-00002.tar", "train-00001-of-00002.tar"], ["x-1-of-2.tar", "x-2-of-2.tar"],
    ],
)  # fmt: skip
def test_the_shards_of_a_folder(tmp_path, names):
    touched(tmp_path, *names, ".hidden.tar", "notes.txt")
    assert shards_at(tmp_path, ".tar") == ([tmp_path / name for name in names], tmp_path)


def test_a_pattern_names_shards_alone(tmp_path):
    touched(tmp_path, "a/1.tar", "b/2.tar", "b/x.txt")
    assert shards_at(tmp_path / "*" / "*.tar", ".tar")[1] == tmp_path
    with pytest.raises(SitError, match=r"names x\.txt beside \.tar files"):
        shards_at(tmp_path / "b" / "*", ".tar")


def test_names_of_classes(tmp_path):
    """Catches: numbers in place of names, two classes of one name taken for one."""
    rows = ["x.tar/0", "x.tar/1"]
    assert by_number([2, 0], {}, tmp_path, rows, ".cls").class_names == ["0", "1", "2"]
    assert by_number([1, 0], {1: "b"}, tmp_path, rows, ".cls").class_names == ["0", "b"]
    (tmp_path / "classes.txt").write_text("crane\nbird\ncrane\n")
    labelled = by_number([2, 0], {0: "x"}, tmp_path, rows, ".cls")
    assert labelled.class_names == ["crane (0)", "bird", "crane (2)"]
    assert (labelled.labels, labelled.origin) == ([2, 0], ".cls")
    with pytest.raises(UsageError, match=r"x\.tar/1: the label is 3, and classes\.txt names 3 cl"):
        by_number([0, 3], {}, tmp_path, rows, ".cls")
