"""Copying many scattered rows out of a file, from memory or from the disk."""

from __future__ import annotations

import math
import mmap
import resource
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from sitcli.errors import SitError
from sitcli.storage.lost_pages import Mapping

THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux
# Waits per row that show a read from the disk. A batch in memory waits once or twice, for Python's
# lock. Rows on the disk cost nearly one wait each, also on file systems that do not count reads.
WAITING = 1 / 32
# After a read that had to wait for the disk, prefetch for this many batches. A needless prefetch
# costs about 1 us a row, a missing one 20 to 5000 us.
ASKS = 64


class Gather:
    """Rows of arrays that lie in one file, each contiguous, of the same row shape and dtype.

    file: it, open for reading; it may be closed afterwards. offsets: where the arrays begin, in
    bytes. The file is mapped into memory. Rows that are not in
    memory are all requested before any is copied; otherwise the kernel reads them one after the
    other, each with its read-ahead.
    """

    def __init__(
        self, file: BinaryIO, *, offsets: Sequence[int], shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        num, self._row = shape[0], math.prod(shape[1:]) * dtype.itemsize
        self._path = file.name
        self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._pages = Mapping(np.frombuffer(self._map, np.uint8).ctypes.data, len(self._map))
        # One array of overlapping rows, one every `_step` bytes, holds the rows of all arrays: a
        # single indexing operation copies from all of them, each row once.
        self._first = min(offsets)
        self._step = math.gcd(self._row, *(offset - self._first for offset in offsets))
        self._starts = np.array([(o - self._first) // self._step for o in offsets], np.int64)
        last = max(offsets) + num * self._row - self._first
        self._rows = np.ndarray(
            ((last - self._row) // self._step + 1, *shape[1:]),
            dtype,
            buffer=self._map,
            offset=self._first,
            strides=(self._step, *np.empty(shape[1:], dtype).strides),
        )
        self._asks = ASKS

    def read(
        self, numbers: np.ndarray, *, array: np.ndarray | int = 0, used: slice = slice(None)
    ) -> np.ndarray:
        """Copies of rows `numbers` (B,) of the arrays number `array` (one or (B,)).

        used: the part of each row's first axis to copy. The caller must refuse numbers beyond the
        array: the rows of another array may lie there.
        Raises SitError if the file was cut short, or the disk does not give it.
        """
        places = self._starts[array] + numbers * (self._row // self._step)
        with self._pages.read():
            values = self._copied(places, used)
        if self._pages.lost:
            raise SitError(
                f"{self._path} was cut short while it was read, or its disk has failed",
                "restore it, and type the same command again",
            )
        return values

    def _copied(self, places: np.ndarray, used: slice) -> np.ndarray:
        """Copies of the rows at `places`; notes whether they came from the disk."""
        if THREAD is None:
            return self._rows[places, used]
        before = resource.getrusage(THREAD)
        if self._asks:
            self._ask(places)
        between = resource.getrusage(THREAD)
        values = self._rows[places, used]
        after = resource.getrusage(THREAD)
        waits = after.ru_nvcsw - between.ru_nvcsw
        if after.ru_inblock > before.ru_inblock or waits > WAITING * len(places) + 2:
            self._asks = ASKS
        elif self._asks:
            self._asks -= 1
        return values

    def _ask(self, places: np.ndarray) -> None:
        """Have the kernel fetch rows into memory, without waiting for them."""
        starts = self._first + places * self._step
        before = starts % mmap.PAGESIZE  # advice is about whole pages
        advise, length = self._map.madvise, self._row
        for start, more in zip((starts - before).tolist(), before.tolist(), strict=True):
            advise(mmap.MADV_WILLNEED, start, length + more)
