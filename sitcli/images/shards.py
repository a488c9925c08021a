"""Sets of shards: a file, a folder of files, a brace pattern or a glob becomes a list of files."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sitcli.errors import SitError, UsageError
from sitcli.images.endings import ENDINGS, ending_of
from sitcli.images.folder import list_folder
from sitcli.images.labels import HINT, Labelled, wrong_label

RANGE = re.compile(r"(\d+)\.\.(\d+)")
# A shard's stem: the name of its set, a separator, its number, and perhaps how many there are.
NUMBERED = re.compile(r"(?P<set>.*?)(?P<sep>[-_.]?)(?P<number>\d+)(?:-of-(?P<total>\d+))?")
SPLITS = frozenset(("train", "training", "test", "val", "valid", "validation", "dev"))
CLASS_FILES = ("classes.txt", "classnames.txt", "class_names.txt")


def is_pattern(path: Path) -> bool:
    """Whether the path names no file and has the marks of a pattern: `*`, `?`, `[`, `{`."""
    return any(mark in str(path) for mark in "*?[{") and not path.exists()


def is_there(path: Path) -> bool:
    """Whether the path is that of a file or folder, or a pattern of at least one."""
    return path.exists() or (
        is_pattern(path)
        and any(
            (glob.has_magic(t) and glob.glob(t)) or os.path.exists(t) for t in _braces(str(path))
        )
    )


def expanded(path: Path) -> list[Path]:
    """The files that a pattern names, sorted: `x-{000..146}.tar`, `{a,b}/x-*.tar`.

    Raises SitError if one that braces name does not exist, or none is there.
    """
    found: set[str] = set()
    for text in _braces(str(path)):
        if glob.has_magic(text):
            found.update(glob.glob(text))
        elif os.path.exists(text):
            found.add(text)
        else:
            raise SitError(
                f"{text} does not exist", "fetch it, or name the shards that are there: 'x-*.tar'"
            )
    if not found:
        raise SitError(f"no file is named {path}", "quote the pattern, and look with ls")
    return [Path(text) for text in sorted(found)]


def _braces(text: str) -> Iterable[str]:
    """The texts that braces stand for, as the shell has them; a pair without `,` or `..` stays."""
    for begin, end in _pairs(text):
        inside = text[begin + 1 : end]
        if match := RANGE.fullmatch(inside):
            first, last = match.groups()
            width = len(first) if first.startswith("0") or len(first) == len(last) else 0
            step = 1 if int(first) <= int(last) else -1
            numbers = range(int(first), int(last) + step, step)
            parts: Iterable[str] = (f"{number:0{width}d}" for number in numbers)
        elif len(parts := _split(inside)) < 2:
            continue
        return itertools.chain.from_iterable(
            _braces(text[:begin] + part + text[end + 1 :]) for part in parts
        )
    return [text]


def _pairs(text: str) -> Iterable[tuple[int, int]]:
    """The places of each brace and of the one that closes it."""
    opened = []
    pairs = []
    for place, letter in enumerate(text):
        if letter == "{":
            opened.append(place)
        elif letter == "}" and opened:
            pairs.append((opened.pop(), place))
    return sorted(pairs)


def _split(text: str) -> list[str]:
    """The parts between the commas that are in no braces of their own."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def holds_shards(path: Path, ending: str) -> bool:
    """Whether the path is a pattern of files with this ending, or a folder of them and no images.

    Raises SitError for a pattern without files.
    """
    if is_pattern(path):
        return ending_of(expanded(path)[0].name) == ending
    if not path.is_dir() or not _files_in(path, ending):
        return False
    # It may be a folder of pictures with an archive among them.
    return not any(ending_of(place.file) in ENDINGS for place in list_folder(path))


def shards_at(path: Path, ending: str) -> tuple[list[Path], Path]:
    """The shards that a path names, sorted, and the folder below which they all lie.

    Raises SitError for a pattern that names other files and for a folder that lacks a shard;
    UsageError for a folder of several sets.
    """
    if path.is_dir():
        files = _files_in(path, ending)
        _check_one_set(path, files, ending)
        return files, path
    if not is_pattern(path):
        return [path], path.parent
    files = expanded(path)
    for file in files:
        if ending_of(file.name) != ending:
            raise SitError(f"{path} names {file.name} beside {ending} files", "name shards alone")
    return files, Path(os.path.commonpath([file.parent for file in files]))


def _files_in(folder: Path, ending: str) -> list[Path]:
    with contextlib.suppress(OSError):
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
        return [folder / n for n in names if ending_of(n) == ending and not n.startswith(".")]
    return []


def _check_one_set(path: Path, files: Sequence[Path], ending: str) -> None:
    """Raise UsageError for the shards of several sets, SitError if one of a set is not there."""
    matches = [NUMBERED.fullmatch(file.stem) for file in files]
    patterns = [
        f"{match['set']}{match['sep']}*{ending}" if match else file.name
        for match, file in zip(matches, files, strict=True)
    ]
    sets = Counter(patterns)
    last_words = {re.split(r"[-_.]", pattern.removesuffix(ending).rstrip("*-_."))[-1].lower()
                  for pattern in sets}  # fmt: skip
    if len(sets) > 1 and (all(matches) or last_words & SPLITS):
        raise UsageError(
            f"{path} holds the shards of {len(sets)} sets: {', '.join(list(sets)[:4])}",
            f"name one of them: '{path / next(iter(sets))}'",
        )
    totals = {int(match["total"]) for match in matches if match and match["total"]}
    if len(sets) == 1 and len(totals) == 1 and len(files) < (total := totals.pop()):
        there = {int(match["number"]) for match in matches if match}
        first = 0 if 0 in there or total not in there else 1
        number = next(n for n in range(first, first + total) if n not in there)
        width = len(matches[0]["number"])
        raise SitError(
            f"{path} lacks shard {number:0{width}d} of {total}: {len(files)} are there",
            f"fetch it, or say that these are all: '{path / patterns[0]}'",
        )


def shard_name(shard: Path, folder: Path) -> str:
    """The shard's path below the folder, with '/' between parts."""
    return os.path.relpath(shard, folder).replace(os.sep, "/")


def check_label(label: object, where: str) -> int:
    """The number of a class. where: the file and row, for the error.

    Raises UsageError for anything else.
    """
    if wrong := wrong_label(label):
        raise UsageError(f"{where}: the label is {wrong}", HINT)
    return label


def by_number(
    labels: Sequence[int], names: Mapping[int, str], folder: Path, where: Sequence[str], origin: str
) -> Labelled:
    """Labels that are numbers. Classes are called as a classes.txt in the folder lists them, a line
    each, else by `names`, else by their numbers.

    where: the file and row of each label. origin: see Labelled.
    Raises UsageError for a label that the list of classes lacks.
    """
    listed = next((folder / name for name in CLASS_FILES if (folder / name).is_file()), None)
    highest = max(labels)
    if listed is not None:
        lines = listed.read_text("utf-8", "replace").rstrip("\n").split("\n")
        class_names = [line.strip() for line in lines]
        if highest >= len(class_names):
            row = where[list(labels).index(highest)]
            raise UsageError(
                f"{row}: the label is {highest}, and {listed.name} names {len(class_names)} "
                "classes, from 0 on",
                HINT,
            )
    else:
        count = max(highest, *names, -1) + 1
        class_names = [names.get(number, str(number)) for number in range(count)]
    repeated = {name for name, times in Counter(class_names).items() if times > 1}
    class_names = [
        f"{name} ({number})" if name in repeated else name
        for number, name in enumerate(class_names)
    ]
    return Labelled(list(labels), class_names, origin)
