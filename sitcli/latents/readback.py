"""Reading back a finished store, to compare its checksums and compute its statistics."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sitcli.latents.layout import FEATURES, FEATURES_CRC
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import DONE


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
        for copy, start, piece in store.pieces():
            digest.update(piece)
            for row, values in enumerate(piece, start):
                if written[row] == DONE and zlib.crc32(values) != expected[row, copy]:
                    self.damaged.add(row)
            # Broken rows are zeros: they add nothing to the sums and are not counted in `_finish`.
            # Exact as numpy's conversion, which takes five times as long.
            values = torch.from_numpy(np.array(piece)).float().numpy()
            total += values[:, : store.channels].sum((0, 2, 3), dtype=np.float64)
            power = np.square(values).sum((0, 2, 3), dtype=np.float64)
            squares += power.reshape(-1, store.channels).sum(0)  # mean^2 and std^2
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
