"""Latent stores: what `sit encode-latents` writes and `sit train` reads.

A row file (sitcli/io/rows.py) with the datasets

    latents          (N, 2C, h, w) float16, mean | std of the posterior, unscaled;
                     (N, C, h, w) where the autoencoder is deterministic (attribute `kind`)
    latents_flipped  the same of the mirrored images, if the store has them
    labels           (N,) int64, all 0 when there are no classes
    paths            (N,) text, the image's name within the source
    problems         (N,) text, why an image could not be read; "" for the others
    crc32            (N, 1 or 2) uint32, zlib's, of the row of latents and of the mirrored one
    features         (N, D, rows, columns) float16, an encoder's map of each image, if the store was
                     made with --align-features; features_flipped, features_crc32: as above
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
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli import __version__
from sitcli.errors import SitError, UsageError
from sitcli.io import rows
from sitcli.io.files import check_version, hash_json
from sitcli.io.gather import Gather
from sitcli.io.rows import DONE, MISSING, Rows
from sitcli.text import format_shape

FORMAT = "sit-latents"
FORMAT_VERSION = 1
PROBLEM_BYTES = 96
MOST_PIXELS = 1 << 16  # a side
SPEC: dict[str, type | tuple] = dict(name=str, hash=str, shift=(int, float))
READ_BYTES = 32_000_000  # a piece of the store read at once by checksum and statistics
PIECE = 1 << 18  # numbers made float32 at once
ARRAY_PREFIX = "autoencoder_"
KINDS = ("moments", "latents")
FEATURES, FEATURES_CRC = ("features", "features_flipped"), "features_crc32"
ATTRS: dict[str, type | tuple] = dict(
    complete=bool, checksum=str, fingerprint=str, kind=str, flips=bool, image_size=int, crop=str,
    scaling=(int, float, list), mean=list, std=list, autoencoder=dict, vae=str, source=str,
    source_fingerprint=str, batch_size=int, precision=str, sit_version=str,
)  # fmt: skip
DATASETS = {"latents": "f2:4", "crc32": "u4:2", "problems": "S", "labels": "i8", "paths": "S"}


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
    align: Mapping[str, Any] | None = None,
) -> None:
    """Lay out a store of len(paths) empty rows of shape `row_shape` at `path`, replacing any.

    row_shape: (2C, h, w) for kind "moments", (C, h, w) for "latents"; labels: (N,) integers.
    vae: what --vae was given; align: the encoder of the features, if there are to be any, with
    their `shape`. Raises SitError as `rows.create` does.
    """
    num = len(paths)
    channels = row_shape[0] // 2 if kind == "moments" else row_shape[0]
    datasets = {"latents": ((num, *row_shape), "float16")}
    if flips:
        datasets["latents_flipped"] = ((num, *row_shape), "float16")
    datasets["crc32"] = ((num, 2 if flips else 1), "uint32")
    if align is not None:
        for name in FEATURES[: 2 if flips else 1]:
            datasets[name] = ((num, *align["shape"]), "float16")
        datasets[FEATURES_CRC] = ((num, 2 if flips else 1), "uint32")
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
    if align is not None:
        attrs["align"] = dict(align)
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
    if attrs.get("align"):
        words += ["--align-features", attrs["align"]["asked"]]
    return shlex.join(words + ([] if attrs["flips"] else ["--no-flip"]))


class _Batches:
    """What a store and several that are read as one have in common: `read`, then `scaled`."""

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
        values = self.read(indices, flip=flip, whole=noise is not None)
        return self.scaled(values, noise=noise)


class LatentStore(_Batches):
    """An open latent store. Items are the readable images, 0..num_items-1 in source order.

    Holds no open HDF5 file: reading goes through memory maps, in any process.
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
        self.sources = [self.source]
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
        self.align: dict[str, Any] | None = attrs.get("align")
        self.align_width = file.shape(FEATURES[0])[1] if self.align else None

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
        store, classes = cls(file), max(1, file.shape("class_names")[0])
        # Of incomplete stores only those ask who find out what is wrong.
        asked = not allow_incomplete and store.num_items
        if asked and not 0 <= store.labels.min() <= store.labels.max() < classes:
            raise SitError(f"{path} is damaged: labels outside its {classes} classes")
        return store

    @cached_property
    def _gather(self) -> Gather:
        names = ["latents", "latents_flipped"] if self.has_flips else ["latents"]
        return self.rows.gather(*names)

    @property
    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """What the autoencoder needs beside its spec, by name; {} for most."""
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

        flip: as in `batch`; whole: with the posterior's std, where there is one.
        """
        numbers = self._items[indices]
        copies = 0
        if flip is not None and flip.any():
            if not self.has_flips:
                raise ValueError(f"{self.path} has no mirrored latents")
            copies = flip.astype(np.int64)
        # Only the mean is copied when only the mean is used.
        used = slice(None) if whole else slice(self.channels)
        return self._gather.read(numbers, array=copies, used=used)

    @cached_property
    def _gather_features(self) -> Gather:
        return self.rows.gather(*FEATURES[: 2 if self.has_flips else 1])

    def features(
        self, indices: Sequence[int] | np.ndarray, *, flip: np.ndarray | None = None
    ) -> np.ndarray:
        """The items' features, (B, D, rows, columns) float16; flip: (B,) bool, of the mirrored."""
        copies = 0 if flip is None or not flip.any() else flip.astype(np.int64)
        return self._gather_features.read(self._items[indices], array=copies)

    def scaled(self, values: np.ndarray, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """What `batch` makes of the rows `read`; whole rows where there is noise."""
        latents = torch.empty(len(values), *self.latent_shape)
        # In pieces that stay in the processor's cache.
        size = max(1, PIECE // math.prod(values.shape[1:]))
        for start in range(0, len(values), size):
            part = slice(start, start + size)
            rows, out = torch.from_numpy(values[part]), latents[part]
            if self.kind == "moments" and noise is not None:
                mean, std = rows.float().chunk(2, dim=1)
                torch.addcmul(mean, std, noise[part], out=out)
            else:
                out.copy_(rows[:, : self.channels])
            if self._shift:
                out.sub_(self._shift)
            out.mul_(self._scale)
        return latents

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


class JoinedStores(_Batches):
    """Several stores read as one: the items of the first, then those of the second, ...

    What training needs of a `LatentStore`, under the same names. path and source are the first
    store's; paths and sources are all. Classes are joined by their names.
    """

    def __init__(self, parts: Sequence[LatentStore]) -> None:
        first = parts[0]
        self.parts = list(parts)
        self.path, self.paths = first.path, [part.path for part in parts]
        self.source, self.sources = first.source, [part.source for part in parts]
        self.kind, self.scaling, self.crop = first.kind, first.scaling, first.crop
        self.image_size, self.autoencoder = first.image_size, first.autoencoder
        self.channels, self.latent_shape = first.channels, first.latent_shape
        self.has_flips = all(part.has_flips for part in parts)
        alike = all(part.align == first.align for part in parts)
        self.align = first.align if alike else None
        self.align_width = first.align_width if alike else None
        self.fingerprint = hash_json([part.fingerprint for part in parts])
        self.class_names = _joined_classes(parts)
        self.num_classes = len(self.class_names)
        self._ends = np.cumsum([part.num_items for part in parts])
        self.num_items = int(self._ends[-1])
        number = {name: i for i, name in enumerate(self.class_names)}
        self.labels = np.concatenate(
            [
                np.array([number[name] for name in part.class_names], np.int64)[part.labels]
                if self.class_names
                else part.labels
                for part in parts
            ]
        )

    @property
    def autoencoder_arrays(self) -> dict[str, np.ndarray]:
        """As `LatentStore.autoencoder_arrays`."""
        return self.parts[0].autoencoder_arrays

    def read(
        self,
        indices: Sequence[int] | np.ndarray,
        *,
        flip: np.ndarray | None = None,
        whole: bool = True,
    ) -> np.ndarray:
        """As `LatentStore.read`."""
        channels = 2 * self.channels if whole and self.kind == "moments" else self.channels
        values = np.empty((len(indices), channels, *self.latent_shape[1:]), np.float16)
        for part, here, inside in self._owners(indices):
            flipped = None if flip is None else flip[here]
            values[here] = part.read(inside, flip=flipped, whole=whole)
        return values

    def features(
        self, indices: Sequence[int] | np.ndarray, *, flip: np.ndarray | None = None
    ) -> np.ndarray:
        """As `LatentStore.features`."""
        values = np.empty((len(indices), *self.align["shape"]), np.float16)
        for part, here, inside in self._owners(indices):
            values[here] = part.features(inside, flip=None if flip is None else flip[here])
        return values

    def _owners(
        self, indices: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[LatentStore, np.ndarray, np.ndarray]]:
        """(store, places among the indices, item numbers within it) for all that own some."""
        indices = np.asarray(indices, np.int64)
        owners = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owners):
            part, here = self.parts[number], np.flatnonzero(owners == number)
            yield part, here, indices[here] - (self._ends[number] - part.num_items)

    def scaled(self, values: np.ndarray, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """As `LatentStore.scaled`."""
        return self.parts[0].scaled(values, noise=noise)

    def image_paths(self) -> list[str]:
        """As `LatentStore.image_paths`: names within different sources."""
        return [name for part in self.parts for name in part.image_paths()]


def open_stores(paths: Sequence[Path | str]) -> LatentStore | JoinedStores:
    """The complete stores at `paths` (one or more), to be read as one.

    Raises SitError as `LatentStore.open`, UsageError for stores that do not fit together.
    """
    parts = [LatentStore.open(path) for path in paths]
    first = parts[0]
    if len(parts) == 1:
        return first
    known: dict[str, Path] = {}
    for part in parts:
        for what, value in _common_facts(part).items():
            if value != (other := _common_facts(first)[what]):
                raise UsageError(
                    f"{first.path} and {part.path} cannot be read as one: "
                    f"their {what} is {other} and {value}",
                    "give stores that were encoded alike",
                )
        if bool(part.class_names) != bool(first.class_names):
            having, lacking = (part, first) if part.class_names else (first, part)
            raise UsageError(
                f"{having.path} holds classes and {lacking.path} none",
                "give stores that all have classes, or none of which has",
            )
        if part.fingerprint in known:
            raise UsageError(
                f"{known[part.fingerprint]} and {part.path} hold the same images",
                "name each store once",
            )
        known[part.fingerprint] = part.path
    return JoinedStores(parts)


def _common_facts(store: LatentStore) -> dict[str, str]:
    """What the stores that are read as one must have in common, as an error names it."""
    spec = store.autoencoder
    return {
        "autoencoder": f"{spec['name']} ({spec['hash'][:12]})",
        "kind": store.kind,
        "scaling": str(store.scaling),
        "latent shape": format_shape(store.latent_shape),
        "image size": str(store.image_size),
        "crop": store.crop,
    }


def _joined_classes(parts: Sequence[LatentStore]) -> list[str]:
    """The common list, or the union in the order that encoding all at once would give."""
    lists = [part.class_names for part in parts]
    if all(names == lists[0] for names in lists):
        return lists[0]
    return sorted({name for names in lists for name in names})


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
    file.check({}, {"format_version": int})
    check_version(path, file.attrs["format_version"], FORMAT_VERSION)
    file.check(DATASETS, ATTRS)
    if file.attrs["flips"]:
        file.check({"latents_flipped": "f2:4"}, {})
    if "align" in file.attrs:
        names = FEATURES[: 2 if file.attrs["flips"] else 1]
        file.check(dict.fromkeys(names, "f2:4") | {FEATURES_CRC: "u4:2"}, {"align": dict})
    _check_values(file)
    return file


def _check_values(file: Rows) -> None:
    """SitError for values that no store has."""
    attrs, shape = file.attrs, file.shape("latents")
    channels = shape[1] // 2 if attrs["kind"] == "moments" else shape[1]
    scaling = np.ravel(np.asarray(attrs["scaling"], dtype=object))
    wrong = ""
    if attrs["kind"] not in KINDS:
        wrong = f"kind '{attrs['kind']}'"
    elif attrs["kind"] == "moments" and shape[1] % 2:
        wrong = f"means and deviations of {shape[1]} channels"
    elif 0 in shape or shape[2:][0] != shape[3] or not 0 < attrs["image_size"] <= MOST_PIXELS:
        wrong = f"latents {format_shape(shape)} of images of {attrs['image_size']} pixels"
    elif attrs["flips"] and file.shape("latents_flipped") != shape:
        wrong = "mirrored latents of another shape"
    elif file.shape("crc32")[1] < (2 if attrs["flips"] else 1):
        wrong = "checksums of another number of copies"
    elif len(scaling) not in (1, channels) or not all(_finite(value) for value in scaling):
        wrong = f"scaling {str(attrs['scaling'])[:40]}"
    elif lacking := [k for k in SPEC if not isinstance(attrs["autoencoder"].get(k), SPEC[k])]:
        wrong = f"an autoencoder without '{lacking[0]}'"
    elif "align" in attrs and (feature_fault := _wrong_features(file)):
        wrong = feature_fault
    elif "class_names" not in file.names or len(file.shape("class_names")) != 1:
        wrong = "no list of classes"
    elif file.dtype("class_names").kind != "S":
        wrong = "names of classes that are no text"
    if wrong:
        raise SitError(f"{file.path} is damaged: {wrong}", "sit inspect --verify says more")


def _wrong_features(file: Rows) -> str:
    align, shape = file.attrs["align"], file.shape(FEATURES[0])[1:]
    if align.get("shape") != list(shape) or 0 in shape:
        return f"features {format_shape(shape)}, not {str(align.get('shape'))[:40]}"
    if lacking := [k for k in ("name", "hash", "asked") if not isinstance(align.get(k), str)]:
        return f"features without '{lacking[0]}'"
    if file.attrs["flips"] and file.shape(FEATURES[1])[1:] != shape:
        return "features of mirrored images of another shape"
    if file.shape(FEATURES_CRC)[1] < (2 if file.attrs["flips"] else 1):
        return "checksums of another number of copies"
    return ""


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value != 0
