"""Names of classes, and the class that a word means."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sitcli.errors import UsageError
from sitcli.images.class_names import (
    are_imagenet,
    are_numbers,
    imagenet_names,
    in_file_name,
    parse_classes,
    read_names,
    titles,
    words_of,
)

SHARK = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("golden retriever", [207]),
        ("207", [207]),
        ("n02099601", [207]),
        ("Golden-Retriever , goldfish", [207, 1]),
        (SHARK, [2]),
        (f"{SHARK}, goldfish", [2, 1]),
        (f'"{SHARK}",drake,97', [2, 97, 97]),
        ("man-eater", [2]),
        ("maillot", [638]),  # 639 is "maillot, tank suit"
    ],
)
def test_imagenets_classes_by_number_and_word(text: str, expected: list[int]) -> None:
    """Catches: a class of another place in the list, a name with commas torn apart, and a word of
    several for which the class that is called just so is not taken."""
    assert parse_classes(text, imagenet_names(), 1000) == expected


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("golden retreiver", "no class is called 'golden retreiver'", "mean 'golden retriever'"),
        ("Carcharodon carcharia", "no class", "mean 'Carcharodon carcharias'"),
        ("1000", "no class 1000", "0 to 999"),
        ("crane", "means 2 classes", r"134 \(n02012849, crane\) or 517 \(n03126707, crane\)"),
        ("qqqq", "no class is called", "e.g. tench, goldfish"),
        (" , ", "names no class", "--classes 0,1"),
        ("a\nb", "not a list", "0,1"),
    ],
)
def test_what_no_class_is_called(text: str, message: str, hint: str) -> None:
    """Catches: a bird drawn where a machine was meant, and an error that does not help."""
    with pytest.raises(UsageError, match=message) as caught:
        parse_classes(text, imagenet_names(), 1000)
    assert re.search(hint, caught.value.hint)


def test_names_as_they_were_given_go_first() -> None:
    """Catches: names separated by commas that are joined, a number that is another class's name,
    and small letters asked for where the name has capitals."""
    names = ["a", "b", "a, b", "drake, male duck", "0"]
    assert parse_classes("a,b", names, 5) == [0, 1]
    assert parse_classes('"a, b"', names, 5) == [2]
    assert parse_classes("drake, male duck,a", names, 5) == [3, 0]
    assert parse_classes("male duck", names, 5) == [3]
    assert parse_classes("0,1", names, 5) == [4, 1]
    assert parse_classes("BLUE", ["red", "Blue"], 2) == [1]
    with pytest.raises(UsageError, match="does not know its classes' names"):
        parse_classes("goldfish", [], 10)


def test_words_and_titles() -> None:
    """Catches: words asked of all classes or none where a user's own join ImageNet's, and a name
    of the user's cut at its comma."""
    assert titles(["n01484850", "n02099601"]) == ["great white shark", "golden retriever"]
    assert words_of(["n01484850"]) == [SHARK]
    assert titles(["n99999999", "n02099601"]) == ["n99999999", "golden retriever"]
    assert titles(["n01484850", "my, cat"]) == ["great white shark", "my, cat"]
    assert parse_classes("my, cat,man-eater", ["n01484850", "my, cat"], 2) == [1, 0]
    assert titles([]) == []


def test_lists_of_imagenets_words_are_known() -> None:
    """Catches: another data set of a thousand classes taken for ImageNet, or its words in another
    order."""
    first = [words.split(", ")[0] for words in words_of(imagenet_names())]
    assert are_imagenet(first)
    assert not are_imagenet(first[1:] + first[:1])
    assert not are_imagenet(first[:999])
    assert are_numbers(["0", "1", "2"])
    assert not are_numbers(["1", "2"])


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("golden retriever", "golden-retriever"),
        ("../../etc/passwd", "etc-passwd"),
        ("black-and-tan  coonhound", "black-and-tan-coonhound"),
        ("犬 Ä\x00", "犬-Ä"),
        ("☆", ""),
        ("x" * 300, "x" * 40),
    ],
)
def test_names_in_files_names(title: str, expected: str) -> None:
    """Catches: a name that leaves its folder, or that no file can have."""
    assert in_file_name(title) == expected


def test_names_from_a_file(tmp_path: Path) -> None:
    """Catches: two classes of one name, of which only one could be drawn."""
    file = tmp_path / "names.txt"
    file.write_text("red\n green, dark \n")
    assert read_names(file) == ["red", "green, dark"]
    for text, message in (("a\nb\na\n", "line 3 is 'a' again"), ("a\n\nb", "line 2 is empty")):
        file.write_text(text)
        with pytest.raises(UsageError, match=message):
            read_names(file)
    with pytest.raises(UsageError, match="cannot read"):
        read_names(tmp_path / "none.txt")
