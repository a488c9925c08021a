"""The contents of a latent store's file: its datasets, attributes and checksums."""

from __future__ import annotations

import itertools
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sitcli import __version__
from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling, needs_shift, wrong_values
from sitcli.storage import rows
from sitcli.storage.files import check_version, hash_json
from sitcli.storage.rows import Rows
from sitcli.text import format_shape

FORMAT = "sit-latents"
FORMAT_VERSION = 2  # 1 unless `needs_shift`, or the autoencoder has no hash
PROBLEM_BYTES = 96
MOST_PIXELS = 1 << 16  # of an image's side
SPEC: dict[str, type | tuple] = dict(name=str, hash=(str, type(None)), shift=(int, float, list))
ARRAY_PREFIX = "autoencoder_"
KINDS = ("moments", "latents")
FEATURES, FEATURES_CRC = ("features", "features_flipped"), "features_crc32"
ATTRS: dict[str, type | tuple] = dict(
    complete=bool, checksum=str, fingerprint=str, kind=str, flips=bool, image_size=int, crop=str,
    scaling=(int, float, list), mean=list, std=list, autoencoder=dict, vae=str, source=str,
    source_fingerprint=str, batch_size=int, precision=str, sit_version=str,
)  # fmt: skip
# Optional attributes about the source, which stores of versions up to 0.7 lack: how it was listed,
# the value of --labels, what gave the labels, and hashes of the contents of its files. grown: what
# the store was before images were added to it, the oldest first: {"rows": their number, "classes",
# "fingerprint", "checksum"}. Row i stayed row i and class k class k.
SOURCE_FACTS: dict[str, type | tuple] = dict(
    source_listing=int,
    labels=str,
    labels_from=str,
    source_content=str,
    source_members=str,
    grown=list,
)
# Optional too: how latents are normalised where the autoencoder alone does not say it.
NORMALISATION: dict[str, type | tuple] = dict(shift=(int, float, list), normalize=str)
# Of `sit import-latents`: what the source was and the words of the command.
IMPORTED: dict[str, type | tuple] = dict(imported=dict)
NO_FACTS: Mapping[str, Any] = {}
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
    scaling: Scaling,
    image_size: int,
    crop: str,
    source: str,
    source_fingerprint: str,
    vae: str,
    batch_size: int,
    precision: str,
    align: Mapping[str, Any] | None = None,
    source_facts: Mapping[str, Any] = NO_FACTS,
) -> None:
    """Create a store of len(paths) empty rows of shape `row_shape` at `path`, replacing any file.

    row_shape: (2C, h, w) for kind "moments", (C, h, w) for "latents"; labels: (N,) integers.
    vae: the value of --vae; align: the spec of the features' encoder with their `shape`, None for
    a store without features. source_facts: optional attributes, see SOURCE_FACTS.
    Raises SitError if the file cannot be created or the disk cannot hold it.
    """
    channels = row_shape[0] // 2 if kind == "moments" else row_shape[0]
    identity = [source_fingerprint, autoencoder["hash"], image_size, crop, flips]
    identity += [value for key, value in source_facts.items() if key == "source_content"]
    attrs = dict(
        format=FORMAT,
        format_version=1,
        sit_version=__version__,
        complete=False,
        checksum="0" * 64,
        fingerprint=hash_json(identity),
        kind=kind,
        flips=flips,
        image_size=image_size,
        crop=crop,
        **scaling.facts(autoencoder),
        **dict.fromkeys(("mean", "std"), [0.0] * channels),
        autoencoder=dict(autoencoder),
        vae=vae,
        source=source,
        source_fingerprint=source_fingerprint,
        batch_size=batch_size,
        precision=precision,
        **source_facts,
        **({} if align is None else {"align": dict(align)}),
    )
    if needs_shift(attrs) or autoencoder["hash"] is None:
        attrs["format_version"] = FORMAT_VERSION
    arrays = dict(labels=np.asarray(labels, np.int64), paths=paths, class_names=class_names)
    arrays |= {ARRAY_PREFIX + name: array for name, array in autoencoder_arrays.items()}
    datasets = _datasets(len(paths), row_shape, copies=2 if flips else 1, align=align)
    rows.create(path, datasets, attrs=attrs, arrays=arrays)


def _datasets(
    num: int, row_shape: Sequence[int], *, copies: int, align: Mapping[str, Any] | None
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each dataset with one row per image; copies: 2 with mirrored images."""
    latents = ("latents", "latents_flipped")[:copies]
    datasets = dict.fromkeys(latents, ((num, *row_shape), "float16"))
    datasets["crc32"] = ((num, copies), "uint32")
    if align is not None:
        datasets |= dict.fromkeys(FEATURES[:copies], ((num, *align["shape"]), "float16"))
        datasets[FEATURES_CRC] = ((num, copies), "uint32")
    return datasets | {"problems": ((num,), f"S{PROBLEM_BYTES}")}


def row_datasets(file: Rows) -> list[str]:
    """The datasets whose rows are written as the images are encoded."""
    shape = file.shape("latents")[1:]
    flips, align = file.attrs["flips"], file.attrs.get("align")
    return list(_datasets(file.num_rows, shape, copies=2 if flips else 1, align=align))


def encode_command(attrs: Mapping[str, Any], path: Path) -> str:
    """The command that creates or continues the store with these attributes."""
    if "imported" in attrs:
        words = ["sit", "import-latents", attrs["source"], str(path), *attrs["imported"]["words"]]
        return shlex.join(words)
    words = ["sit", "encode-latents", attrs["source"], str(path), "--vae", attrs["vae"]]
    words += ["--image-size", str(attrs["image_size"]), "--crop", attrs["crop"]]
    spec = attrs["autoencoder"]
    if attrs["vae"] == spec.get("kind") and "patch" in spec:
        words += ["--pca-patch", str(spec["patch"])]
        words += ["--pca-channels", str(spec["latent_channels"])]
    if attrs.get("align"):
        words += ["--align-features", attrs["align"]["asked"]]
    if "normalize" in attrs:
        words += ["--normalize", attrs["normalize"]]
    if attrs.get("labels", "auto") != "auto":
        words += ["--labels", attrs["labels"]]
    return shlex.join(words + ([] if attrs["flips"] else ["--no-flip"]))


def row_checksums(*copies: np.ndarray) -> np.ndarray:
    """CRC-32 checksums (B, len(copies)) uint32 of the rows of float16 arrays (B, ...)."""
    return np.array([[zlib.crc32(row) for row in rows] for rows in copies], np.uint32).T


def open_rows(path: Path) -> Rows:
    """The row file of the latent store at `path`, complete or not.

    Raises SitError if it is missing, damaged, of a newer format or not a latent store.
    """
    hint = (
        f"make one of images: sit encode-latents FOLDER OUT.h5; or of latents: sit import-latents "
        f"{shlex.quote(str(path))} OUT.h5"
    )
    if not path.is_file():
        what = "is a folder, not a latent store" if path.is_dir() else "does not exist"
        raise SitError(f"{path} {what}", hint)
    if path.suffix in (".npy", ".npz", ".safetensors"):
        raise SitError(f"{path} is a file of arrays, not a latent store", hint)
    file = Rows(path)
    if file.attrs.get("format") != FORMAT:
        raise SitError(f"{path} is not a latent store", hint)
    file.check({}, {"format_version": int})
    check_version(path, file.attrs["format_version"], FORMAT_VERSION)
    optional = SOURCE_FACTS | NORMALISATION | IMPORTED
    file.check(DATASETS, ATTRS | {k: v for k, v in optional.items() if k in file.attrs})
    if file.attrs["flips"]:
        file.check({"latents_flipped": "f2:4"}, {})
    if "align" in file.attrs:
        names = FEATURES[: 2 if file.attrs["flips"] else 1]
        file.check(dict.fromkeys(names, "f2:4") | {FEATURES_CRC: "u4:2"}, {"align": dict})
    _check_values(file)
    return file


def _check_values(file: Rows) -> None:
    """Raise SitError for values that no store has."""
    attrs, shape = file.attrs, file.shape("latents")
    channels = shape[1] // 2 if attrs["kind"] == "moments" else shape[1]
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
    elif wrong_values(attrs["scaling"], channels, zero=False):
        wrong = f"scaling {str(attrs['scaling'])[:40]}"
    elif lacking := [k for k in SPEC if not isinstance(attrs["autoencoder"].get(k, ...), SPEC[k])]:
        wrong = f"an autoencoder without '{lacking[0]}'"
    elif wrong_values(shift := Scaling.of(attrs).shift, channels, zero=True):
        wrong = f"shift {str(shift)[:40]}"
    elif "align" in attrs and (feature_fault := _wrong_features(file)):
        wrong = feature_fault
    elif not _is_history(attrs.get("grown", []), shape[0]):
        wrong = f"a history {str(attrs['grown'])[:40]}"
    elif "class_names" not in file.names or len(file.shape("class_names")) != 1:
        wrong = "no list of classes"
    elif file.dtype("class_names").kind != "S":
        wrong = "names of classes that are not text"
    if wrong:
        raise SitError(f"{file.path} is damaged: {wrong}", "see sit inspect --verify")


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


def _is_history(grown: list[Any], num: int) -> bool:
    """Whether these are records of what a store of `num` rows was before it grew."""
    rows = [record.get("rows") if isinstance(record, dict) else None for record in grown]
    if any(isinstance(n, bool) or not isinstance(n, int) for n in rows):
        return False
    return all(a < b for a, b in itertools.pairwise([0, *rows, num]))
