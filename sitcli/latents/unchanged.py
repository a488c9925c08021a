"""Whether a store's file still holds what it held when it was opened."""

from __future__ import annotations

import hashlib
import os
import zlib

import numpy as np

from sitcli.errors import SitError
from sitcli.storage.files import is_same_file, open_same
from sitcli.storage.rows import DONE, Rows

SAMPLED = 64  # rows that are compared with their checksums where all would be too many
AGAIN = (
    "restore it and type the same command again; --overwrite and mv, which replace a file as a "
    "whole, do not disturb its readers"
)


class StoreChanged(SitError):
    """A store's file does not hold any more what it held when it was opened."""


class Unchanged:
    """Watches the file of a complete store while its rows are read, at one fstat a read.

    `check` is called after a read. A file that was written to since the store was opened must still
    have the same attributes and checksums, and the rows read must have theirs.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        # It is held open, as the path may come to name another file.
        self._file = open_same(rows.path, rows.facts)
        self._facts = rows.facts.st_size, rows.facts.st_mtime_ns
        self._checksums = _checksums(rows)

    def check(self, numbers: np.ndarray) -> None:
        """Raise StoreChanged if the rows `numbers` just read may not be what the store held."""
        facts = self._look()
        if facts == self._facts:
            return
        path, size = self._rows.path, facts[0]
        if size < self._facts[0]:
            raise StoreChanged(
                f"{path} was cut short while it was read: {size} of {self._facts[0]} bytes are "
                "left",
                AGAIN,
            )
        if self.replaced() or not self._is_as_before(numbers):
            raise StoreChanged(f"{path} was overwritten in place while it was read", AGAIN)
        self._facts = facts  # touched, no more

    def replaced(self) -> str:
        """What has become of the path: "replaced by another file", "removed", or "" as long as it
        names the file that is read."""
        try:
            facts = os.stat(self._rows.path)
        except OSError:
            return "removed"
        return "" if is_same_file(facts, self._rows.facts) else "replaced by another file"

    def _look(self) -> tuple[int, int]:
        facts = os.fstat(self._file.fileno())
        return facts.st_size, facts.st_mtime_ns

    def _is_as_before(self, numbers: np.ndarray) -> bool:
        try:
            now = Rows(self._rows.path)
        except SitError:  # its header is overwritten
            return False
        if now.attrs != self._rows.attrs or _checksums(now) != self._checksums:
            return False
        return not damaged_rows(now, np.union1d(numbers, sampled_rows(now)))


def sampled_rows(rows: Rows) -> np.ndarray:
    """The numbers of up to SAMPLED rows that are done, spread evenly over the file."""
    done = np.flatnonzero(rows.written == DONE)
    return done[np.linspace(0, len(done) - 1, min(SAMPLED, len(done))).astype(int)]


def damaged_rows(rows: Rows, numbers: np.ndarray) -> list[int]:
    """Those of the rows whose latents do not have the checksums they were written with."""
    names = ("latents", "latents_flipped") if rows.attrs["flips"] else ("latents",)
    arrays, expected = [rows.array(name) for name in names], rows.array("crc32")
    return [
        int(row)
        for row in numbers
        if any(
            zlib.crc32(np.ascontiguousarray(array[row])) != expected[row, copy]
            for copy, array in enumerate(arrays)
        )
    ]


def _checksums(rows: Rows) -> str:
    """A hash of the checksums of all rows, 8 bytes each or 4 without mirrored images."""
    return hashlib.sha256(np.ascontiguousarray(rows.array("crc32"))).hexdigest()
