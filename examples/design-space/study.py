"""The design space of DiT and SiT on CIFAR-10, trained and scored by one command.

    python examples/design-space/study.py --data cifar10.tar --out design-space/

Type it again after an interruption: what is finished is skipped, and an unfinished training goes
on from its checkpoint. `--dry-run` says what there is to do; README.md says what it is good for.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cells import SAMPLERS, Budget, runs, sections

GROUPS = "abcdefg"
# Multiply-accumulates a second of one core of a 2025 server CPU, for the estimates alone.
TRAINING_PACE, SAMPLING_PACE = 24e9, 62e9
RUN_SECONDS, SCORE_SECONDS = 4.0, 2.0  # to begin, to save, to score


@dataclass(frozen=True)
class Study:
    """Where everything is, and how much of it there is to be."""

    out: Path
    budget: Budget
    device: str
    sampling_precision: str = "auto"

    def run_path(self, run: str, seed: int) -> Path:
        return self.out / "runs" / f"{run}-s{seed}"

    def record_path(self, run: str, seed: int, sampler: str = "") -> Path:
        """The record of a training, or of a cell."""
        return self.out / "cells" / ("-".join(filter(None, (run, f"s{seed}", sampler))) + ".json")

    def train_options(self, run: str, seed: int) -> dict[str, Any]:
        """Fields of TrainSettings that decide what is learned."""
        return self.budget.options() | runs(self.budget.size)[run] | dict(seed=seed)

    def sample_options(self, run: str, seed: int, sampler: str) -> dict[str, Any]:
        """Fields of SampleSettings that decide what is drawn."""
        return dict(SAMPLERS[sampler], num=self.budget.num, seed=seed)

    def done(self, run: str, seed: int, sampler: str = "") -> dict[str, Any] | None:
        """The record, if it was made with these very settings and did not fail."""
        wanted = dict(train=self.train_options(run, seed))
        if sampler:
            wanted["sample"] = self.sample_options(run, seed, sampler)
        try:
            record = json.loads(self.record_path(run, seed, sampler).read_text())
        except FileNotFoundError:
            return None
        kept = "error" not in record and all(record.get(k) == v for k, v in wanted.items())
        return record if kept else None


@dataclass(frozen=True)
class Job:
    """A training and all that is drawn from it."""

    run: str
    seed: int
    samplers: tuple[str, ...]
    macs: int
    train_seconds: float
    sample_seconds: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.sample_seconds


def main() -> int:
    args = parse_arguments()
    budget = replace(Budget(), size=args.size)
    given = {k: getattr(args, k) for k in ("steps", "batch_size", "lr", "num")}
    budget = replace(budget, **{k: v for k, v in given.items() if v is not None})
    study = Study(args.out.resolve(), budget.scaled(args.scale), args.device)
    if args.device == "cpu":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = plan(study, args.only, args.seeds)
    if args.dry_run:
        print_plan(study, jobs, args.workers)
        return 0
    from prepare import prepare

    facts = prepare(study.out, args.data, device=args.device, scale=args.scale)
    study = replace(study, sampling_precision=facts["sampling_precision"])
    try:
        run_all(study, jobs, args.workers)
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        results = collect(study, facts, args.seeds)
        (study.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from report import write_report

    write_report(study.out)
    print(study.out / "RESULTS.md")
    return 1 if any("error" in cell for cell in results["cells"]) else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--data", type=Path, help="images, a folder per class: a folder, a .tar or a .zip")
    option("--out", type=Path, default=Path("design-space"), help="folder for everything")
    option("--only", nargs="+", choices=GROUPS, default=list(GROUPS), metavar="GROUP")
    option("--seeds", type=int, default=3, help="trainings of every choice")
    option("--workers", type=int, default=2, help="processes, of one thread each on a CPU")
    option("--size", default="Mi", choices=["Mi", "Ti", "S"], help="size of the base network")
    option("--steps", type=int, help="training steps of every run")
    option("--batch-size", type=int, help="training batch")
    option("--lr", type=float, help="learning rate at its highest")
    option("--num", type=int, help="images drawn for a figure")
    option("--device", default="cpu", help="cpu or cuda")
    option("--scale", type=float, default=1.0, help="0.02 tries everything out in little")
    option("--dry-run", action="store_true", help="say what there is to do, and stop")
    return parser.parse_args()


# --- what there is to do -------------------------------------------------------------------------


def plan(study: Study, groups: list[str], seeds: int) -> list[Job]:
    """The jobs of these groups that are not finished, the longest first."""
    wanted: dict[str, list[str]] = {}
    for section in sections(study.budget.size):
        for row in section.rows if section.group in groups else ():
            samplers = wanted.setdefault(row.run, [])
            if row.sampler not in samplers:
                samplers.append(row.sampler)
    jobs = []
    for run, samplers in wanted.items():
        for seed in range(seeds):
            missing = tuple(s for s in samplers if study.done(run, seed, s) is None)
            if missing:
                jobs.append(_job(study, run, seed, missing))
    return sorted(jobs, key=lambda job: -job.seconds)


def _job(study: Study, run: str, seed: int, samplers: tuple[str, ...]) -> Job:
    macs, budget = count_macs(study.train_options(run, seed)), study.budget
    images = 0 if study.done(run, seed) else budget.steps * budget.batch_size
    evaluations = sum(evaluations_of(sampler) for sampler in samplers)
    # Forward and backward are three times a forward.
    training = 3 * macs * images / TRAINING_PACE + (RUN_SECONDS if images else 0)
    drawing = macs * evaluations * budget.num / SAMPLING_PACE + SCORE_SECONDS * len(samplers)
    return Job(run, seed, samplers, macs, training, drawing)


def count_macs(options: dict[str, Any]) -> int:
    """Multiply-accumulates of one evaluation for one image."""
    from prepare import CHANNELS, PATCH

    from sitcli.commands.parsing import transformer_config
    from sitcli.model.flops import total_cost

    shape = {k: v for k, v in options.items() if k in ("depth", "width", "heads", "block")}
    learned = options["model"].startswith("DiT") and "variance" not in options
    learned = learned and options.get("prediction", "noise") == "noise"
    config = transformer_config(
        options["model"],
        input_size=32 // PATCH,
        channels=CHANNELS,
        out_channels=CHANNELS * (2 if learned else 1),
        num_classes=10,
        **shape,
    )
    return total_cost(config).macs


def evaluations_of(sampler: str) -> int:
    options = SAMPLERS[sampler]
    return options["steps"] * (2 if options.get("solver") == "heun" else 1)


def print_plan(study: Study, jobs: list[Job], workers: int) -> None:
    """The work of every group by itself, and of all that was asked for."""
    print(f"{study.budget}\n")
    print(f"{'run':24} seed  GMACs  train s  samplings  draw s")
    for job in jobs:
        print(
            f"{job.run:24} {job.seed:4} {job.macs / 1e9:6.4f} {job.train_seconds:8.0f} "
            f"{len(job.samplers):10} {job.sample_seconds:7.0f}"
        )
    seconds = sum(job.seconds for job in jobs)
    print(f"\n{len(jobs)} trainings, {sum(len(job.samplers) for job in jobs)} cells")
    if study.device == "cpu":
        minutes = seconds / 60
        print(f"about {minutes:.0f} core-minutes, {minutes / workers:.0f} on {workers} cores")


# --- doing it ------------------------------------------------------------------------------------


def run_all(study: Study, jobs: list[Job], workers: int) -> None:
    """All jobs in worker processes; a line for each cell. KeyboardInterrupt once all have left."""
    (study.out / "cells").mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    total, started, done = sum(job.seconds for job in jobs), time.monotonic(), 0.0
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    with concurrent.futures.ProcessPoolExecutor(
        max(1, min(workers, len(jobs))), context, _begin_worker, (stop,)
    ) as pool:
        try:
            futures = {pool.submit(work, study, job): job for job in jobs}
            for future in concurrent.futures.as_completed(futures):
                job = futures[future]
                done += job.seconds
                left = (total - done) * (time.monotonic() - started) / done
                future.result()
                number = sum(f.done() for f in futures)
                print(f"[{number}/{len(jobs)}] about {left / 60:.0f} min left", flush=True)
        except KeyboardInterrupt:
            stop.set()
            for process in multiprocessing.active_children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)


def _begin_worker(stop: Any) -> None:
    """Leave the terminal's group, so that Ctrl-C comes once, from the parent."""
    global _stop
    _stop = stop
    os.setpgrp()
    import torch

    if os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def work(study: Study, job: Job) -> None:
    """One job, in a worker: train, then draw and score; prints a line for each cell."""
    name = f"{job.run} s{job.seed}"
    for sampler in ("", *job.samplers):
        if _stop.is_set():
            raise KeyboardInterrupt
        if study.done(job.run, job.seed, sampler):
            continue
        record: dict[str, Any] = dict(run=job.run, seed=job.seed)
        record["train"] = study.train_options(job.run, job.seed)
        if sampler:
            record |= dict(sampler=sampler)
            record["sample"] = study.sample_options(job.run, job.seed, sampler)
        try:
            if sampler:
                record |= draw_and_score(study, job, sampler)
                line = f"{name} {sampler}: {record['metric']} {record['fd']:.3f}"
            else:
                record |= train(study, job)
                line = f"{name}: loss {record['loss']:.4f}, {record['train_seconds']:.0f} s"
        except Exception as error:
            if type(error).__name__ == "Interrupted" or _stop.is_set():
                raise KeyboardInterrupt from None
            # One choice that cannot be trained or drawn is a result too.
            record["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
            line = f"{name} {sampler}: {record['error']}"
            if os.environ.get("SIT_DEBUG") == "1":
                traceback.print_exc()
        path = study.record_path(job.run, job.seed, sampler)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, path)
        print(line, flush=True)
        if "error" in record and not sampler:
            return


def train(study: Study, job: Job) -> dict[str, Any]:
    """`sit train` to its end, or on from where it was left."""
    from prepare import finish

    from sitcli.commands.train.stage import train as stage
    from sitcli.model.flops import total_cost
    from sitcli.runs.checkpoint import open_checkpoint
    from sitcli.settings.train import TrainSettings

    path, started = study.run_path(job.run, job.seed), time.monotonic()
    settings = TrainSettings(
        latents=study.out / "train.h5",
        out=path,
        **study.train_options(job.run, job.seed),
        # At these sizes a CPU trains no faster in bf16.
        precision="fp32" if study.device == "cpu" else "auto",
        save_every=max(1, math.ceil(study.budget.steps / 3)),
        keep=1,
        sample_every=0,
        log_every=min(100, study.budget.steps),
        device=study.device,
    )
    result = finish(stage(settings))
    cost = total_cost(open_checkpoint(path).config)
    return dict(
        loss=result.data["loss"],
        train_seconds=time.monotonic() - started,
        params=cost.params,
        gmacs=cost.macs / 1e9,
    )


def draw_and_score(study: Study, job: Job, sampler: str) -> dict[str, Any]:
    """`sit sample`, then `sit evaluate`."""
    from prepare import finish, score

    from sitcli.commands.sample.stage import sample as stage
    from sitcli.settings.sample import SampleSettings

    run, started = study.run_path(job.run, job.seed), time.monotonic()
    settings = SampleSettings(
        checkpoint=run,
        out=study.out / "samples" / f"{run.name}-{sampler}",
        **study.sample_options(job.run, job.seed, sampler),
        precision=study.sampling_precision,
        batch_size=125 if study.device == "cpu" else 1000,
        device=study.device,
    )
    result = finish(stage(settings))
    figure = score(study.out, result.path)
    return dict(
        metric=figure["metric"],
        fd=figure["value"],
        floor=figure["floor"],
        num=figure["num_samples"],
        evaluations=result.data["evaluations_per_image"],
        sample_seconds=time.monotonic() - started,
    )


def collect(study: Study, facts: dict[str, Any], seeds: int) -> dict[str, Any]:
    """results.json: the study's facts and the records of all its cells."""
    cells = []
    for row in (row for section in sections(study.budget.size) for row in section.rows):
        for seed in range(seeds):
            trained = study.record_path(row.run, seed)
            drawn = study.record_path(row.run, seed, row.sampler)
            records = [json.loads(path.read_text()) for path in (trained, drawn) if path.exists()]
            if len(records) == 2 or any("error" in record for record in records):
                cell = {k: v for record in records for k, v in record.items()}
                cell["sampler"] = row.sampler
                if cell not in cells:
                    cells.append(cell)
    versions = {name: importlib.metadata.version(name) for name in ("sitcli", "torch")}
    return dict(facts, budget=asdict(study.budget), versions=versions, cells=cells)


if __name__ == "__main__":
    sys.exit(main())
