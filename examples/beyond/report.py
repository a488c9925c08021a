"""RESULTS.md and its plots, from results.json alone.

    python examples/beyond/report.py beyond/ [TO]

A difference to the base is taken seed by seed. It helps, or hurts, where the mean difference is
larger than the range of the differences, and otherwise lies within the spread; with three seeds
chance alone passes that in one of twelve cases. Below 0.02 it is called none.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from mechanisms import BASE, DRAWINGS, MECHANISMS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRIC = "FD[classifier]"
NONE = 0.02  # a difference that nobody would pay for
# Of every drawing what it is compared with.
PLAIN = {"base": "plain", "internal": "internal-1"}


class Results:
    """results.json, asked by mechanism and drawing."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.cells = data, data["cells"]
        self.steps, self.seeds = data["budget"]["steps"], range(data["budget"]["seeds"])

    def trained(self, name: str, *, equal: str) -> dict[int, dict[str, Any]]:
        """Seed -> the figure after as many steps as the base's, or after as much time."""
        found = {}
        for seed in self.seeds:
            cells = [c for key, c in self.cells.items() if key.startswith(f"{name}-s{seed}-")]
            at = [c for c in cells if c["step"] == self.steps]
            other = [c for c in cells if c["step"] != self.steps]
            chosen = at if equal == "steps" else other or at
            if chosen:
                found[seed] = chosen[0]
        return found

    def drawn(self, name: str) -> dict[int, dict[str, Any]]:
        keys = {seed: f"draw-{name}-s{seed}" for seed in self.seeds}
        return {seed: self.cells[key] for seed, key in keys.items() if key in self.cells}


def figure(cells: dict[int, dict[str, Any]]) -> str:
    """'5.21 ± 0.12': mean and half of the range."""
    values = [cell["fd"] for cell in cells.values()]
    if not values:
        return ""
    return f"{fmean(values):.2f} ± {(max(values) - min(values)) / 2:.2f}"


def difference(
    cells: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]
) -> tuple[str, str]:
    """('-0.42 ± 0.05', 'helps'), seed by seed."""
    seeds = sorted(cells.keys() & base.keys())
    values = [cells[seed]["fd"] - base[seed]["fd"] for seed in seeds]
    if not values:
        return "", ""
    mean, spread = fmean(values), max(values) - min(values)
    text = f"{mean:+.2f} ± {spread / 2:.2f}"
    if len(values) < 2:
        return text, "one seed"
    if abs(mean) < NONE:
        return text, "none"
    verdict = "within the spread" if abs(mean) <= spread else "helps" if mean < 0 else "hurts"
    return text, verdict


def write_report(out: Path, to: Path | None = None) -> None:
    """Read OUT/results.json; write RESULTS.md and the plots into `to`, or OUT itself."""
    to = to or out
    to.mkdir(parents=True, exist_ok=True)
    results = Results(json.loads((out / "results.json").read_text()))
    if to != out:
        shutil.copyfile(out / "results.json", to / "results.json")
    for name in ("plain", "guide2"):
        grid = out / "samples" / f"draw-{name}-s0" / "grid.png"
        if grid.exists():
            shutil.copyfile(grid, to / f"{name}.png")
    plot(results, to / "training.png")
    grids = [name for name in ("plain", "guide2") if (to / f"{name}.png").exists()]
    (to / "RESULTS.md").write_text("\n\n".join(texts(results, grids)) + "\n")


def texts(results: Results, grids: list[str]) -> list[str]:
    d = results.data
    head = [
        "# Beyond the papers, on CIFAR-10",
        f"{METRIC} of {d['budget']['num']:,} images; mean over {len(results.seeds)} seeds ± half "
        f"of their range. It is `{d['metric']}` of `sit evaluate`, against {d['num_train']:,} "
        "training images: the figure of the [design-space study](../../design-space/README.md), "
        "not FID. For scale: real held-out images have "
        f"{d['real']:.2f}, the same through the autoencoder {d['autoencoder']:.2f}.",
        f"Base: {BASE['model']} with {BASE['depth']} blocks on 8 x 8 x 8 latents, which is 16 "
        f"tokens; {results.steps} steps of {BASE['batch_size']}, AdamW, learning rate "
        f"{BASE['lr']:g} after a warm-up. Drawn by DPM-Solver++(2M) in 20 evaluations, without "
        "guidance unless said. A verdict is of the differences seed by seed: *helps* or *hurts* "
        "where the mean is larger than the range, *none* below 0.02.",
        "## Training",
        "Time is that of a step over the base's, all trainers in turn in one process on one quiet "
        "core; at equal time a mechanism trains as many more or fewer steps.",
        training_table(results),
        "![Differences to the base](training.png)",
        "## Sampling",
        "The base's checkpoints, or those with a second head, drawn in other ways. The guide of "
        "autoguidance is the same training at half of its steps.",
        sampling_table(results),
    ]
    if len(grids) == 2:
        head.append(
            "Without guidance, and with autoguidance 2 (seed 0, a class a row):\n\n"
            "![no guidance](plain.png) ![autoguidance 2](guide2.png)"
        )
    return head


def training_table(results: Results) -> str:
    base = results.trained("base", equal="steps")
    lines = [
        "| mechanism | time | equal steps | difference | | equal time | difference | |",
        "|---" * 8 + "|",
    ]
    for mechanism in MECHANISMS:
        row = [mechanism.title, f"{results.data['speeds'][mechanism.name]:.2f}"]
        for equal in ("steps", "time"):
            cells = results.trained(mechanism.name, equal=equal)
            if mechanism.name == "base":
                row += [figure(cells), "", ""]
                continue
            steps = {cell["step"] for cell in cells.values()} if equal == "time" else set()
            note = f" ({', '.join(map(str, sorted(steps)))} steps)" if steps else ""
            row += [figure(cells) + note, *difference(cells, base)]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def sampling_table(results: Results) -> str:
    lines = ["| sampling | evaluations | figure | difference | |", "|---" * 5 + "|"]
    for drawing in DRAWINGS:
        cells, plain = results.drawn(drawing.name), results.drawn(PLAIN[drawing.run])
        if not cells:
            continue
        spent = fmean(cell["evaluations"] for cell in cells.values())
        row = [drawing.title, f"{spent:g}", figure(cells)]
        own = drawing.name in PLAIN.values()
        lines.append(f"| {' | '.join([*row, *(('', '') if own else difference(cells, plain))])} |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Differences to the base at equal steps and at equal time, a dot for each seed."""
    base = results.trained("base", equal="steps")
    shown = [m for m in MECHANISMS if m.name != "base" and results.trained(m.name, equal="steps")]
    picture, axes = plt.subplots(figsize=(7, 0.8 + 0.3 * len(shown)))
    for row, mechanism in enumerate(shown):
        for offset, equal, colour in ((-0.14, "steps", "C0"), (0.14, "time", "C1")):
            cells = results.trained(mechanism.name, equal=equal)
            values = [cells[seed]["fd"] - base[seed]["fd"] for seed in cells.keys() & base.keys()]
            label = f"equal {equal}" if row == 0 else None
            axes.plot(values, [row + offset] * len(values), "o", color=colour, ms=4, label=label)
    axes.axvline(0, color="grey", lw=1)
    axes.set_yticks(range(len(shown)), [mechanism.name for mechanism in shown])
    axes.invert_yaxis()
    axes.set(xlabel=f"{METRIC}, difference to the base; left is better")
    axes.legend()
    picture.tight_layout()
    picture.savefig(path, dpi=100)
    plt.close(picture)


if __name__ == "__main__":
    write_report(*map(Path, sys.argv[1:3]))
