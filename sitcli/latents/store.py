"""Reading a latent store."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli.errors import SitError
from sitcli.latents.layout import ARRAY_PREFIX, FEATURES, encode_command, open_rows
from sitcli.latents.scaling import Scaling
from sitcli.latents.unchanged import StoreChanged, Unchanged, damaged_rows, sampled_rows
from sitcli.storage import rows
from sitcli.storage.files import hash_json
from sitcli.storage.gather import Gather
from sitcli.storage.rows import DONE, MISSING, Rows

READ_BYTES = 32_000_000  # read at once for checksums and statistics
PIECE = 1 << 18  # numbers converted to float32 at once


class ReadsBatches:
    """The methods shared by one store and by several stores read as one."""

    @property
    def empty_classes(self) -> list[int]:
        """The numbers of the classes without an item."""
        counts = np.bincount(self.labels, minlength=self.num_classes)
        return np.flatnonzero(counts[: self.num_classes] == 0).tolist()

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        flip: np.ndarray | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(latents - shift) * scaling of the items `indices`: (B, C, h, w) float32 on the CPU.

        flip: (B,) bool, whether to take the mirrored image (the store must have flips).
        noise: (B, C, h, w); the latents are then mean + std * noise, a draw from the posterior.
        Without noise, or for a deterministic autoencoder, the latents are the mode.
        """
        values = self.read(indices, flip=flip, whole=noise is not None)
        return self.scaled(values, noise=noise)


class LatentStore(ReadsBatches):
    """An open latent store. Items are the readable images, 0..num_items-1 in source order.

    It reads through memory maps and holds no open HDF5 file, so any process can use it.
    """

    def __init__(self, file: Rows) -> None:
        attrs = file.attrs
        self.rows = file
        self.path = file.path
        self.paths = [file.path]
        self.attrs = attrs
        self.complete: bool = attrs["complete"]
        self.kind: str = attrs["kind"]
        self.has_flips: bool = attrs["flips"]
        self.image_size: int = attrs["image_size"]
        self.crop: str = attrs["crop"]
        self.source: str = attrs["source"]
        # 1: as versions up to 0.7 listed a source, see images/source.py
        self.listing: int = attrs.get("source_listing", 1)
        self.sources = [self.source]
        self.scaling = Scaling.of(attrs)
        self.fingerprint: str = attrs["fingerprint"]
        self.written_checksum: str = attrs["checksum"]
        self.autoencoder: dict[str, Any] = attrs["autoencoder"]
        self.mean: list[float] = attrs["mean"]
        self.std: list[float] = attrs["std"]
        self.class_names: list[str] = file.texts("class_names")
        self.num_classes = len(self.class_names)
        channels, height, width = file.shape("latents")[1:]
        self.channels = channels // 2 if self.kind == "moments" else channels
        self.latent_shape = (self.channels, height, width)
        self._items = np.flatnonzero(file.written == DONE)
        self.num_items = len(self._items)
        self.labels = np.array(file.array("labels")[self._items])
        self._latents = file.array("latents")
        self._flipped = file.array("latents_flipped") if self.has_flips else None
        self.align: dict[str, Any] | None = attrs.get("align")
        self.align_width = file.shape(FEATURES[0])[1] if self.align else None

    @classmethod
    def open(cls, path: Path | str, *, allow_incomplete: bool = False) -> LatentStore:
        """Open the store at `path`.

        Raises SitError if it is missing, damaged, of a newer format, not a latent store, or, unless
        `allow_incomplete`, not complete.
        """
        file = open_rows(Path(path))
        if not file.attrs["complete"] and not allow_incomplete:
            written = int(np.count_nonzero(file.written))
            raise SitError(
                f"{path} is not complete: {written} of {file.num_rows} images are encoded",
                f"go on with: {encode_command(file.attrs, file.path)}",
            )
        store, classes = cls(file), max(1, file.shape("class_names")[0])
        # Only commands that report faults open incomplete stores: they must not fail here.
        asked = not allow_incomplete and store.num_items
        if asked and not 0 <= store.labels.min() <= store.labels.max() < classes:
            raise SitError(f"{path} is damaged: labels outside its {classes} classes")
        return store

    @property
    def was(self) -> list[tuple[str, str]]:
        """(fingerprint, checksum) of what it was each time before images were added to it."""
        return [(r["fingerprint"], r["checksum"]) for r in self.attrs.get("grown", [])]

    @property
    def first_fingerprint(self) -> str:
        """The fingerprint as versions up to 0.7 computed it, which runs of then keep."""
        attrs = self.attrs
        if "source_content" not in attrs:
            return self.fingerprint
        names = ("image_size", "crop", "flips")
        identity = [attrs["source_fingerprint"], self.autoencoder["hash"]]
        return hash_json([*identity, *(attrs[name] for name in names)])

    @cached_property
    def _gather(self) -> Gather:
        names = ["latents", "latents_flipped"] if self.has_flips else ["latents"]
        return self.rows.gather(*names)

    @property
    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """The autoencoder's own arrays by name, {} for most autoencoders."""
        names = [name for name in self.rows.names if name.startswith(ARRAY_PREFIX)]
        return {name[len(ARRAY_PREFIX) :]: np.array(self.rows.array(name)) for name in names}

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        flip: np.ndarray | None = None,
        whole: bool = True,
    ) -> np.ndarray:
        """The items' rows as they are stored, a copy: (B, 2C or C, h, w) float16.

        flip: (B,) bool, whether to take the mirrored image; whole: with the posterior's std, if
        there is one.
        """
        numbers = self._items[indices]
        copies = 0
        if flip is not None and flip.any():
            if not self.has_flips:
                raise ValueError(f"{self.path} has no mirrored latents")
            copies = flip.astype(np.int64)
        # Copy the mean alone if the std is not used.
        used = slice(None) if whole else slice(self.channels)
        return self._checked(self._gather, numbers, array=copies, used=used)

    def _checked(
        self,
        gather: Gather,
        numbers: np.ndarray,
        *,
        array: np.ndarray | int,
        used: slice = slice(None),
    ) -> np.ndarray:
        """The rows that `gather` reads. Raises StoreChanged if the file has changed meanwhile."""
        try:
            values = gather.read(numbers, array=array, used=used)
        except SitError as error:
            raise StoreChanged(error.message, error.hint) from None
        if self._unchanged:
            self._unchanged.check(numbers)
        return values

    @cached_property
    def _unchanged(self) -> Unchanged | None:
        return Unchanged(self.rows) if self.complete else None  # others are being written

    def check_sample(self) -> None:
        """Raise SitError if some of a few rows are not what was written."""
        damaged = damaged_rows(self.rows, sampled_rows(self.rows))
        if damaged:
            raise SitError(
                f"{self.path} is damaged: row {damaged[0]} is not what was written",
                f"look at it with: sit inspect --verify {shlex.quote(str(self.path))}",
            )

    def replaced(self) -> str:
        """What has become of the path since the store was opened, see `Unchanged.replaced`."""
        return self._unchanged.replaced() if self._unchanged else ""

    @cached_property
    def _gather_features(self) -> Gather:
        return self.rows.gather(*FEATURES[: 2 if self.has_flips else 1])

    def features(
        self, indices: Sequence[int] | np.ndarray, *, flip: np.ndarray | None = None
    ) -> np.ndarray:
        """The items' features, (B, D, rows, columns) float16; flip: (B,) bool, of the mirrored."""
        copies = 0 if flip is None or not flip.any() else flip.astype(np.int64)
        return self._checked(self._gather_features, self._items[indices], array=copies)

    def scaled(self, values: np.ndarray, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Rows from `read` -> scaled latents (B, C, h, w) float32, see `batch`.

        With noise, the rows must be whole.
        """
        latents = torch.empty(len(values), *self.latent_shape)
        # Work in pieces that stay in the processor's cache.
        size = max(1, PIECE // math.prod(values.shape[1:]))
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            rows, out = torch.from_numpy(values[part]), latents[part]
            if self.kind == "moments" and noise is not None:
                mean, std = rows.float().chunk(2, dim=1)
                torch.addcmul(mean, std, noise[part], out=out)
            else:
                out.copy_(rows[:, : self.channels])
            self.scaling.normalise_(out)
        return latents

    def image_paths(self) -> list[str]:
        """The name of each item within the source."""
        return self.rows.texts("paths", self._items)

    def broken(self) -> list[tuple[str, str]]:
        """(name, reason) of each image that could not be read."""
        numbers = np.flatnonzero(self.rows.written == rows.BROKEN)
        names = self.rows.texts("paths", numbers)
        return list(zip(names, self.rows.texts("problems", numbers), strict=True))

    def num_missing(self) -> int:
        """The number of images that have not been encoded."""
        return int(np.count_nonzero(self.rows.written == MISSING))

    def checksum(self) -> str:
        """sha256 over latents, mirrored latents and labels of all rows, read from the file."""
        digest = hashlib.sha256()
        for _, _, piece in self.pieces():
            digest.update(piece)
        digest.update(np.ascontiguousarray(self.rows.array("labels")))
        return digest.hexdigest()

    def pieces(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(0, or 1 for mirrored; first row; rows) over the whole store, about 32 MB at a time."""
        for copy, array in enumerate((self._latents, self._flipped)):
            if array is not None:
                step = max(1, READ_BYTES // array[0].nbytes)
                for start in range(0, len(array), step):
                    yield copy, start, np.ascontiguousarray(array[start : start + step])
