"""Writing files so that a reader, or a crash, sees the old file or the new one, never a part.

Also hashes and format versions, which tell contents apart."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sitcli.errors import SitError


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path` to write to; the block's end renames it to `path`.

    A block that raises leaves `path` as it was and no temporary file. The temporary name is always
    the same, so the next write replaces what a kill left behind. durable: whether the file is on
    the disk at the end, which takes milliseconds; thousands of files that can be made again do not
    need it.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        if durable:
            sync_file(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if durable:
        sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create the folder and those above it if they are missing. Raises SitError if it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SitError(
            f"cannot make the folder {path}: {error.strerror}", "name another place"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by utf-8 text."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace the file at `path` by `value` as indented JSON; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def check_version(path: Path, found: int, known: int) -> None:
    """Raise SitError if an artefact has a newer format than this version of sit reads."""
    if found > known:
        raise SitError(
            f"{path} has format {found}, this version of sit reads up to {known}",
            "pip install --upgrade sitcli",
        )


def hash_json(value: Any) -> str:
    """sha256, in hex, of a value as JSON; the order of dicts does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def with_checksum(document: dict[str, Any]) -> dict[str, Any]:
    """A JSON document that keeps the hash of all its other values, as its last."""
    rest = {name: value for name, value in document.items() if name != "checksum"}
    return {**rest, "checksum": hash_json(json.loads(json.dumps(rest)))}


def has_checksum(document: dict[str, Any]) -> bool:
    """Whether a document ends with its checksum.

    Versions that knew of none copy it with the other values, and write their own after it.
    """
    return next(reversed(document), None) == "checksum"


def checksum_holds(document: dict[str, Any]) -> bool:
    """Whether a document of `with_checksum` is as it was; True without a checksum."""
    return not has_checksum(document) or with_checksum(document) == document


def hash_file(path: Path) -> str:
    """sha256, in hex, of a file's bytes. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def open_same(path: Path, facts: os.stat_result) -> BinaryIO:
    """The file at `path`, open for reading without a buffer. facts: those of the file meant.

    Raises SitError if another file has taken its name, or it cannot be read.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    if not is_same_file(os.fstat(file.fileno()), facts):
        file.close()
        raise SitError(
            f"{path} was replaced by another file while it was read", "type the same command again"
        )
    return file


def is_same_file(facts: os.stat_result, others: os.stat_result) -> bool:
    """Whether both are facts of one file.

    Some network file systems number a file anew from time to time: then size and date decide.
    """
    return os.path.samestat(facts, others) or (
        (facts.st_size, facts.st_mtime_ns) == (others.st_size, others.st_mtime_ns)
    )


def sync_file(path: Path) -> None:
    """Make a file, or the names within a folder, last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames and new names within `folder` last through a power cut."""
    sync_file(folder)


def save_picture(save, path: Path) -> None:
    """Save a picture so that no reader sees half of it. Raises SitError if it cannot be written."""
    if path.is_dir():
        raise SitError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, durable=False) as temporary:
            save(temporary, format="png")
    except OSError as error:
        raise SitError(f"cannot write {path}: {error.strerror or error}") from None
