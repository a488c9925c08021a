"""Parquet shards of images, as the Hugging Face hub serves data sets.

An image column holds bytes, or {bytes, path} as the library `datasets` writes it; a label column
holds numbers, whose names the schema's metadata give. Needs pyarrow.
"""

from __future__ import annotations

import json
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from sitcli.errors import SitError, UsageError
from sitcli.images.labels import HINT, Labelled
from sitcli.images.place import BrokenImage, Format, Listed, Place
from sitcli.images.shards import by_number, check_label, holds_shards, shard_name, shards_at
from sitcli.names import Labels
from sitcli.text import first_line

IMAGE_COLUMNS = ("image", "img", "images", "jpg", "jpeg", "png", "webp", "picture", "bytes")
LABEL_COLUMNS = (
    "label", "labels", "cls", "class", "class_id", "target", "fine_label", "label_id", "category",
)  # fmt: skip
ROWS, PIECES = 16, 6  # rows that are unpacked at once, and how many such pieces are kept
SAMPLED = 16384  # bytes at a row's place that stand in for its image's
BUFFER = 1 << 17  # bytes read at once: without it pyarrow reads a column of a row group whole


class _Schema(NamedTuple):
    """What shards must agree in. label: a column or ''; class_names: None if none are given."""

    image: str
    kind: str
    label: str
    label_kind: str
    class_names: tuple[str, ...] | None


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise SitError(
            "reading .parquet files needs pyarrow", "pip install 'sitcli[parquet]'"
        ) from None
    return pyarrow


def _open(shard: Path) -> Any:
    """The shard as a ParquetFile. Raises SitError if it is damaged or cut short."""
    pyarrow = _pyarrow()
    try:
        return pyarrow.parquet.ParquetFile(shard, buffer_size=BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise SitError(
            f"{shard} is damaged or cut short: {first_line(error)}", "fetch it again"
        ) from None


def _recognises(path: Path, head: bytes) -> bool:
    if path.is_file():
        return head[:4] == b"PAR1" or path.suffix.lower() == ".parquet"
    return holds_shards(path, ".parquet")


def _listed(path: Path, labels: Labels) -> Listed:
    shards, folder = shards_at(path, ".parquet")
    names: list[str] = []
    places: list[Place] = []
    found: list[Any] = []
    first: tuple[str, _Schema] | None = None
    for shard in shards:
        name = shard_name(shard, folder)
        file = _open(shard)
        schema = _schema_of(file, name, labels)
        if first is None:
            first = name, schema
        _check_alike(*first, name, schema)
        for place in _places(file, shard, name, schema.image):
            names.append(place.file)
            places.append(place)
        if schema.label:
            found += _labels_of(file, name, schema)
    labelled = Labelled([0] * len(names), [], "none")
    if names and first[1].label:
        labelled = _labelled(found, names, folder, first[1])
    return Listed(names, places, labelled, Counter())


def _schema_of(file: Any, name: str, labels: Labels) -> _Schema:
    """The columns of a shard. Raises UsageError if it has none of images, or of labels."""
    arrow = file.schema_arrow
    features = _features(arrow)
    kinds = {field.name: str(field.type) for field in arrow}
    given = [c for c, f in features.items() if f.get("_type") == "Image" and c in kinds]
    fitting = [field.name for field in arrow if _holds_bytes(field.type)]
    given = [c for c in given if c in fitting]
    images = (given or [c for c in IMAGE_COLUMNS if c in fitting] or fitting)[:1]
    columns = ", ".join(f"{column}: {kind}" for column, kind in kinds.items())[:300]
    if not images:
        raise UsageError(
            f"{name} has no column of images, only {columns}",
            "give shards with a column 'image' of bytes, or of {bytes, path}",
        )
    if labels == "none":
        return _Schema(images[0], kinds[images[0]], "", "", None)
    classes = [c for c, f in features.items() if f.get("_type") == "ClassLabel" and c in kinds]
    label = next((c for c in LABEL_COLUMNS if c in classes), None) or next(
        iter(classes), next((c for c in LABEL_COLUMNS if c in kinds), None)
    )
    if labels == "folders":
        raise UsageError(f"--labels folders: {name} has rows, not folders", "remove --labels")
    if label is None:
        raise UsageError(
            f"{name} has no column of labels, only {columns}",
            "encode without classes: --labels none",
        )
    class_names = features.get(label, {}).get("names")
    if isinstance(class_names, dict):  # as a data card has them: by number
        class_names = [class_names[key] for key in sorted(class_names, key=int)]
    known = tuple(map(str, class_names)) if isinstance(class_names, list) else None
    return _Schema(images[0], kinds[images[0]], label, kinds[label], known)


def _holds_bytes(kind: Any) -> bool:
    """Whether values of this type are bytes, or {bytes, ...}."""
    types = _pyarrow().types
    if types.is_struct(kind):
        names = [kind.field(i).name for i in range(kind.num_fields)]
        return "bytes" in names and _holds_bytes(kind.field(names.index("bytes")).type)
    if types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_binary(kind) or types.is_large_binary(kind)


def _features(arrow: Any) -> dict[str, dict]:
    """The columns' features by the metadata of `datasets`, {} without."""
    try:
        features = json.loads((arrow.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: f for name, f in features.items() if isinstance(f, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _check_alike(first: str, one: _Schema, name: str, other: _Schema) -> None:
    """Raise UsageError if two shards disagree in a column or in the classes."""
    for what, a, b in zip(
        ("column of images", "images' type", "column of labels", "labels' type"),
        one[:4], other[:4], strict=True,
    ):  # fmt: skip
        if a != b:
            raise UsageError(
                f"{first} and {name} disagree: the {what} is {a or 'missing'} and {b or 'missing'}",
                "give shards of one data set",
            )
    if one.class_names != other.class_names:
        mine, theirs = one.class_names or (), other.class_names or ()
        differing = [
            f"class {number} is {a} and {b}"
            for number, (a, b) in enumerate(zip(mine, theirs, strict=False))
            if a != b
        ]
        how = differing[0] if differing else f"{len(mine)} and {len(theirs)} classes are named"
        raise UsageError(f"{first} and {name} disagree: {how}", "give shards of one data set")


def _places(file: Any, shard: Path, name: str, column: str) -> list[Place]:
    """A place for each row.

    size: the mean bytes of a row of its row group; offset: about where in the file it lies. more:
    the shard, the column, the row group, the row's number in it.
    """
    path, found, number = str(shard), [], 0
    for group in range(file.metadata.num_row_groups):
        facts = file.metadata.row_group(group)
        chunks = [facts.column(i) for i in range(facts.num_columns)]
        own = [c for c in chunks if c.path_in_schema.split(".")[0] == column]
        size = sum(c.total_compressed_size for c in own) // max(1, facts.num_rows)
        begin = min(
            min(o for o in (c.dictionary_page_offset, c.data_page_offset) if o) for c in own
        )
        for row in range(facts.num_rows):
            more = (path, column, group, row)
            found.append(Place(f"{name}/{number}", size, begin + row * size, more))
            number += 1
    return found


def _labels_of(file: Any, name: str, schema: _Schema) -> Sequence[Any]:
    """The labels of a shard's rows. Raises UsageError for one that is missing."""
    pyarrow = _pyarrow()
    try:
        column = file.read(columns=[schema.label], use_threads=False).column(0)
    except (pyarrow.ArrowException, OSError) as error:
        raise SitError(
            f"{name}: its labels are damaged: {first_line(error)}", "fetch it again"
        ) from None
    values = column.to_pylist()
    if column.null_count:
        raise UsageError(f"{name}/{values.index(None)} has no label: {schema.label} is null", HINT)
    return values


def _labelled(found: list[Any], names: list[str], folder: Path, schema: _Schema) -> Labelled:
    origin = f"column {schema.label}"
    if all(isinstance(value, str) for value in found):
        class_names, numbers = np.unique(np.array(found, dtype=object), return_inverse=True)
        return Labelled(numbers.tolist(), class_names.tolist(), origin)
    labels = [check_label(_plain(v), name) for v, name in zip(found, names, strict=True)]
    if schema.class_names is None:
        return by_number(labels, {}, folder, names, origin)
    highest = max(labels)
    if highest >= len(schema.class_names):
        raise UsageError(
            f"{names[labels.index(highest)]}: the label is {highest}, and the shard's metadata "
            f"name {len(schema.class_names)} classes, from 0 on",
            HINT,
        )
    return Labelled(labels, list(schema.class_names), origin)


def _plain(value: Any) -> Any:
    """A label as JSON has it; 3.0 is 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (int, float, str, list)) else str(value)


class _Piece(NamedTuple):
    """Unpacked rows of a row group, from `start` on."""

    where: tuple[str, str, int]
    start: int
    rows: Any


class RowReader:
    """Reads single rows, unpacking a few at a time: a row group is never whole in memory.

    Rows in rising order are read once; a step back begins the row group again. It can be used by
    several threads whose rows are close to each other.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: deque[_Piece] = deque(maxlen=PIECES)
        self._file: tuple[str, Any] | None = None
        self._where: tuple[str, str, int] | None = None
        self._next = 0
        self._stream: Any = None

    def read(self, place: Place) -> bytes:
        """The bytes of the image at `place`. Raises BrokenImage if the row has none."""
        shard, column, group, row = place.more
        pyarrow = _pyarrow()
        with self._lock:
            try:
                piece = self._piece((shard, column, group), row)
            except (pyarrow.ArrowException, OSError, SitError) as error:
                self._where = None
                raise BrokenImage(f"damaged in the shard: {first_line(error)}") from None
        value = piece.rows[row - piece.start].as_py()
        if isinstance(value, dict):
            if value.get("bytes") is None and value.get("path"):
                raise BrokenImage(f"no bytes, only the path {value['path']}")
            value = value.get("bytes")
        if not value:
            raise BrokenImage("no image: the row is empty")
        return value

    def _piece(self, where: tuple[str, str, int], row: int) -> _Piece:
        for piece in self._kept:
            if piece.where == where and piece.start <= row < piece.start + len(piece.rows):
                return piece
        if self._where != where or row < self._next:
            shard, column, group = where
            if self._file is None or self._file[0] != shard:
                self._file = (shard, _open(Path(shard)))
            self._stream = self._file[1].iter_batches(
                ROWS, row_groups=[group], columns=[column], use_threads=False
            )
            self._where, self._next = where, 0
        while self._next <= row:
            batch = next(self._stream, None)
            if batch is None:
                raise OSError(f"row {row} is missing")
            self._kept.append(_Piece(where, self._next, batch.column(0)))
            self._next += len(batch)
        return self._kept[-1]


def _sample(place: Place) -> bytes:
    descriptor = os.open(place.more[0], os.O_RDONLY)
    try:
        return os.pread(descriptor, min(SAMPLED, place.size), place.offset)
    finally:
        os.close(descriptor)


def _read(path: Path, opened: Callable[[], RowReader], place: Place) -> bytes:
    return opened().read(place)


FORMAT = Format(
    endings=(".parquet",),
    recognises=_recognises,
    listed=_listed,
    read=_read,
    sample=_sample,
    file=lambda path, place: Path(place.more[0]),
    open=lambda path: RowReader(),
)
