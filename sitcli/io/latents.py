"""Latent stores: what `sit encode-latents` writes and `sit train` reads.

A row file (sitcli/io/rows.py) with the datasets

    latents          (N, 2C, h, w) float16, mean | std of the posterior, unscaled;
                     (N, C, h, w) where the autoencoder is deterministic (attribute `kind`)
    latents_flipped  the same of the mirrored images, if the store has them
    labels           (N,) int64, all 0 when there are no classes
    paths            (N,) text, the image's name within the source
    problems         (N,) text, why an image could not be read; "" for the others
    crc32            (N, 1 or 2) uint32, zlib's, of the row of latents and of the mirrored one
    written          (N,) uint8: 0 not yet, 1 done, 2 broken image (its latents are 0)
    class_names      (K,) text
    autoencoder_*    arrays the autoencoder needs beside its spec (patch-pca's basis)

and everything else as attributes, `create_store` names them. `complete` is set after every row was
written and read back.
"""

from __future__ import annotations

import hashlib
import math
import shlex
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError
from sitcli.io import rows
from sitcli.io.files import check_version, hash_json
from sitcli.io.rows import DONE, MISSING, Rows

FORMAT = "sit-latents"
FORMAT_VERSION = 1
PROBLEM_BYTES = 96
READ_BYTES = 32_000_000  # a piece of the store read at once by checksum and statistics
ARRAY_PREFIX = "autoencoder_"


def create_store(
    path: Path,
    *,
    paths: Sequence[str],
    labels: np.ndarray,
    class_names: Sequence[str],
    row_shape: tuple[int, int, int],
    kind: str,
    flips: bool,
    autoencoder: Mapping[str, Any],
    autoencoder_arrays: Mapping[str, np.ndarray],
    scaling: float | Sequence[float],
    image_size: int,
    crop: str,
    source: str,
    source_fingerprint: str,
    vae: str,
    batch_size: int,
    precision: str,
) -> None:
    """Lay out a store of len(paths) empty rows of shape `row_shape` at `path`, replacing any.

    row_shape: (2C, h, w) for kind "moments", (C, h, w) for "latents"; labels: (N,) integers.
    vae: what --vae was given. Raises SitError as `rows.create` does.
    """
    num = len(paths)
    channels = row_shape[0] // 2 if kind == "moments" else row_shape[0]
    datasets = {"latents": ((num, *row_shape), "float16")}
    if flips:
        datasets["latents_flipped"] = ((num, *row_shape), "float16")
    datasets["crc32"] = ((num, 2 if flips else 1), "uint32")
    datasets["problems"] = ((num,), f"S{PROBLEM_BYTES}")
    identity = [source_fingerprint, autoencoder["hash"], image_size, crop, flips]
    attrs = dict(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        sit_version=__version__,
        complete=False,
        checksum="0" * 64,
        fingerprint=hash_json(identity),
        kind=kind,
        flips=flips,
        image_size=image_size,
        crop=crop,
        scaling=scaling,
        mean=[0.0] * channels,
        std=[0.0] * channels,
        autoencoder=dict(autoencoder),
        vae=vae,
        source=source,
        source_fingerprint=source_fingerprint,
        batch_size=batch_size,
        precision=precision,
    )
    arrays = dict(labels=np.asarray(labels, np.int64), paths=paths, class_names=class_names)
    arrays |= {ARRAY_PREFIX + name: array for name, array in autoencoder_arrays.items()}
    rows.create(path, datasets, attrs=attrs, arrays=arrays)


def encode_command(attrs: Mapping[str, Any], path: Path) -> str:
    """The command that makes, or goes on making, the store with these attributes."""
    words = ["sit", "encode-latents", attrs["source"], str(path), "--vae", attrs["vae"]]
    words += ["--image-size", str(attrs["image_size"]), "--crop", attrs["crop"]]
    spec = attrs["autoencoder"]
    if attrs["vae"] == "patch-pca":
        words += ["--pca-patch", str(spec["patch"])]
        words += ["--pca-channels", str(spec["latent_channels"])]
    return shlex.join(words + ([] if attrs["flips"] else ["--no-flip"]))


class LatentStore:
    """An open latent store. Items are the readable images, 0..num_items-1 in source order.

    Holds no open HDF5 file: reading goes through memory maps, in any process.
    """

    def __init__(self, file: Rows) -> None:
        attrs = file.attrs
        self.rows = file
        self.path = file.path
        self.attrs = attrs
        self.complete: bool = attrs["complete"]
        self.kind: str = attrs["kind"]
        self.has_flips: bool = attrs["flips"]
        self.image_size: int = attrs["image_size"]
        self.crop: str = attrs["crop"]
        self.source: str = attrs["source"]
        self.scaling: float | list[float] = attrs["scaling"]
        self.fingerprint: str = attrs["fingerprint"]
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
        self._scale = torch.as_tensor(self.scaling, dtype=torch.float32).reshape(-1, 1, 1)
        self._shift: float = self.autoencoder["shift"]

    @classmethod
    def open(cls, path: Path | str, *, allow_incomplete: bool = False) -> LatentStore:
        """Open the store at `path`.

        Raises SitError if there is none, it is of another kind or a newer format, or, unless
        `allow_incomplete`, it is not complete.
        """
        file = open_rows(Path(path))
        if not file.attrs["complete"] and not allow_incomplete:
            written = int(np.count_nonzero(file.written))
            raise SitError(
                f"{path} is not complete: {written} of {file.num_rows} images are encoded",
                f"go on with: {encode_command(file.attrs, file.path)}",
            )
        return cls(file)

    @property
    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """What the autoencoder needs beside its spec, by name; {} for most."""
        names = [name for name in self.rows.names if name.startswith(ARRAY_PREFIX)]
        return {name[len(ARRAY_PREFIX) :]: np.array(self.rows.array(name)) for name in names}

    def batch(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        flip: np.ndarray | None = None,
        noise: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(latents - shift) * scaling of the items `indices`: (B, C, h, w) float32 on the CPU.

        flip: (B,) bool, which to take of the mirrored image (the store must have flips).
        noise: (B, C, h, w); draws mean + std * noise from the posterior. Without it, and where the
        autoencoder is deterministic, the mode.
        """
        numbers = self._items[indices]
        # Only the mean is copied when only the mean is used.
        used = slice(None) if noise is not None else slice(self.channels)
        values = self._latents[numbers, used]
        if flip is not None and flip.any():
            if self._flipped is None:
                raise ValueError(f"{self.path} has no mirrored latents")
            values[flip] = self._flipped[numbers[flip], used]
        latents = torch.from_numpy(values).float()
        if self.kind == "moments" and noise is not None:
            mean, std = latents.chunk(2, dim=1)
            latents = torch.addcmul(mean, std, noise)
        return latents.sub_(self._shift).mul_(self._scale)

    def image_paths(self) -> list[str]:
        """Name of each item within the source."""
        return self.rows.texts("paths", self._items)

    def broken(self) -> list[tuple[str, str]]:
        """(name, reason) of each image that could not be read."""
        numbers = np.flatnonzero(self.rows.written == rows.BROKEN)
        names = self.rows.texts("paths", numbers)
        return list(zip(names, self.rows.texts("problems", numbers), strict=True))

    def num_missing(self) -> int:
        """Images not encoded yet."""
        return int(np.count_nonzero(self.rows.written == MISSING))

    def checksum(self) -> str:
        """sha256 over latents, mirrored latents and labels of all rows, read from the file."""
        digest = hashlib.sha256()
        for _, _, piece in self.pieces():
            digest.update(piece)
        digest.update(np.ascontiguousarray(self.rows.array("labels")))
        return digest.hexdigest()

    def pieces(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(0 or 1 for mirrored, first row, rows) for the whole store, some 32 MB at a time."""
        for copy, array in enumerate((self._latents, self._flipped)):
            if array is not None:
                step = max(1, READ_BYTES // array[0].nbytes)
                for start in range(0, len(array), step):
                    yield copy, start, np.ascontiguousarray(array[start : start + step])


class ReadBack:
    """One pass over a finished store. Iterate it to the end; it yields the images read so far.

    Afterwards: damaged, row numbers whose bytes are not those that were written; checksum, as
    `LatentStore.checksum`; mean and std per channel of the scaled latents that training draws,
    over items, mirrored ones too, positions and the posterior.
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
            # Broken rows are zeros: they add nothing here and are not counted below.
            values = piece.astype(np.float32)
            total += values[:, : store.channels].sum((0, 2, 3), dtype=np.float64)
            power = np.square(values).sum((0, 2, 3), dtype=np.float64)
            squares += power.reshape(-1, store.channels).sum(0)  # mean^2 and std^2
            rows_read += len(piece)
            yield rows_read // (2 if store.has_flips else 1)
        digest.update(np.ascontiguousarray(store.rows.array("labels")))
        self.checksum = digest.hexdigest()
        self._finish(total, squares)

    def _finish(self, total: np.ndarray, squares: np.ndarray) -> None:
        store = self._store
        copies = 2 if store.has_flips else 1
        count = max(1, store.num_items * copies * math.prod(store.latent_shape[1:]))
        scale = np.asarray(store.scaling, np.float64)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        self.mean: list[float] = ((mean - store.autoencoder["shift"]) * scale).tolist()
        self.std: list[float] = (std * scale).tolist()


def row_checksums(*copies: np.ndarray) -> np.ndarray:
    """The `crc32` of rows: (B, len(copies)) uint32 for float16 arrays (B, ...)."""
    return np.array([[zlib.crc32(row) for row in rows] for rows in copies], np.uint32).T


def open_rows(path: Path) -> Rows:
    """The row file of a latent store of a format this version reads, complete or not.

    Raises SitError for anything else.
    """
    if not path.is_file():
        what = "is a folder, not a latent store" if path.is_dir() else "does not exist"
        raise SitError(f"{path} {what}", "sit encode-latents FOLDER OUT.h5 writes one")
    file = Rows(path)
    if file.attrs.get("format") != FORMAT:
        raise SitError(
            f"{path} is not a latent store", "sit encode-latents FOLDER OUT.h5 writes one"
        )
    check_version(path, file.attrs["format_version"], FORMAT_VERSION)
    return file
