"""RESULTS.md and the plots, from results.json alone.

    python examples/design-space/report.py design-space/ [TO]

Verdicts. The trainings of a seed share their images and noise, so a claim "A is better than B" is
judged by the differences d = FD(A) - FD(B) of the seeds both have: it is reproduced, or
contradicted, where |mean d| is larger than the range of d, and otherwise a tie, which is all that
a claim of likeness says. With three seeds chance alone passes that in one of twelve cases, with two
in three of ten; one seed decides nothing.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from cells import Claim, Row, Section, sections

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METRIC = "FD[classifier]"


class Results:
    """results.json, asked by row."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.cells = {(c["run"], c["sampler"], c["seed"]): c for c in data["cells"]}

    def of(self, row: Row) -> list[dict[str, Any]]:
        """The cells of a row, seed by seed."""
        return [c for (run, sampler, _), c in self.cells.items() if (run, sampler) == row_key(row)]

    def distances(self, row: Row) -> dict[int, float]:
        """Seed -> distance, of those that have one."""
        return {cell["seed"]: cell["fd"] for cell in self.of(row) if "fd" in cell}

    def mean(self, row: Row) -> float:
        values = self.distances(row).values()
        return fmean(values) if values else math.nan

    def half_range(self, row: Row) -> float:
        values = self.distances(row).values()
        return (max(values) - min(values)) / 2 if values else math.nan


def row_key(row: Row) -> tuple[str, str]:
    return row.run, row.sampler


def write_report(out: Path, to: Path | None = None) -> None:
    """Read OUT/results.json; write RESULTS.md and the plots into `to`, or OUT itself."""
    to = to or out
    to.mkdir(parents=True, exist_ok=True)
    results = Results(json.loads((out / "results.json").read_text()))
    if to != out:
        shutil.copyfile(out / "results.json", to / "results.json")
    tables = sections(results.data["budget"]["size"])
    grid = out / "samples" / "base-s0-ode" / "grid.png"
    if grid.exists():
        shutil.copyfile(grid, to / "grid.png")
    plots = {"a": plot_costs, "f": plot_evaluations}
    parts = [_head(results, (to / "grid.png").exists()), _summary(results, tables)]
    for section in tables:
        if any(results.distances(row) for row in section.rows):
            name = f"{section.group}.png"
            plots.get(section.group, plot_bars)(results, section, to / name)
            parts.append(_section(results, section, name))
    (to / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


# --- text ----------------------------------------------------------------------------------------


def _head(results: Results, has_grid: bool) -> str:
    d, budget = results.data, results.data["budget"]
    lines = [
        "# The design space on CIFAR-10",
        f"{METRIC} of {budget['num']:,} images, without guidance; mean over the seeds ± half of "
        f"their range. It is `{d['metric']}` of `sit evaluate`: the Frechet distance, against the "
        f"{d['num_train']:,} training images, in the features of a classifier that tells "
        f"{d['classifier_accuracy']:.1%} of {d['num_test']:,} held-out images right. It is not "
        "FID: it orders the rows of these tables, and compares with nothing else. The papers' "
        "figures are FIDs on ImageNet 256, for their order alone.",
        f"For scale: 1,000 held-out images have {d['real']:.3f}, the same through the autoencoder "
        f"{d['autoencoder']:.3f} (what a perfect network would reach), one half of the training "
        f"images against the other {d['floor']:.3f}.",
        f"Every training: {budget['steps']:,} steps of {budget['batch_size']}, AdamW, learning "
        f"rate {budget['lr']:g} with warm-up and cosine. Images are drawn by the ODE, Heun, 50 "
        "evaluations, where nothing else is said.",
    ]
    if has_grid:
        lines.append("![Images of the base network, a class a row](grid.png)")
    return "\n\n".join(lines)


def _summary(results: Results, tables: tuple[Section, ...]) -> str:
    counts: dict[str, int] = {}
    rows = []
    for section in tables:
        for claim in section.claims:
            verdict, numbers = judge(results, section, claim)
            if verdict:
                counts[verdict] = counts.get(verdict, 0) + 1
                rows.append(f"| {section.group} | {claim.text} | {numbers} | {verdict} |")
    total = ", ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))
    rule = (
        "A claim is judged by the differences of the seeds: reproduced or contradicted where the "
        "mean difference is larger than the range of the differences, else a tie, which is what a "
        "claim that two are alike says. With three seeds, chance alone passes this in one of "
        "twelve cases."
    )
    head = [
        "| | the papers' claim | ours, difference ± half its range | verdict |",
        "|---" * 4 + "|",
    ]
    return "\n\n".join(["## Verdicts", f"{total}. {rule}", "\n".join([*head, *rows])])


def judge(results: Results, section: Section, claim: Claim) -> tuple[str, str]:
    """The verdict on a claim and the figures behind it; ("", "") if they are not there."""
    by_name = {row.name: row for row in section.rows}
    better, worse = by_name[claim.better], by_name[claim.worse]
    a, b = results.distances(better), results.distances(worse)
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return "", ""
    differences = [a[seed] - b[seed] for seed in seeds]
    mean, spread = fmean(differences), max(differences) - min(differences)
    numbers = f"{results.mean(better):.3f} against {results.mean(worse):.3f}: {mean:+.3f}"
    if len(seeds) == 1:
        return "one seed", numbers
    differs = abs(mean) > spread
    if claim.tie:
        verdict = "contradicted" if differs else "tie"
    else:
        verdict = "tie" if not differs else "reproduced" if mean < 0 else "contradicted"
    return verdict, f"{numbers} ± {spread / 2:.3f}"


def _section(results: Results, section: Section, plot: str) -> str:
    table = _matrix if section.rows[0].column else _list
    claims = []
    for claim in section.claims:
        verdict, numbers = judge(results, section, claim)
        if verdict:
            claims.append(f"- {claim.text}: **{verdict}** ({numbers})")
    parts = [f"## ({section.group}) {section.title}", section.text, table(results, section)]
    if section.group == "a":
        parts.append(_correlation(results, section))
    parts += ["\n".join(claims), f"![{section.title}]({plot})"]
    return "\n\n".join(filter(None, parts))


def _list(results: Results, section: Section) -> str:
    lines = [
        f"| choice | {METRIC} | GMACs | M parameters | seeds | papers' FID |",
        "|---|---|---|---|---|---|",
    ]
    for row in section.rows:
        cells = results.of(row)
        paper = "" if row.paper is None else f"{row.paper:.4g}"
        if row.paper_label:
            paper += f" ({row.paper_label}, {row.paper_gmacs:g} GMACs)"
        gmacs = f"{cells[0]['gmacs']:.4f}" if cells and "gmacs" in cells[0] else ""
        params = f"{cells[0]['params'] / 1e6:.2f}" if cells and "params" in cells[0] else ""
        seeds = len(results.distances(row))
        lines.append(
            f"| {row.label} | {_figure(results, row)} | {gmacs} | {params} | {seeds} | {paper} |"
        )
    return "\n".join(lines)


def _matrix(results: Results, section: Section) -> str:
    columns = list(dict.fromkeys(row.column for row in section.rows))
    labels = list(dict.fromkeys(row.label for row in section.rows))
    by_place = {(row.label, row.column): row for row in section.rows}
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label in labels:
        words = [label]
        for column in columns:
            row = by_place.get((label, column))
            words.append("" if row is None else _figure(results, row))
            if row is not None and row.paper is not None:
                words[-1] += f" (papers: {row.paper:.4g})"
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def _figure(results: Results, row: Row) -> str:
    cells, distances = results.of(row), results.distances(row)
    failed = [cell["error"] for cell in cells if "error" in cell]
    text = ""
    if distances:
        text = f"{results.mean(row):.3f}"
        if len(distances) > 1:
            text += f" ± {results.half_range(row):.3f}"
    if failed:
        text += f" {len(failed)} failed: {failed[0]}"
    return text.strip()


def _correlation(results: Results, section: Section) -> str:
    points = _costs(results, section)
    if len(points) < 3:
        return ""
    ours = pearson([(math.log(gmacs), math.log(fd)) for gmacs, fd, _ in points])
    theirs = pearson([(math.log(r.paper_gmacs), math.log(r.paper)) for _, _, r in points])
    return f"Correlation of log distance with log GMACs: {ours:.2f} (the papers: {theirs:.2f})."


def pearson(points: list[tuple[float, float]]) -> float:
    """The correlation coefficient of the pairs."""
    mean_x, mean_y = (fmean(values) for values in zip(*points, strict=True))
    products = [
        ((x - mean_x) ** 2, (x - mean_x) * (y - mean_y), (y - mean_y) ** 2) for x, y in points
    ]
    xx, xy, yy = (sum(values) for values in zip(*products, strict=True))
    return xy / math.sqrt(xx * yy)


# --- plots ---------------------------------------------------------------------------------------


def _costs(results: Results, section: Section) -> list[tuple[float, float, Row]]:
    return [
        (results.of(row)[0]["gmacs"], results.mean(row), row)
        for row in section.rows
        if results.distances(row)
    ]


def plot_costs(results: Results, section: Section, path: Path) -> None:
    """Distance over GMACs, a line for each size of network."""
    figure, axes = plt.subplots(figsize=(6, 4))
    lines: dict[str, list[tuple[float, float, Row]]] = {}
    for point in _costs(results, section):
        lines.setdefault(point[2].label.split("/")[0], []).append(point)
    for name, points in lines.items():
        x, y, rows = zip(*points, strict=True)
        spread = [results.half_range(row) for row in rows]
        axes.errorbar(x, y, spread, marker="o", capsize=3, label=name)
        for a, b, row in points:
            axes.annotate(row.label, (a, b), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xscale="log", xlabel="GMACs an evaluation", ylabel=METRIC, title=section.title)
    axes.margins(x=0.12)
    axes.legend()
    _save(figure, path)


def plot_evaluations(results: Results, section: Section, path: Path) -> None:
    """Distance over evaluations, a line for each sampler."""
    figure, axes = plt.subplots(figsize=(6, 4))
    for column in dict.fromkeys(row.column for row in section.rows):
        rows = [r for r in section.rows if r.column == column and results.distances(r)]
        x, y = [int(row.label) for row in rows], [results.mean(row) for row in rows]
        spread = [results.half_range(row) for row in rows]
        axes.errorbar(x, y, spread, marker="o", capsize=3, label=column)
    axes.set(xlabel="evaluations an image", ylabel=METRIC, title=section.title)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.legend()
    _save(figure, path)


def plot_bars(results: Results, section: Section, path: Path) -> None:
    """A bar for each row, with the range of the seeds."""
    rows = [row for row in section.rows if results.distances(row)]
    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.32 * len(rows)))
    columns = list(dict.fromkeys(row.column for row in rows))
    axes.barh(
        [row.name for row in rows],
        [results.mean(row) for row in rows],
        xerr=[results.half_range(row) for row in rows],
        color=[f"C{columns.index(row.column)}" for row in rows],
        capsize=3,
    )
    axes.invert_yaxis()
    axes.set(xlabel=METRIC, title=section.title)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    write_report(*map(Path, sys.argv[1:3]))
