"""One array of latents in a .npy, .npz, .safetensors or zarr, and one of labels."""

from __future__ import annotations

from pathlib import Path

from sitcli.commands.import_latents.source import Source, checked_labels, is_float, needs_float
from sitcli.errors import UsageError
from sitcli.settings.latents import ImportLatentsSettings
from sitcli.storage.arrays import READERS, Array, is_zarr, open_arrays
from sitcli.text import format_shape


def find_arrays(path: Path) -> Path | None:
    """`path` if it can hold arrays."""
    return path if is_zarr(path) or (path.is_file() and path.suffix in READERS) else None


def open_array(path: Path, settings: ImportLatentsSettings) -> Source:
    """The latents (N, C, h, w) in a file, and labels from it or another file."""
    arrays = open_arrays(path)
    latents = _latents(path, arrays, settings.key)
    needs_float(latents)
    names = [f"{latents.name or path.name}:{row}" for row in range(latents.shape[0])]
    labels, num_classes = None, 0
    found = _labels(path, arrays, settings.labels)
    if found is not None:
        where = str(found.path) + (f" '{found.name}'" if found.name else "")
        values = found.read(0, found.shape[0]).numpy()
        labels, num_classes = checked_labels(values, names, where, settings.num_classes)
    elif settings.num_classes is not None:
        raise UsageError("--num-classes has no effect without labels", "remove --num-classes")
    return Source(
        path=path, layout="an array", names=names, labels=labels,
        labels_from="none" if found is None else found.name or found.path.name,
        row_shape=latents.shape[1:], moments=False, reads=[latents.read], num_classes=num_classes,
        at_once=latents.at_once,
        identity=[path.name, latents.name, list(latents.shape), str(latents.dtype)],
    )  # fmt: skip


def _latents(path: Path, arrays: dict[str, Array], key: str | None) -> Array:
    """The array to import. Raises UsageError if it is not clear which."""
    described = _described(arrays)
    if key is not None:
        if key not in arrays:
            raise UsageError(f"--key {key}: {path} holds {described}", "name one of them")
        found = [arrays[key]]
    else:
        found = [array for array in arrays.values() if len(array.shape) == 4 and is_float(array)]
    if len(found) > 1:
        raise UsageError(f"{path} holds {described}", "say which to import with --key NAME")
    if not found or len(found[0].shape) != 4 or not found[0].shape[0]:
        raise UsageError(
            f"{path} holds no latents (N, C, h, w): {described}", "name another with --key NAME"
        )
    return found[0]


def _labels(path: Path, arrays: dict[str, Array], asked: str | None) -> Array | None:
    """The array of labels; None for none. Raises UsageError if it is not clear which."""
    if asked == "none":
        return None
    if asked is not None and asked in arrays:
        return arrays[asked]
    if asked is not None:
        return _only(open_arrays(Path(asked).expanduser()), f"--labels {asked}")
    whole = {
        name: array
        for name, array in arrays.items()
        if not is_float(array) and array.shape[1:] in ((), (1,))
    }
    if not whole:
        raise UsageError(
            f"{path} holds no labels: {_described(arrays)}",
            "add --labels FILE.npy, or --labels none to import without classes",
        )
    return _only(whole, str(path))


def _only(arrays: dict[str, Array], where: str) -> Array:
    if len(arrays) != 1:
        raise UsageError(
            f"{where}: which of its arrays are the labels? It holds {_described(arrays)}",
            "say which with --labels NAME",
        )
    return next(iter(arrays.values()))


def _described(arrays: dict[str, Array]) -> str:
    described = (f"{name or 'an array'} {format_shape(a.shape)} {str(a.dtype)[6:]}" for name, a in
                 list(arrays.items())[:4])  # fmt: skip
    return ", ".join(described) or "no arrays"
