"""Reading back a finished store, to compare its checksums and compute its statistics."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from sitcli.latents.layout import FEATURES, FEATURES_CRC
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import PIECE, LatentStore
from sitcli.machine.devices import one_thread
from sitcli.storage.rows import DONE


def _ahead(pieces: Iterator[tuple[int, int, np.ndarray]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """The pieces, each read from the disk while the one before it is looked at."""

    def fetch() -> tuple[int, int, np.ndarray] | None:
        copy, start, piece = next(pieces, (0, 0, None))
        return None if piece is None else (copy, start, np.array(piece))

    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(fetch)
        while (piece := coming.result()) is not None:
            coming = reader.submit(fetch)
            yield piece


def _sums(piece: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """The sums (C,) of float16 rows, and of their squares: of the mean and, if there is one, of the
    standard deviation."""
    total, squares = np.zeros(channels), np.zeros(channels)
    # As many at a time as stay in the processor's cache. torch converts exactly, as numpy does, in
    # a fraction of its time.
    size = max(1, PIECE // max(1, piece[0].size))
    for start in range(0, len(piece), size):
        block = torch.from_numpy(piece[start : start + size]).float().numpy()
        total += block[:, :channels].sum((0, 2, 3), dtype=np.float64)
        power = np.square(block, out=block).sum((0, 2, 3), dtype=np.float64)
        squares += power.reshape(-1, channels).sum(0)
    return total, squares


def standardised(check: ReadBack) -> dict[str, Any]:
    """The attributes of a store of `--normalize channels` whose rows have been read back."""
    scaling = Scaling.standardising(check.own_mean, check.own_std)
    mean, std = check.scaled_by(scaling)
    return dict(scaling=list(scaling.factor), shift=list(scaling.shift), mean=mean, std=std)


class ReadBack:
    """One pass over a finished store. Iterate it to the end; it yields the images read so far.

    Afterwards it has these attributes. damaged: numbers of the rows whose bytes differ from those
    written. checksum: sha256 over latents, mirrored latents and labels, see
    `LatentStore.checksum`. mean, std: statistics per channel of the scaled latents that training
    draws, over items, mirrored items, positions and the posterior; own_mean, own_std: those of the
    latents as they are stored.
    """

    def __init__(self, store: LatentStore) -> None:
        self._store = store
        self.damaged: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        store = self._store
        expected, written = store.rows.array("crc32"), store.rows.written
        digest = hashlib.sha256()
        total, squares, rows_read = np.zeros(store.channels), np.zeros(store.channels), 0
        # Broken rows are zeros: they add nothing to the sums and are not counted in `_finish`.
        for copy, start, piece in _ahead(store.pieces()):
            digest.update(piece)
            for row, values in enumerate(piece, start):
                if written[row] == DONE and zlib.crc32(values) != expected[row, copy]:
                    self.damaged.add(row)
            with one_thread():
                added = _sums(piece, store.channels)
            total, squares = total + added[0], squares + added[1]
            rows_read += len(piece)
            yield rows_read // (2 if store.has_flips else 1)
        digest.update(np.ascontiguousarray(store.rows.array("labels")))
        self.checksum = digest.hexdigest()
        self._finish(total, squares)
        self._check_features(written)

    def _check_features(self, written: np.ndarray) -> None:
        store = self._store
        names = FEATURES[: 2 if store.has_flips else 1] if store.align else ()
        for copy, name in enumerate(names):
            array, expected = store.rows.array(name), store.rows.array(FEATURES_CRC)
            for row in np.flatnonzero(written == DONE):
                if zlib.crc32(np.ascontiguousarray(array[row])) != expected[row, copy]:
                    self.damaged.add(int(row))

    def _finish(self, total: np.ndarray, squares: np.ndarray) -> None:
        store = self._store
        copies = 2 if store.has_flips else 1
        count = max(1, store.num_items * copies * math.prod(store.latent_shape[1:]))
        self.own_mean = total / count
        self.own_std = np.sqrt(np.maximum(squares / count - self.own_mean**2, 0))
        self.mean, self.std = self.scaled_by(store.scaling)

    def scaled_by(self, scaling: Scaling) -> tuple[list[float], list[float]]:
        """Mean and std per channel of the latents under a scaling."""
        factor = np.asarray(scaling.factor, np.float64)
        mean = (self.own_mean - scaling.shift) * factor
        return mean.tolist(), (self.own_std * factor).tolist()
