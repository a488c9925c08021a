"""Figures and grid of `sit sample --invert`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sitcli.errors import SitError
from sitcli.events import Result, Table
from sitcli.images.grid import save_grid
from sitcli.samples.sample_set import FILE, SampleSet
from sitcli.storage.files import check_version
from sitcli.text import count

FORMAT_VERSION = 1
FIGURES = "invert.json"
GRID_BANDS, GRID_COLUMNS = 3, 10


class SumsOfErrors:
    """Sums over all images, in float64 on the CPU, from which the figures are computed."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(
        self,
        x: Tensor,
        noise: Tensor,
        back: Tensor,
        originals: np.ndarray | None,
        alone: np.ndarray,
        again: np.ndarray,
    ) -> None:
        """Add a batch.

        Latents (B, C, h, w): x, its noise, and `back`, drawn again from the noise. Pictures uint8
        (B, H, W, 3): originals, `alone` decoded from x, and `again` decoded from `back`.
        """
        x, noise, back = (z.cpu().double() for z in (x, noise, back))
        new = dict(
            latents=x.numel(), x=x.sum(), xx=x.square().sum(), error=(back - x).square().sum(),
            noise=noise.sum(), noise2=noise.square().sum(),
            pixels=alone.size, alone=_squares(again, alone),
        )  # fmt: skip
        if originals is not None:
            new |= dict(original=_squares(again, originals), lost=_squares(alone, originals))
        for name, value in new.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def figures(self) -> dict[str, float | None]:
        """The figures by name. A PSNR is of the mean square over all images, None if infinite."""
        s = self.sums
        num = s["latents"]
        std = math.sqrt(max(s["xx"] / num - (s["x"] / num) ** 2, 0.0))
        rms, mean = math.sqrt(s["error"] / num), s["noise"] / num
        figures = dict(
            latent_std=std,
            latent_rms_error=rms,
            latent_relative_error=rms / std if std else None,
            psnr_to_autoencoder=_psnr(s["alone"] / s["pixels"]),
            noise_mean=mean,
            noise_std=math.sqrt(max(s["noise2"] / num - mean**2, 0.0)),
        )
        if "original" in s:
            figures |= dict(
                psnr_to_originals=_psnr(s["original"] / s["pixels"]),
                psnr_of_autoencoder_to_originals=_psnr(s["lost"] / s["pixels"]),
            )
        return figures


def _squares(a: np.ndarray, b: np.ndarray) -> float:
    """Sum of squared differences of bytes."""
    return float(np.square(a.astype(np.int64) - b).sum())


def _psnr(mean_square: float) -> float | None:
    """Peak signal-to-noise ratio of bytes, in dB; None for equal pictures."""
    return 10 * math.log10(255**2 / mean_square) if mean_square else None


def save_roundtrip_grid(path: Path, shown: list[tuple[np.ndarray | None, ...]]) -> None:
    """Write the grid: for each ten images a row of originals, of the autoencoder's pictures and of
    the round trip's.

    shown: batches of (originals or None, autoencoder, round trip), uint8 (B, H, W, 3).
    """
    columns = zip(*shown, strict=True)
    kinds = ("original", "autoencoder", "ODE and back")
    pictures = {
        kind: np.concatenate(parts)[: GRID_BANDS * GRID_COLUMNS]
        for kind, parts in zip(kinds, columns, strict=True)
        if parts[0] is not None
    }
    num = len(pictures["autoencoder"])
    width = min(num, GRID_COLUMNS)
    cells, labels = [], []
    for start in range(0, num, width):
        for kind, images in pictures.items():
            row = images[start : start + width]
            blank = np.full((width - len(row), *row.shape[1:]), 255, np.uint8)
            cells += [row, blank]
            labels.append(kind)
    save_grid(path, np.concatenate(cells), columns=width, row_labels=labels)


def describe(facts: dict[str, Any]) -> str:
    """The solver and its steps, for people."""
    text = f"ODE {facts['solver']}"
    if "steps" in facts:
        text += f", {count(facts['steps'], 'step')} up, as many down"
    end = facts["interval"][1]
    return text + (f", to t = {end:.4g}" if end < 1 else "")


def result_of(samples: SampleSet) -> Result:
    """The result of a complete round trip. Raises SitError if its figures cannot be read."""
    meta, grid = samples.meta, samples.beside("grid.png")
    figures = _read_figures(samples.beside(FIGURES))
    rms, std = figures["latent_rms_error"], figures["latent_std"]
    pictures = [("against the autoencoder alone", figures["psnr_to_autoencoder"])]
    if "psnr_to_originals" in figures:
        pictures.append(("against the originals", figures["psnr_to_originals"]))
        alone = figures["psnr_of_autoencoder_to_originals"]
        pictures.append(("autoencoder alone against the originals", alone))
    lines = [["latent, RMS error / std", f"{rms / std:.3g}" if std else "-"]]
    lines += [[f"PSNR {what}, dB", _decibels(value)] for what, value in pictures]
    lines += [["noise, mean", f"{figures['noise_mean']:.3g}"]]
    lines += [["noise, std", f"{figures['noise_std']:.3g}"]]
    summary = {
        "images": f"{samples.num}, {samples.images.shape[1]} x {samples.images.shape[2]}",
        "sampler": describe(meta),
        "evaluations": f"{meta['evaluations_per_image']:g} an image, both ways",
        "grid": str(grid),
    }
    path = samples.directory if samples.path.name == FILE else samples.path
    data = dict(meta, figures=figures, grid=str(grid), samples=str(samples.path))
    table = Table(title="", header=["round trip", "value"], rows=lines)
    return Result(summary=summary, tables=[table], data=data, path=path)


def _decibels(value: float | None) -> str:
    return "equal" if value is None else f"{value:.4g}"


def _read_figures(path: Path) -> dict[str, float | None]:
    try:
        document = json.loads(path.read_text())
        check_version(path, document["format_version"], FORMAT_VERSION)
        return document["figures"]
    except (OSError, ValueError, KeyError, TypeError):
        raise SitError(f"cannot read {path}", "remove the set and make it again") from None
