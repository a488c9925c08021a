"""`sit bench train`: real training steps beside the products' rate, and the largest batch."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable
from typing import Any

import torch

from sitcli.commands.bench.job import BenchJob, prepared
from sitcli.commands.bench.parts import time_parts
from sitcli.commands.bench.products import Operands, products_of, products_rate
from sitcli.commands.bench.report import describe, facts_of, result_of
from sitcli.commands.train.trainer import Trainer
from sitcli.engine.engine import join_group
from sitcli.errors import SitError
from sitcli.events import Note, Progress, Result, Stage, Table
from sitcli.machine.devices import peak_memory
from sitcli.machine.world import World
from sitcli.settings.tools import BenchSettings
from sitcli.text import format_bytes

TRAIN_STEPS = 2  # in a round
ENOUGH = 0.97  # of the fastest batch size's speed
MEMORY = 0.8  # share of a CPU's memory from which on no larger batch is tried


# --- training -------------------------------------------------------------------------------------


def train(settings: BenchSettings) -> Stage:
    """Time training steps, their matrix products, and the parts of a step."""
    with prepared(settings) as bench:
        if settings.find_batch:
            return (yield from _find_batch(bench))
        join_group(World(0, 1), bench.device)
        yield Note("warming up")
        trainer = Trainer(bench.job, World(0, 1))
        try:
            trainer.train_step()
            operands = Operands(bench, products_of(bench, training=True), bench.job.dtype)
            steps, peaks, spent = [], [], []
            for number in range(settings.rounds):
                yield Progress(done=number, total=settings.rounds, unit="rounds")
                peaks.append(products_rate(operands.measure()))
                run = bench.seconds(lambda: [trainer.train_step() for _ in range(TRAIN_STEPS)])
                steps.append(run / TRAIN_STEPS)
                spent.append(_phases(bench, trainer))
            memory = peak_memory(bench.device)
            yield Note("measuring the parts of the network, each alone")
            parts = time_parts(bench, training=True)
        finally:
            trainer.close()
    phases = {name: statistics.median(one[name] for one in spent) for name in spent[0]}
    inside = phases.pop("network")
    rows = parts | {"loss and the rest": max(0.0, inside - sum(parts.values()))} | phases
    title = "A training step" + (", the network's parts compiled" if bench.job.compiled else "")
    return result_of(
        bench, bench.job.step_flops, steps, peaks, rows, title=title, what="a step",
        more={"peak memory": format_bytes(memory)}, data=dict(peak_memory_bytes=memory),
    )  # fmt: skip


def _phases(bench: BenchJob, trainer: Trainer) -> dict[str, float]:
    """Phase -> seconds, in one training step that waits for the device after each phase."""
    phases = {
        "data": (trainer.feed, "get"),
        "optimizer": (trainer.engine, "step"),
        "average": (trainer.ema, "update"),
    }
    spent = dict.fromkeys(phases, 0.0)

    def watched(name: str, call: Callable) -> Callable:
        def run(*args: Any, **more: Any) -> Any:
            found: list[Any] = []
            spent[name] += bench.seconds(lambda: found.append(call(*args, **more)))
            return found[0]

        return run

    for name, (owner, method) in phases.items():
        setattr(owner, method, watched(name, getattr(owner, method)))
    try:
        total = bench.seconds(trainer.train_step)
    finally:
        for owner, method in phases.values():
            delattr(owner, method)
    return {"network": total - sum(spent.values()), **spent}


def _find_batch(bench: BenchJob) -> Stage:
    """Try batch sizes from 1 on, doubling, until memory is short or nothing is gained."""
    join_group(World(0, 1), bench.device)
    rows: list[dict[str, float]] = []
    batch, stopped = 1, ""
    while not stopped:
        yield Progress(done=len(rows), total=len(rows) + 1, unit="sizes", text=f"batch {batch}")
        try:
            rows.append(_try_batch(bench.sized(batch)) | dict(batch_size=batch))
        except torch.OutOfMemoryError:
            stopped = f"a batch of {batch} does not fit"
            break
        memory, rates = rows[-1]["memory"], [row["images_per_second"] for row in rows]
        if bench.device.type == "cpu" and 2 * memory > MEMORY * _memory():
            stopped = "twice as many might not fit in the memory"
        elif len(rates) > 2 and max(rates[-2:]) < max(rates[:-2]) / ENOUGH:
            stopped = "larger batches are not faster"
        batch *= 2
    if not rows:
        raise SitError("not even a batch of one image fits", "use a smaller --model")
    best = max(row["images_per_second"] for row in rows)
    chosen = next(row for row in rows if row["images_per_second"] >= ENOUGH * best)
    table = Table(
        title="Batch sizes",
        header=["batch", "images/s", "of the fastest", "memory"],
        rows=[
            [
                str(row["batch_size"]),
                f"{row['images_per_second']:.4g}",
                f"{row['images_per_second'] / best:.0%}",
                format_bytes(row["memory"]),
            ]
            for row in rows
        ],
    )
    size = chosen["batch_size"]
    summary = describe(bench) | {"stopped": stopped, "suggested": f"--batch-size {size}"}
    summary.pop("batch")
    data = facts_of(bench) | dict(sizes=rows, suggested=size)
    return Result(summary=summary, tables=[table], data=data)


def _try_batch(bench: BenchJob) -> dict[str, float]:
    """Images per second and peak memory of a few steps."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    trainer = Trainer(bench.job, World(0, 1))
    try:
        trainer.train_step()
        seconds = [bench.seconds(trainer.train_step) for _ in range(3)]
        memory = peak_memory(bench.device)
    finally:
        trainer.close()
        del trainer
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return dict(images_per_second=bench.batch / statistics.median(seconds), memory=memory)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
