"""``sit evaluate --history``: a metric of every checkpoint of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Any

from sitcli.commands.evaluate.options import HISTORY_TOO, refuse_options
from sitcli.commands.evaluate.stage import evaluate
from sitcli.commands.sample.job import prepare
from sitcli.commands.sample.stage import sample
from sitcli.errors import SitError
from sitcli.events import Event, Note, Progress, Result, Stage, Table
from sitcli.images.curves import save_history
from sitcli.machine.ranks import all_agree, on_rank_0, process_group
from sitcli.machine.world import world_for
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.storage.files import write_json
from sitcli.storage.hub import local_path

FORMAT_VERSION = 1
NUM = 1000


def history(settings: EvaluateSettings) -> Stage:
    """Draw samples of every checkpoint and score them; write history.json and .png into the run.

    Every set is drawn from the same seed. Existing sets and features are used again, so an
    interrupted history goes on, and a run that grew costs only its new checkpoints.
    Raises SitError for a run without checkpoints, and the errors of `sample` and `evaluate`.
    """
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    scored: list[dict[str, Any]] = []
    told: set[str] = set()
    with process_group(world):
        run = all_agree(world, lambda: _open(settings))
        # Training may save another checkpoint meanwhile: one rank decides for all.
        for step in on_rank_0(world, run.steps):
            yield Note(f"step {step}")
            drawing = _sample_settings(settings, run, step)
            yield from _each_once(sample(drawing), told)
            file = prepare(drawing).file
            evaluation = dataclasses.replace(
                settings, history=None, samples=[file], **dict.fromkeys(HISTORY_TOO)
            )
            result = yield from _each_once(evaluate(evaluation), told)
            if world.rank == 0:
                scored.append(dict(step=step, samples=str(file), figures=result.data["figures"]))
                _write(run, scored)
    return Result() if world.rank else _report(run, scored)


def plan(settings: EvaluateSettings) -> Result:
    """What `history` would do, for --dry-run; writes nothing."""
    run = _open(settings)
    drawing = [_sample_settings(settings, run, step) for step in run.steps()]
    files = [str(prepare(each).file.parent) for each in drawing]
    summary = {
        "checkpoints": ", ".join(map(str, run.steps())),
        "samples": f"{drawing[0].num} of each",
        "would write": ", ".join([*files, str(run.path / "history.json"), "history.png"]),
    }
    data = dict(dry_run=True, steps=run.steps(), num=drawing[0].num, samples=files)
    return Result(summary=summary, data=data, next="the same command without --dry-run")


def _open(settings: EvaluateSettings) -> RunDir:
    refuse_options(settings)
    run = RunDir(local_path(settings.history))
    if not run.steps():
        what = "holds no complete checkpoint" if run.path.is_dir() else "is not there"
        raise SitError(f"the run {run.path} {what}", "name a folder below runs/")
    return run


def _sample_settings(settings: EvaluateSettings, run: RunDir, step: int) -> SampleSettings:
    return SampleSettings(
        checkpoint=run.step_path(step),
        num=settings.num or NUM,
        solver=settings.solver,
        steps=settings.steps,
        rtol=settings.rtol,
        atol=settings.atol,
        seed=settings.seed,
        gpus=settings.gpus,
        procs=settings.procs,
        device=settings.device,
    )


def _each_once(stage: Stage, told: set[str]) -> Generator[Event, None, Result]:
    """Yield the stage's events, but each note and warning only the first time."""
    while True:
        try:
            event = next(stage)
        except StopIteration as end:
            return end.value
        if not isinstance(event, Progress):
            if event.text in told:
                continue
            told.add(event.text)
        yield event


def _write(run: RunDir, scored: list[dict[str, Any]]) -> None:
    try:
        document = {"format_version": FORMAT_VERSION, "checkpoints": scored}
        write_json(run.path / "history.json", document)
    except OSError as error:
        raise SitError(f"cannot write {run.path / 'history.json'}: {error.strerror}") from None
    panels = {
        figure["metric"]: ([each["figures"][i]["value"] for each in scored], _real_line(figure))
        for i, figure in enumerate(scored[0]["figures"])
    }
    marks = open_checkpoint(run.path).history.marks
    file, steps = run.path / "history.png", [each["step"] for each in scored]
    save_history(file, steps, panels, marks=marks)


def _real_line(figure: dict[str, Any]) -> tuple[float, str] | None:
    """What as many real images get, and its name in the plot."""
    if figure["real"] is None:
        return None
    return figure["real"]["value"], f"{figure['num_samples']:,} real images"


def _report(run: RunDir, scored: list[dict[str, Any]]) -> Result:
    names = [figure["metric"] for figure in scored[0]["figures"]]
    rows = [
        [str(each["step"]), *(f"{figure['value']:.5g}" for figure in each["figures"])]
        for each in scored
    ]
    return Result(
        summary={"plot": str(run.path / "history.png")},
        tables=[Table(title="", header=["step", *names], rows=rows)],
        data={"checkpoints": scored, "plot": str(run.path / "history.png")},
        path=run.path / "history.json",
    )
