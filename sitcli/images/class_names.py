"""Names of classes: the words for WordNet's numbers, and the class that a word means.

ImageNet's folders are called by WordNet's numbers, n02099601 for the golden retriever; timm knows
the words, "great white shark, white shark, man-eater" for n01484850.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import re
import unicodedata
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sitcli.errors import UsageError
from sitcli.text import first_line

if TYPE_CHECKING:
    from timm.data import ImageNetInfo

IMAGENET_CLASSES = 1000
WORDNET = re.compile(r"n\d{8}")
MOST_WORDS = 20  # no class of WordNet has more
LONGEST_IN_FILE = 40  # characters of a name in a file's name


@lru_cache(maxsize=1)
def _wordnet() -> ImageNetInfo:
    from timm.data import ImageNetInfo  # takes two seconds

    return ImageNetInfo()


def imagenet_names() -> list[str]:
    """WordNet's numbers of ImageNet's 1,000 classes, in the order of their folders."""
    return list(_wordnet().label_names())


def read_names(path: Path) -> list[str]:
    """The names in a text file, one a line. Raises UsageError if they are no names of classes."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--class-names: cannot read {path}: {first_line(error)}",
            "name imagenet, none, or a text file with a name a line",
        ) from None
    seen: set[str] = set()
    for number, name in enumerate(map(str.strip, lines), start=1):
        if not name or name in seen:
            what = f"line {number} is '{name}' again" if name else f"line {number} is empty"
            raise UsageError(f"--class-names: {path}: {what}", "give each class a name of its own")
        seen.add(name)
    return [line.strip() for line in lines]


def are_imagenet(words: Sequence[str]) -> bool:
    """Whether these are the words for ImageNet's classes in order, as its words were once listed.

    A list may begin a class with another of its words, or have corrected some: nine of ten must
    share a word with timm's.
    """
    if len(words) != IMAGENET_CLASSES:
        return False
    pairs = zip(words, words_of(imagenet_names()), strict=True)
    shared = sum(bool(_parts(theirs) & _parts(ours)) for theirs, ours in pairs)
    return shared >= 0.9 * IMAGENET_CLASSES


def are_numbers(class_names: Sequence[str]) -> bool:
    """Whether the classes are called "0", "1", ..., as those of a dataset.json are."""
    return list(class_names) == [str(i) for i in range(len(class_names))]


def names_of_weights(
    path: object, said: str | None, given: Sequence[str], num_classes: int
) -> tuple[list[str], str]:
    """The names of the classes of imported weights, [] if nobody knows them, and a note or "".

    path: the weights; said: --class-names; given: the names that the weights come with. A thousand
    classes without names are taken to be ImageNet's.
    Raises UsageError for a --class-names that names another number of classes.
    """
    known, note = len(given) == num_classes, ""
    if said == "none" or not num_classes:
        return [], ""
    if said is None and (known or num_classes != IMAGENET_CLASSES):
        return (list(given) if known else []), ""
    if said in (None, "imagenet"):
        names, where = imagenet_names(), "ImageNet"
        if said is None:
            note = (
                "the 1,000 classes are taken to be ImageNet's, e.g. --classes 'golden retriever'; "
                "--class-names says otherwise"
            )
    else:
        names, where = read_names(Path(said)), said
    if len(names) != num_classes:
        raise UsageError(
            f"--class-names: {where} has {len(names)} classes, and {path} has {num_classes}",
            "name a file with a name for each class, one a line",
        )
    return names, note


def words_of(class_names: Sequence[str]) -> list[str]:
    """The words for each class: all that WordNet has for its number, else the name itself."""
    words = list(class_names)
    for i, name in enumerate(class_names):
        if WORDNET.fullmatch(name):
            with contextlib.suppress(KeyError):  # a number that timm's list lacks
                words[i] = _wordnet().label_name_to_description(name)
    return words


def titles(class_names: Sequence[str]) -> list[str]:
    """What to write beside a picture of each class: the first of WordNet's words, else its name."""
    return [
        words.split(", ")[0] if words != name else name
        for words, name in zip(words_of(class_names), class_names, strict=True)
    ]


def in_file_name(title: str) -> str:
    """'golden retriever' -> 'golden-retriever': letters and digits of any script, and '-'.

    It has at most LONGEST_IN_FILE characters, and is '' for a name without letters or digits.
    """
    text = unicodedata.normalize("NFC", title)
    text = re.sub(r"-+", "-", "".join(c if c.isalnum() else "-" for c in text))
    return text.strip("-")[:LONGEST_IN_FILE].strip("-")


def parse_classes(text: str, class_names: Sequence[str], num_classes: int) -> list[int]:
    """'207,"drake, male duck"' -> class numbers.

    Names, numbers and WordNet's words are separated by commas. A name that has commas itself can be
    quoted, and need not be where the name as a whole is known.
    Raises UsageError for an unknown number or name, and for a word that means several classes.
    """
    try:
        fields = next(csv.reader([text], skipinitialspace=True), [])
    except csv.Error:
        raise UsageError(f"--classes {text!r} is not a list of names", "e.g. 0,1") from None
    fields = [field for field in map(str.strip, fields) if field]
    if not fields:
        raise UsageError("--classes names no class", "e.g. --classes 0,1")
    known = _Classes(class_names, num_classes)
    # A name with commas comes in several fields; where each is a class by itself, they are meant.
    most = 1 if all(f in known.exact or f.isdecimal() for f in fields) else MOST_WORDS
    classes = []
    while fields:
        sizes = range(min(most, len(fields)), 1, -1)
        size = next((n for n in sizes if known.find(", ".join(fields[:n]))), 1)
        classes.append(known.one(", ".join(fields[:size])))
        fields = fields[size:]
    return classes


class _Classes:
    """The classes of a run, by their names and words."""

    def __init__(self, class_names: Sequence[str], num_classes: int) -> None:
        self.names, self.num_classes = class_names, num_classes
        self.exact: dict[str, int] = {}
        for i, name in enumerate(class_names):
            self.exact.setdefault(name, i)

    @cached_property
    def words(self) -> list[str]:
        """See `words_of`."""
        return words_of(self.names)

    @cached_property
    def by_all_words(self) -> dict[str, list[int]]:
        """Classes by all their words together, written plainly."""
        found: dict[str, list[int]] = {}
        for i, words in enumerate(self.words):
            found.setdefault(_plain(words), []).append(i)
        return found

    @cached_property
    def by_word(self) -> dict[str, list[int]]:
        """Classes by each of their words, written plainly."""
        found: dict[str, list[int]] = {}
        for i, words in enumerate(self.words):
            for word in _parts(words):
                found.setdefault(word, []).append(i)
        return found

    def find(self, text: str) -> list[int]:
        """The classes that `text` means: a name, a number, or words in any case."""
        if text in self.exact:
            return [self.exact[text]]
        if text.isdecimal():
            return [int(text)] if int(text) < self.num_classes else []
        return self.by_all_words.get(_plain(text)) or self.by_word.get(_plain(text), [])

    def one(self, text: str) -> int:
        """The class that `text` means. Raises UsageError if there is none or several."""
        found = self.find(text)
        if len(found) == 1:
            return found[0]
        if found:
            which = " or ".join(f"{i} ({self._described(i)})" for i in found)
            raise UsageError(
                f"--classes: '{text}' means {len(found)} classes", f"say which by number: {which}"
            )
        numbers = f"use 0 to {self.num_classes - 1}"
        if text.isdecimal():
            raise UsageError(f"--classes: there is no class {text}", numbers)
        unknown = f"--classes: no class is called '{text}'"
        if not self.names:
            raise UsageError(f"{unknown}: the run does not know its classes' names", numbers)
        plain = {**self.by_word, **self.by_all_words}
        if close := difflib.get_close_matches(_plain(text), plain, n=1):
            words = self.words[plain[close[0]][0]]
            meant = next((w for w in words.split(", ") if _plain(w) == close[0]), words)
            raise UsageError(unknown, f"did you mean '{meant}'?")
        raise UsageError(unknown, f"e.g. {', '.join(titles(self.names[:5]))}")

    def _described(self, number: int) -> str:
        name, words = self.names[number], self.words[number]
        return name if words == name else f"{name}, {words}"


def _plain(text: str) -> str:
    """In small letters, with one space for each gap, hyphen or underscore."""
    gaps = re.sub(r"[\s_-]+", " ", text)
    return re.sub(r"\s*,\s*", ", ", gaps).strip().casefold()


def _parts(words: str) -> set[str]:
    return set(map(_plain, words.split(",")))
