"""Sample sets, which `sit sample` writes and `sit evaluate` reads.

A sample set is a folder with samples.h5 (a row file: images (N, H, W, 3) uint8, evaluations (N,)
float64, labels and seeds (N,) int64, latents (N, C, h, w) float32 on request), grid.png and
meta.json. A set of inverted images also holds the noise that gives them, noise (N, C, h, w)
float32; a set of latents alone has no images and no grid.

Format 1 kept the evaluations of all images in one attribute, which only one process can write.
Format 3 is a set whose meta names the random streams it is drawn from, which older versions do not
have: they would go on with other noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sitcli import __version__
from sitcli.errors import SitError
from sitcli.machine.seeds import STREAMS, UNRECORDED
from sitcli.storage import rows
from sitcli.storage.files import check_version, write_json
from sitcli.storage.rows import DONE, Rows

FORMAT = "sit-samples"
FORMAT_VERSION = 3
FILE = "samples.h5"
ATTRS: dict[str, type | tuple] = {"meta": dict, "complete": bool}
OPTIONAL_DATASETS = {"images": "u1:4", "evaluations": "f8", "latents": "f4:4", "noise": "f4:4"}
SAMPLE_AGAIN = "remove it and draw it again"


def file_of(path: Path) -> Path:
    """The row file of the sample set at `path`, which is its folder or the file itself."""
    return path if path.suffix == ".h5" else path / FILE


class SampleSet:
    """An open sample set; rows that have not been written are zeros."""

    def __init__(self, file: Rows) -> None:
        self.rows = file
        self.path = file.path
        self.directory = file.path.parent
        self.images = file.array("images") if "images" in file.names else None
        self.labels = np.array(file.array("labels"))
        self.seeds = np.array(file.array("seeds"))
        self.num = file.num_rows

    @property
    def meta(self) -> dict[str, Any]:
        """The settings of the images, and the network evaluations spent on those drawn so far."""
        meta = dict(self.rows.attrs["meta"])
        evaluations, images = self.evaluations
        if evaluations:
            meta |= dict(evaluations=evaluations, evaluations_per_image=evaluations / images)
        return meta

    @property
    def streams_name(self) -> str:
        """Which random streams it is drawn from: a row of `seeds.STREAMS`."""
        return self.rows.attrs["meta"].get("streams", UNRECORDED)

    @property
    def evaluations(self) -> tuple[int, int]:
        """The network evaluations spent on the images drawn so far, and the number of images."""
        if "evaluations" not in self.rows.names:
            return tuple(self.rows.attrs["evaluations"])
        done = self.done
        return round(self.rows.array("evaluations")[done].sum()), int(done.sum())

    @property
    def complete(self) -> bool:
        """Whether all images are drawn."""
        return bool(self.rows.attrs["complete"])

    @property
    def done(self) -> np.ndarray:
        """(N,) bool: which images have been drawn."""
        return self.rows.written == DONE

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        labels: np.ndarray,
        seeds: np.ndarray,
        image_size: tuple[int, int] | None,
        latent_shape: tuple[int, int, int] | None,
        noise_shape: tuple[int, int, int] | None = None,
        meta: dict[str, Any],
    ) -> SampleSet:
        """Create an empty set in the row file `path`, and open it for writing.

        image_size: height and width, None if no images are kept; latent_shape, noise_shape: None
            if no latents, or no noise of inverted images, are kept.
        Raises SitError if the file cannot be created.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets = {"evaluations": ((len(labels),), "float64")}
        if image_size is not None:
            datasets["images"] = ((len(labels), *image_size, 3), "uint8")
        if latent_shape is not None:
            datasets["latents"] = ((len(labels), *latent_shape), "float32")
        if noise_shape is not None:
            datasets["noise"] = ((len(labels), *noise_shape), "float32")
        attrs = dict(
            format=FORMAT,
            format_version=FORMAT_VERSION if "streams" in meta else 2,
            sit_version=__version__,
            complete=False,
            meta=meta,
        )
        rows.create(path, datasets, attrs=attrs, arrays=dict(labels=labels, seeds=seeds))
        return cls(Rows(path, writable=True))

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> SampleSet:
        """Open a set, complete or not, by its folder or file. Raises SitError for anything else."""
        file = Rows(file_of(path), writable=writable)
        if file.attrs.get("format") != FORMAT:
            raise SitError(f"{path} is not a sample set", "make one with sit sample")
        file.check({}, {"format_version": int})
        check_version(path, file.attrs["format_version"], FORMAT_VERSION)
        file.check({"labels": "i8", "seeds": "i8"}, ATTRS)
        if file.attrs["meta"].get("streams", UNRECORDED) not in tuple(STREAMS):
            raise SitError(f"{path} is damaged: unknown random streams", SAMPLE_AGAIN)
        for name, kind in OPTIONAL_DATASETS.items():
            if name in file.names:
                file.check({name: kind}, {})
        if not {"images", "latents"} & set(file.names):
            raise SitError(f"{path} is damaged: neither images nor latents", SAMPLE_AGAIN)
        counted = file.attrs.get("evaluations")
        if "evaluations" not in file.names and not (
            isinstance(counted, list) and [type(number) for number in counted] == [int, int]
        ):
            raise SitError(f"{path} is damaged: no 'evaluations'", SAMPLE_AGAIN)
        if "images" in file.names and (file.shape("images")[3] != 3 or 0 in file.shape("images")):
            raise SitError(
                f"{path} is damaged: its images are {file.shape('images')}", SAMPLE_AGAIN
            )
        if file.num_rows and int(file.array("labels").min()) < 0:
            raise SitError(f"{path} is damaged: a label is negative", SAMPLE_AGAIN)
        return cls(file)

    def write(self, indices: np.ndarray, *, evaluations: int, **arrays: np.ndarray) -> None:
        """Write rows of the set's datasets, see `Rows.write`.

        evaluations: the network evaluations of these rows together; a set of format 1 ignores it.
        Raises SitError if the disk is full.
        """
        if "evaluations" in self.rows.names:
            arrays["evaluations"] = np.full(len(indices), evaluations / len(indices))
        self.rows.write(indices, **arrays)

    def beside(self, name: str) -> Path:
        """The path of a further file of this set: DIR/name, or DIR/STEM.name for a STEM.h5."""
        return self.directory / (name if self.path.name == FILE else f"{self.path.stem}.{name}")

    def finish(self) -> None:
        """Write meta.json and mark the set complete."""
        write_json(self.beside("meta.json"), self.meta)
        self.rows.set_attrs(complete=True)
