"""One way to read images for a comparison, whatever holds them.

A sample set, a folder or archive of pictures, ADM's npz, and the pictures that a latent store was
made from all become an `ImageSet`: uint8 images of one size, read in order and not kept in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sitcli.errors import SitError, UsageError
from sitcli.images.decode import to_square
from sitcli.images.place import BrokenImage
from sitcli.images.shards import is_pattern
from sitcli.images.source import ARCHIVE_ENDINGS, Source, open_source
from sitcli.latents.store import LatentStore
from sitcli.names import Crop
from sitcli.samples.sample_set import SampleSet
from sitcli.storage.npz import Npz
from sitcli.storage.rows import Rows

READ_AHEAD = 4  # pictures per reading thread
NAME_LENGTH = 100  # of the name of several sets
PATTERN_MARKS = re.compile(r"[*?\[\]{},]+")  # they do not go into a file's name
LARGEST = 1 << 26  # pixels of an image in an npz


def open_images(path: Path, *, size: tuple[int, int] | None = None, crop: Crop = "adm") -> ImageSet:
    """The images at `path`: sample set, latent store, npz, folder, archive or shards of pictures.

    size: (height, width) of the images they will be compared with. Pictures in a folder or archive
        are cropped to a square size by `crop`, as in `sit encode-latents`; images of the other
        kinds keep their size.

    Raises SitError if `path` is absent, damaged, empty, unfinished or does not hold images.
    """
    kind = kind_of(path)
    if kind == "sample set":
        return _sample_set(path)
    if kind == "latent store":
        return _store_source(path)
    if kind == "npz":
        return _npz(path)
    return _folder(path, size, crop)


def kind_of(path: Path) -> str:
    """The kind of `path`: `sample set`, `latent store`, `npz` or `folder` (also for an archive and
    shards).

    Raises SitError if the path does not exist or is none of these.
    """
    if is_pattern(path):
        return "folder"
    if not path.exists():
        raise SitError(f"{path} does not exist")
    if path.is_dir():
        return "sample set" if (path / "samples.h5").exists() else "folder"
    if path.suffix == ".npz":
        return "npz"
    if path.suffix in ARCHIVE_ENDINGS:
        return "folder"
    names = Rows(path).names if path.suffix in (".h5", ".hdf5") else []
    if {"images", "seeds"} & set(names):
        return "sample set"
    if "latents" in names:
        return "latent store"
    raise SitError(
        f"{path} holds no images sit can read",
        "give a sample set, a latent store, a folder, archive or shards of pictures, or an .npz",
    )


def joined(sets: Sequence[ImageSet]) -> ImageSet:
    """Several sets of the same size and preparation as one, one after the other.

    Its path is a new name beside the first set: A+B.h5 for A.h5 and B.h5.
    """
    first = sets[0]
    if len(sets) == 1:
        return first
    ends = list(itertools.accumulate(images.num for images in sets))

    def read(indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        for images, end in zip(sets, ends, strict=True):
            begin = end - images.num
            yield from images.read([i - begin for i in indices if begin <= i < end])

    name = "+".join(images.path.stem for images in sets)
    if len(name) > NAME_LENGTH:
        name = f"{first.path.stem}+{len(sets) - 1}"
    return ImageSet(
        path=first.path.with_name(name + first.path.suffix),
        kind=first.kind,
        num=ends[-1],
        size=first.size,
        random_order=False,
        read=read,
        identify=lambda: _digest(*(images.fingerprint for images in sets)),
        stamp=lambda: _digest(*(images.stamp() for images in sets)),
        preparation=first.preparation,
        **_joined_labels(sets),
    )


def _joined_labels(sets: Sequence[ImageSet]) -> dict[str, Any]:
    """labels and class_names of several sets as one: classes of one name are one class."""
    if not all(images.class_names and images.labels is not None for images in sets):
        return {}
    names = list(dict.fromkeys(name for images in sets for name in images.class_names))
    number = {name: i for i, name in enumerate(names)}
    labels = [np.array([number[n] for n in s.class_names])[s.labels] for s in sets]
    return {"labels": np.concatenate(labels), "class_names": names}


def batches(images: ImageSet, indices: Sequence[int], batch_size: int) -> Iterator[torch.Tensor]:
    """The images with these increasing numbers, in batches uint8 (at most batch_size, 3, H, W)."""
    with contextlib.closing(images.read(indices)) as reader:
        while stack := list(itertools.islice(reader, batch_size)):
            yield torch.from_numpy(np.stack(stack)).permute(0, 3, 1, 2)


def _sample_set(path: Path) -> ImageSet:
    samples = SampleSet.open(path)
    if not samples.complete:
        raise SitError(f"{path} is not finished", "type its `sit sample` command again to go on")

    if samples.images is None:
        raise SitError(
            f"{path} holds latents only, no images", "draw it again without --latents-only"
        )

    def read(indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        return (samples.images[i] for i in indices)

    def identify() -> str:
        digest = hashlib.sha256(repr(samples.images.shape).encode())
        step = max(1, (1 << 24) // max(1, samples.images[0].nbytes))
        for start in range(0, samples.num, step):
            digest.update(np.ascontiguousarray(samples.images[start : start + step]))
        return digest.hexdigest()

    return ImageSet(
        path=path,
        kind="sample set",
        num=samples.num,
        size=tuple(samples.images.shape[1:3]),
        random_order=True,
        read=read,
        identify=identify,
        preparation="as they are",
        meta=dict(samples.meta),
        labels=samples.labels,
        class_names=list(samples.meta.get("class_names") or []),
    )


def _store_source(path: Path) -> ImageSet:
    store = LatentStore.open(path)
    elsewhere = "if the images moved, name their new place with --reference"
    try:
        source = open_source(Path(store.source), labels="none", listing=store.listing)
    except SitError as error:
        raise SitError(
            f"the images {path} was made from are not readable: {error.message}", elsewhere
        ) from None
    number = {item.name: i for i, item in enumerate(source.items)}
    names = store.image_paths()
    lost = [name for name in names if name not in number]
    if lost:
        raise SitError(
            f"{len(lost)} of the {len(names)} images {path} was made from are no longer in "
            f"{store.source}, {lost[0]} among them",
            elsewhere,
        )
    rows = [number[name] for name in names]

    def picture(image: Image.Image) -> np.ndarray:
        return to_square(image, store.image_size, store.crop)

    return ImageSet(
        path=path,
        kind="latent store",
        num=len(rows),
        size=(store.image_size, store.image_size),
        random_order=False,
        read=lambda indices: _read_pictures(source, [rows[i] for i in indices], picture),
        identify=lambda: _digest(store.fingerprint, source.fingerprint, source.content),
        identify_first=lambda: _digest(store.fingerprint, source.fingerprint),
        stamp=lambda: _stamp(source),
        preparation=f"crop {store.crop} to {store.image_size}, as encoded",
        labels=store.labels,
        class_names=store.class_names,
    )


def _folder(path: Path, size: tuple[int, int] | None, crop: Crop) -> ImageSet:
    try:
        source = open_source(path)
    except UsageError:  # its labels are in doubt, and the pictures do not need them
        source = open_source(path, labels="none")
    cropped = size is not None and size[0] == size[1]
    if size is None:
        with contextlib.closing(_read_pictures(source, [0], np.asarray)) as first:
            size = next(first).shape[:2]

    def picture(image: Image.Image) -> np.ndarray:
        return to_square(image, size[0], crop) if cropped else np.asarray(image)

    def read(indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        with contextlib.closing(_read_pictures(source, indices, picture)) as pictures:
            for index, image in zip(indices, pictures, strict=True):
                if image.shape[:2] != size:
                    name, (height, width) = source.items[index].name, image.shape[:2]
                    raise SitError(
                        f"{path} mixes sizes: {name} is {width}x{height}, not {size[1]}x{size[0]}",
                        "resize the images to one size",
                    )
                yield image

    recipe = f"crop {crop} to {size[0]}" if cropped else "as they are"
    return ImageSet(
        path=path,
        kind="folder",
        num=len(source.items),
        size=size,
        random_order=False,
        read=read,
        identify=lambda: _digest(source.fingerprint, source.content, recipe),
        identify_first=lambda: _digest(source.fingerprint, recipe),
        stamp=lambda: _stamp(source),
        preparation=recipe,
        labels=np.array(source.labelled.labels),
        class_names=source.class_names,
    )


def _read_pictures(
    source: Source, indices: Sequence[int], picture: Callable[[Image.Image], np.ndarray]
) -> Generator[np.ndarray, None, None]:
    """The pictures with these numbers, in order, decoded in threads.

    Threads help since Pillow releases Python's lock, and are safe since a source has no file
    position.
    """

    def load(index: int) -> np.ndarray:
        try:
            return picture(source.read(index))
        except BrokenImage as error:
            raise SitError(
                f"the picture {source.items[index].name} of {source.path}: {error}",
                "repair or remove it",
            ) from None

    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        try:
            for index in indices:
                ahead.append(pool.submit(load, index))
                if len(ahead) > READ_AHEAD * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _stamp(source: Source) -> str:
    """A text that changes whenever a file changes or is copied; the fingerprint survives copies."""
    if source.path.is_file():
        return str(source.path.stat().st_mtime_ns)
    digest = hashlib.sha256()
    for file in source.files():
        digest.update(str(file.stat().st_mtime_ns if file.exists() else 0).encode())
    return digest.hexdigest()


def _npz(path: Path) -> ImageSet:
    with Npz(path) as npz:
        if "arr_0" not in npz.names:
            raise SitError(f"{path} holds no images (no arr_0)")
        shape, dtype, fortran = npz.header("arr_0")
        identity, labels = npz.identity, None
        if "arr_1" in npz.names and npz.header("arr_1").shape == shape[:1]:
            labels = npz.read("arr_1", most=shape[0])  # ADM's sampler writes the classes there
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise SitError(
            f"{path}: arr_0 is {dtype} {shape}, not uint8 (N, height, width, 3) in C order"
        )
    if shape[1] * shape[2] > LARGEST:
        raise SitError(f"{path}: its images are {shape[2]} x {shape[1]}, too large to compare")

    def read(indices: Sequence[int]) -> Generator[np.ndarray, None, None]:
        with Npz(path) as npz:
            yield from npz.rows("arr_0", indices)

    return ImageSet(
        path=path,
        kind="npz",
        num=shape[0],
        size=shape[1:3],
        random_order=True,
        read=read,
        identify=lambda: _digest(*map(repr, identity)),
        preparation="as they are",
        labels=labels if labels is not None and labels.dtype.kind in "iu" else None,
    )


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images to compare.

    path, kind: the path and its kind (see `kind_of`). num, size: their number, (height, width).
    random_order: True if neighbouring images are independent (a sampler wrote them), False if the
    order carries meaning (a folder sorted by class).
    read: increasing indices -> the images one by one, uint8 (H, W, 3).
    identify, stamp: functions that compute `fingerprint` and a part of `version`. identify_first:
    computes the fingerprint of versions up to 0.7, if it was another.
    preparation: the crop or other change before the comparison, in words.
    meta: a sample set's settings, {} for other kinds.
    labels, class_names: class numbers (N,) or None, and the classes' names, [] if there are none.
    """

    path: Path
    kind: str
    num: int
    size: tuple[int, int]
    random_order: bool
    read: Callable[[Sequence[int]], Generator[np.ndarray, None, None]]
    identify: Callable[[], str]
    preparation: str
    stamp: Callable[[], str] = str
    identify_first: Callable[[], str] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    labels: np.ndarray | None = None
    class_names: list[str] = field(default_factory=list)

    @cached_property
    def fingerprint(self) -> str:
        """A hash that identifies the images that `read` gives.

        It covers the pixels of a sample set (which is read whole), the members' checksums of an
        npz, and the names, the sizes and a part of the contents of the pictures in a folder or
        archive, see `Source.content`.
        """
        return self.identify()

    @cached_property
    def first_fingerprint(self) -> str:
        """The fingerprint as versions up to 0.7 computed it, without the pictures' contents."""
        return self.identify_first() if self.identify_first else self.fingerprint

    @cached_property
    def version(self) -> str:
        """A hash of the fingerprint and, for pictures in a folder or archive, of their dates."""
        return _digest(self.fingerprint, self.stamp())

    @property
    def stats_folder(self) -> Path:
        """The folder for their features and statistics: STORE.stats beside STORE.h5."""
        path = self.path.resolve()
        if is_pattern(self.path):
            return path.with_name(f"{PATTERN_MARKS.sub('_', path.stem)}.stats")
        if self.kind == "sample set" and (path.is_dir() or path.name == "samples.h5"):
            return (path if path.is_dir() else path.parent) / "stats"
        return path.with_name(f"{path.name if path.is_dir() else path.stem}.stats")
