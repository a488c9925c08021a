"""The report of `sit sample`: its summary and the next command."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sitcli.commands.newest import newest_samples
from sitcli.commands.sample.job import Job, planned_evaluations
from sitcli.errors import SitError
from sitcli.events import Result
from sitcli.samples.sample_set import FILE, SampleSet
from sitcli.text import count


def evaluations_text(planned: tuple[int, int] | None) -> str:
    """The result of `planned_evaluations`, for people."""
    if planned is None:
        return "as dopri5 needs"
    evaluations, saved = planned
    return f"{evaluations} an image" + (f", {saved} saved by the interval" if saved else "")


def labels_text(facts: dict[str, Any]) -> str:
    """How the labels and the random numbers were chosen, for people."""
    text = "every class in turn" if facts["labels"] == "balanced" else "drawn from the seed"
    return f"{text}; image i is a function of seed {facts['seed']} and i"


def describe(facts: dict[str, Any]) -> str:
    """The sampler and its guidance, for people, from the facts of a job or a sample set."""
    text = facts["mode"].upper() + (f" {facts['solver']}" if "solver" in facts else "")
    text += (
        f", {count(facts['steps'], 'step')}" if "steps" in facts else f", rtol {facts['rtol']:g}"
    )
    text += _interval_text(facts.get("interval"), "t_end" in facts)
    if "wt" in facts:
        text += f", w_t {facts['wt']}"
    if "eta" in facts:
        text += f", eta {facts['eta']:g}"
    if facts["cfg_scale"] != 1:
        text += f", guidance {facts['cfg_scale']:g} on {facts['cfg_channels']} channels"
    if "cfg_interval" in facts:
        text += " for t in {:g} to {:g}".format(*facts["cfg_interval"])
    if "guide" in facts:
        guide = Path(facts["guide"])
        text += f", guided by {guide.parent.name}/{guide.name}, scale {facts['guide_scale']:g}"
    if "internal_scale" in facts:
        text += f", internal guidance {facts['internal_scale']:g}"
    if "t_shift" in facts:
        text += f", times shifted by {facts['t_shift']}"
    return text


def _interval_text(interval: Sequence[Any] | None, ends_early: bool) -> str:
    """Where the sampler begins and ends, if it is not at t = 1 or was asked to end early."""
    if interval is None:
        return ""
    start, end = interval[0], interval[1]
    return (f" from t = {start:.4g}" if start < 1 else "") + (
        f" to t = {end:.4g}" if ends_early else ""
    )


def result_of(samples: SampleSet, job: Job) -> Result:
    """The result of a complete sample set, with the command that evaluates it."""
    meta = samples.meta
    path = samples.directory if samples.path.name == FILE else samples.path
    summary = {
        "images": f"{samples.num}, latents only, float32",
        "sampler": describe(meta),
        "evaluations": f"{meta['evaluations_per_image']:g} an image",
        "labels": labels_text(meta),
    }
    if job.settings.cfg_interval is not None and (planned := planned_evaluations(job)):
        summary["evaluations"] += f", {planned[1]} saved by the interval"
    if samples.images is None:
        data = dict(meta, samples=str(samples.path))
        return Result(summary=summary, data=data, path=path)
    grid = samples.beside("grid.png")
    _, height, width, _ = samples.images.shape
    summary |= {"images": f"{samples.num}, {width} x {height}", "grid": str(grid)}
    if job.settings.show_path:
        summary["path"] = str(samples.beside("path.png"))
    data = dict(meta, grid=str(grid), samples=str(samples.path))
    return Result(summary=summary, data=data, path=path, next=_evaluate_command(samples.path, path))


def _evaluate_command(file: Path, path: Path) -> str:
    with contextlib.suppress(SitError):
        if newest_samples().samefile(file):
            return "sit evaluate --fid"
    return shlex.join(["sit", "evaluate", str(path), "--fid"])
