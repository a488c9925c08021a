"""Several latent stores read as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitcli.errors import UsageError
from sitcli.latents.store import LatentStore, ReadsBatches
from sitcli.storage.files import hash_json
from sitcli.text import format_shape


class JoinedStores(ReadsBatches):
    """Several stores read as one: the items of the first, then those of the second, ...

    It has the attributes and methods of a `LatentStore` that training uses. path and source are
    the first store's; paths and sources are those of all. Classes are joined by their names.
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
        self.first_fingerprint = hash_json([part.first_fingerprint for part in parts])
        self.written_checksum = hash_json([part.written_checksum for part in parts])
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
        """The autoencoder's own arrays by name, {} for most autoencoders."""
        return self.parts[0].autoencoder_arrays

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
        channels = 2 * self.channels if whole and self.kind == "moments" else self.channels
        values = np.empty((len(indices), channels, *self.latent_shape[1:]), np.float16)
        for part, here, inside in self._owners(indices):
            flipped = None if flip is None else flip[here]
            values[here] = part.read(inside, flip=flipped, whole=whole)
        return values

    def features(
        self, indices: Sequence[int] | np.ndarray, *, flip: np.ndarray | None = None
    ) -> np.ndarray:
        """The items' features, (B, D, rows, columns) float16; flip: (B,) bool, of the mirrored."""
        values = np.empty((len(indices), *self.align["shape"]), np.float16)
        for part, here, inside in self._owners(indices):
            values[here] = part.features(inside, flip=None if flip is None else flip[here])
        return values

    def _owners(
        self, indices: Sequence[int] | np.ndarray
    ) -> Iterator[tuple[LatentStore, np.ndarray, np.ndarray]]:
        """(store, places in `indices`, item numbers in the store) for each store that has some."""
        indices = np.asarray(indices, np.int64)
        owners = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(owners):
            part, here = self.parts[number], np.flatnonzero(owners == number)
            yield part, here, indices[here] - (self._ends[number] - part.num_items)

    def scaled(self, values: np.ndarray, *, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Rows from `read` -> scaled latents (B, C, h, w) float32, see `batch`."""
        return self.parts[0].scaled(values, noise=noise)

    def check_sample(self) -> None:
        """Raise SitError if some of a few rows of a store are not what was written."""
        for part in self.parts:
            part.check_sample()

    def replaced(self) -> str:
        """What has become of the path of a store since it was opened, "" if nothing."""
        return next(filter(None, (part.replaced() for part in self.parts)), "")

    def image_paths(self) -> list[str]:
        """The name of each item within its own store's source."""
        return [name for part in self.parts for name in part.image_paths()]


def open_stores(paths: Sequence[Path | str]) -> LatentStore | JoinedStores:
    """The complete stores at `paths` (one or more), to be read as one.

    Raises SitError for a store that is missing, damaged or incomplete, UsageError for stores that
    do not fit together.
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
                "give stores that all have classes, or stores that all have none",
            )
        if part.fingerprint in known:
            raise UsageError(
                f"{known[part.fingerprint]} and {part.path} hold the same images",
                "name each store once",
            )
        known[part.fingerprint] = part.path
    return JoinedStores(parts)


def _common_facts(store: LatentStore) -> dict[str, Any]:
    """The facts that stores must share to be read as one, by the names that an error uses."""
    spec = store.autoencoder
    return {
        "autoencoder": f"{spec['name']} ({(spec['hash'] or 'unknown')[:12]})",
        "kind": store.kind,
        "scaling": store.scaling,
        "latent shape": format_shape(store.latent_shape),
        "image size": str(store.image_size),
        "crop": store.crop,
    }


def _joined_classes(parts: Sequence[LatentStore]) -> list[str]:
    """The stores' list of classes if all share one, else the sorted union of their lists.

    Encoding all images at once would give the same order. Classes that are numbers, as those of a
    dataset.json, are sorted as numbers.
    """
    lists = [part.class_names for part in parts]
    if all(names == lists[0] for names in lists):
        return lists[0]
    longest = max(lists, key=len)
    numbers = [str(number) for number in range(len(longest))]
    if all(names == numbers[: len(names)] for names in lists):
        return numbers
    return sorted({name for names in lists for name in names})
