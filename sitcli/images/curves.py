"""Line plots as PNG files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sitcli.storage.files import save_picture


def save_curve(
    path: Path,
    steps: Sequence[float],
    values: Sequence[float],
    *,
    label: str,
    marks: Sequence[tuple[int, str]] = (),
) -> None:
    """Write a curve and its running mean over a fiftieth of its points as a PNG.

    marks: see `draw_marks`. Raises SitError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, values, color="#9bb8d3", linewidth=0.8)
    window = max(1, len(values) // 50)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps[window - 1 :], smooth, color="#1f4e79", linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    draw_marks(axes, marks)
    save_picture(figure.savefig, path)


def draw_marks(axes: Any, marks: Sequence[tuple[int, str]], *, listed: bool = True) -> None:
    """Draw a numbered line at each (step, words); listed: say the words below the plot."""
    lines = []
    for number, (step, words) in enumerate(marks, 1):
        text = "\n    ".join(textwrap.wrap(f"{number}: from step {step} on {words}", 90))
        line = axes.axvline(step, color="#b2182b", linestyle=":", linewidth=1)
        lines.append((line, text))
        axes.annotate(
            str(number), (step, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
            textcoords="offset points", ha="center", fontsize=8, color="#b2182b",
        )  # fmt: skip
    if lines and listed:
        place = dict(loc="outside lower left", fontsize=7, frameon=False, handlelength=1)
        axes.figure.legend(*zip(*lines, strict=True), **place)


def save_history(
    path: Path,
    steps: Sequence[int],
    panels: dict[str, tuple[Sequence[float], tuple[float, str] | None]],
    *,
    marks: Sequence[tuple[int, str]] = (),
) -> None:
    """Write metrics over the training step as a PNG, one panel for each.

    panels: label -> (a value for each step, a value to compare with and its name, or None). The
    latter is a dashed line. marks: see `draw_marks`.
    Raises SitError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(panels), 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, (values, other)) in zip(grid, panels.items(), strict=True):
        axes.plot(steps, values, color="#1f4e79", marker="o", markersize=4, linewidth=1.5)
        if other is not None:
            height, name = other
            axes.axhline(height, color="#7f7f7f", linestyle="--", linewidth=1, label=name)
            axes.legend(fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        draw_marks(axes, marks, listed=axes is grid[0])
    save_picture(figure.savefig, path)


# Each row of `core.wt.WT` has its own dash pattern, readable without colour. Wide pale lines lie
# below narrow dark ones, since some curves coincide: sigma is t on the linear interpolant.
WT_STYLES: dict[str, dict] = {
    "kl": dict(color="#b2182b", linestyle="-", linewidth=1.6),
    "kl-eta": dict(color="#000000", linestyle="-", linewidth=2.6),
    "linear": dict(color="#a6cee3", linestyle="-", linewidth=5),
    "sigma": dict(color="#1f4e79", linestyle=(0, (5, 2)), linewidth=1.6),
    "sin2": dict(color="#33802e", linestyle=(0, (1, 1.5)), linewidth=2.2),
    "constant": dict(color="#7f7f7f", linestyle=(0, (9, 4)), linewidth=1.2),
    "decreasing": dict(color="#c66a00", linestyle=(0, (6, 2, 1, 2)), linewidth=1.6),
}
WT_LIMITS = 1e-3, 1e2  # w_KL is infinite at t = 1 on linear and gvp


def save_loss_and_wt(
    path: Path,
    *,
    title: str,
    eta: float,
    with_eta: set[str],
    t: Sequence[float],
    loss: Sequence[float],
    wt: dict[str, Sequence[float]],
    means: Sequence[float | None],
    counts: Sequence[float],
    kl_eta_end: float | None,
) -> None:
    """Write the velocity loss and every w_t over t, side by side, as a PNG.

    loss: the loss at the times t. means, counts: mean loss and number of losses in equal bins of t,
    with None as the mean of an empty bin. kl_eta_end: kl-eta at t = 1. They are empty or None if no
    loss was measured. with_eta: names of the w_t that depend on eta.
    Raises SitError if it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    lines = textwrap.wrap(title, 110)
    figure.suptitle("\n".join(lines), fontsize=12, parse_math=False)
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_xlabel("t (0: data, 1: noise)")
        axes.grid(alpha=0.3)
    _draw_loss(left, t, loss, means, counts)
    labels = {name: f"{name} (η = {eta:g})" if name in with_eta else name for name in wt}
    _draw_wt(right, t, wt, labels, loss, kl_eta_end, eta)
    save_picture(figure.savefig, path)


def _draw_loss(axes, t, loss, means, counts) -> None:
    axes.set_title("Velocity loss", fontsize=11)
    axes.set_ylabel("$L_t$ (squared error per latent element)")
    if not means:
        text = "no loss was measured\nduring training"
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=12)
        axes.set_yticks([])
        return
    edges = np.linspace(0, 1, len(means) + 1)
    measured = f"mean in each of {len(means)} bins ({sum(counts):,.0f} losses in all)"
    values = np.array([np.nan if mean is None else mean for mean in means])
    axes.stairs(values, edges, baseline=None, color="#7fa3c4", linewidth=2.5, label=measured)
    axes.plot(t, loss, color="black", linewidth=1.2, label="as kl-eta reads it")
    empty = "empty bin: the nearest bin's mean is used"
    for i in np.flatnonzero(np.isnan(values)):
        axes.axvspan(
            *edges[i : i + 2], facecolor="none", edgecolor="#bbbbbb", hatch="///", label=empty
        )
        empty = ""
    low, high = np.nanmin(values), np.nanmax(values)
    if 0 < low * 30 < high:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 1.25 * high or 1)
    axes.legend(fontsize=9, framealpha=0.95)


def _draw_wt(axes, t, wt, labels, loss, kl_eta_end, eta) -> None:
    axes.set_title("Diffusion coefficients of the SDE", fontsize=11)
    axes.set_ylabel("$w_t$ (variance of the noise per unit of t)")
    axes.set_yscale("log")
    low, high = WT_LIMITS
    for name, values in wt.items():
        style = WT_STYLES.get(name, {})
        axes.plot(t, values, label=labels[name], zorder=3 - style.get("linewidth", 1) / 10, **style)
    if kl_eta_end:
        low, high = min(low, kl_eta_end / 3), max(high, kl_eta_end * 3)
        label = f"kl-eta at t = 1: {kl_eta_end:.3g}"
        if math.isclose(kl_eta_end, math.sqrt(loss[-1] / (2 * eta)), rel_tol=1e-3):
            label += "\n" + r"$= \sqrt{L_1 / (2\,\eta)}$"
        dot = dict(color="black", marker="o", markersize=7, linestyle="", clip_on=False, zorder=4)
        axes.plot([1], [kl_eta_end], label=label, **dot)
    axes.set_ylim(low, high)
    axes.legend(
        loc="center left", bbox_to_anchor=(1.02, 0.5), handlelength=5, fontsize=10, frameon=False
    )
