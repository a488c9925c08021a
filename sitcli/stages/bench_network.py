"""`sit bench train`, `sample` and `gemm`: a network beside its own matrix products, in turn."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sitcli.core.flow import Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.wt import wt_of
from sitcli.errors import SitError
from sitcli.events import Note, Progress, Result, Stage, Table
from sitcli.io.checkpoint import build_network
from sitcli.io.compile import CompiledNetwork
from sitcli.io.engine import join_group
from sitcli.io.launch import autocast, precision_name, resolve_device, tune_cpu
from sitcli.io.processes import World
from sitcli.model.blocks import BLOCKS
from sitcli.model.flops import Product, matrix_products, total_cost
from sitcli.model.transformer import Transformer, TransformerConfig
from sitcli.settings import BenchSettings, TrainSettings
from sitcli.stages.bench_loader import temporary_folder, write_synthetic
from sitcli.stages.train import Job, Trainer, peak_memory, prepare
from sitcli.text import count, format_bytes, format_shape

ITEMS = 512  # of the synthetic store
TRAIN_STEPS = 2  # in a round
SOLVER_STEPS = 4  # in a round
ENOUGH = 0.97  # of the fastest batch size's speed
MEMORY = 0.8  # of a CPU's, from which on no larger batch is tried
# The steps that `sit sample` takes by default.
SAMPLERS: dict[str, tuple[Ode | Sde, int]] = {
    "ODE, Heun": (Ode(solver="heun", steps=SOLVER_STEPS), 50),
    "SDE, Euler-Maruyama": (Sde(w=wt_of("sigma"), wt="sigma", steps=SOLVER_STEPS), 250),
}
# Of the guidance that is measured; half of the evaluations of SOLVER_STEPS Heun steps are inside.
SCALE, INTERVAL = 1.5, (0.3, 0.8)
# Dense bf16 operations a second, from the makers' data sheets.
DENSE_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip


@dataclass(frozen=True)
class _Task:
    """What is measured: the job of a training on this machine, and how it was asked for."""

    settings: BenchSettings
    training: TrainSettings
    job: Job

    @property
    def batch(self) -> int:
        return self.training.batch_size

    @property
    def device(self) -> torch.device:
        return self.job.device

    def seconds(self, work: Callable[[], Any]) -> float:
        """Of one call, the device's work included."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def sized(self, batch: int) -> _Task:
        """The same of another batch size."""
        training = replace(self.training, batch_size=batch)
        return _Task(self.settings, training, prepare(training, World(0, 1)))


@contextlib.contextmanager
def _task(settings: BenchSettings) -> Iterator[_Task]:
    with temporary_folder(settings.dir) as name:
        store = settings.latents
        if store is None:
            store = Path(name) / "noise.h5"
            for _ in write_synthetic(store, ITEMS):
                pass
        device = resolve_device(settings.device)
        gpu = device.type == "cuda"
        training = TrainSettings(
            model=settings.model or ("SiT-XL/2" if gpu else "SiT-S/2"),
            batch_size=settings.batch_size or (64 if gpu else 16),
            latents=[store],
            out=Path(name) / "run",
            steps=10**6,  # more than any bench takes
            sample_every=0,
            compile=settings.compile,
            tread=settings.tread,
            device=settings.device,
            precision=settings.precision,
        )
        tune_cpu(device)
        yield _Task(settings, training, prepare(training, World(0, 1)))


# --- matrix products ------------------------------------------------------------------------------


def _products(task: _Task, *, training: bool) -> list[Product]:
    products = matrix_products(task.job.config, task.batch)
    gradients = [gradient for product in products for gradient in product.gradients]
    return [*products, *(gradients if training else [])]


class _Operands:
    """The products' matrices in a dtype, and the time of each."""

    def __init__(self, task: _Task, products: list[Product], dtype: torch.dtype) -> None:
        self.task, self.products = task, products
        made = dict(device=task.device, dtype=torch.float32)
        sizes = {(p.m, p.k, p.n) for p in products}
        # The weights lie as a linear layer's do, (n, k).
        self.pairs = {
            (m, k, n): (torch.randn(m, k, **made).to(dtype), torch.randn(n, k, **made).to(dtype).T)
            for m, k, n in sizes
        }

    @torch.no_grad()
    def measure(self) -> dict[Product, float]:
        """Seconds of one product of each; the faster of two."""
        taken = {
            size: min(self.task.seconds(lambda a=a, b=b: a @ b) for _ in range(2))
            for size, (a, b) in self.pairs.items()
        }
        return {p: taken[p.m, p.k, p.n] for p in self.products}


def _rate(seconds: dict[Product, float]) -> float:
    """Operations a second over all products."""
    return 2 * sum(p.macs for p in seconds) / sum(p.count * s for p, s in seconds.items())


def gemm(settings: BenchSettings) -> Stage:
    """The matrix products of a model's training step, each size alone, in fp32 and as asked."""
    with _task(settings) as task:
        dtypes = dict.fromkeys([task.job.dtype, torch.float32])
        products = _products(task, training=True)
        operands = {dtype: _Operands(task, products, dtype) for dtype in dtypes}
        rounds: dict[torch.dtype, list[dict[Product, float]]] = {dtype: [] for dtype in dtypes}
        for number in range(settings.rounds):
            yield Progress(done=number, total=settings.rounds, unit="rounds")
            for dtype, own in operands.items():
                rounds[dtype].append(own.measure())
    names = [precision_name(dtype) for dtype in dtypes]
    rows, data = [], []
    for p in products:
        rates = [
            2 * p.m * p.k * p.n / statistics.median(one[p] for one in rounds[dtype])
            for dtype in dtypes
        ]
        rows.append([p.part, f"{p.m} x {p.k} x {p.n}", str(p.count), *map(_giga, rates)])
        data.append(p._asdict() | dict(flops_per_second=dict(zip(names, rates, strict=True))))
    totals = [statistics.median(map(_rate, rounds[dtype])) for dtype in dtypes]
    rows.append(["all", "", "", *map(_giga, totals)])
    header = ["product", "m x k x n", "times", *(f"GFLOP/s {name}" for name in names)]
    return Result(
        summary=_about(task) | {"matrix products": f"{_giga(totals[0])} GFLOP/s in {names[0]}"},
        tables=[Table(title="Matrix products of a training step", header=header, rows=rows)],
        data=_facts(task)
        | dict(products=data, flops_per_second=dict(zip(names, totals, strict=True))),
    )


# --- training -------------------------------------------------------------------------------------


def train(settings: BenchSettings) -> Stage:
    """Training steps beside the matrix products of as many, and what the parts of a step take."""
    with _task(settings) as task:
        if settings.find_batch:
            return (yield from _find_batch(task))
        join_group(World(0, 1), task.device)
        yield Note("warming up")
        trainer = Trainer(task.job, World(0, 1))
        try:
            trainer.train_step()
            operands = _Operands(task, _products(task, training=True), task.job.dtype)
            steps, peaks, spent = [], [], []
            for number in range(settings.rounds):
                yield Progress(done=number, total=settings.rounds, unit="rounds")
                peaks.append(_rate(operands.measure()))
                run = task.seconds(lambda: [trainer.train_step() for _ in range(TRAIN_STEPS)])
                steps.append(run / TRAIN_STEPS)
                spent.append(_phases(task, trainer))
            memory = peak_memory(task.device)
            yield Note("measuring the parts of the network, each alone")
            parts = _parts(task, training=True)
        finally:
            trainer.close()
    phases = {name: statistics.median(one[name] for one in spent) for name in spent[0]}
    inside = phases.pop("network")
    rows = parts | {"loss and the rest": max(0.0, inside - sum(parts.values()))} | phases
    title = "A training step" + (", the network's parts compiled" if task.job.compiled else "")
    return _result(
        task, task.job.step_flops, steps, peaks, rows, title=title, what="a step",
        more={"peak memory": format_bytes(memory)}, data=dict(peak_memory_bytes=memory),
    )  # fmt: skip


def _phases(task: _Task, trainer: Trainer) -> dict[str, float]:
    """Phase -> seconds of one training step that waits for the device at each."""
    phases = {
        "data": (trainer.feed, "get"),
        "optimizer": (trainer.engine, "step"),
        "average": (trainer.ema, "update"),
    }
    spent = dict.fromkeys(phases, 0.0)

    def watched(name: str, call: Callable) -> Callable:
        def run(*args: Any, **more: Any) -> Any:
            found: list[Any] = []
            spent[name] += task.seconds(lambda: found.append(call(*args, **more)))
            return found[0]

        return run

    for name, (owner, method) in phases.items():
        setattr(owner, method, watched(name, getattr(owner, method)))
    try:
        total = task.seconds(trainer.train_step)
    finally:
        for owner, method in phases.values():
            delattr(owner, method)
    return {"network": total - sum(spent.values()), **spent}


def _find_batch(task: _Task) -> Stage:
    """Batch sizes from 1 on, doubling, until the memory or the gain is at its end."""
    join_group(World(0, 1), task.device)
    rows: list[dict[str, float]] = []
    batch, stopped = 1, ""
    while not stopped:
        yield Progress(done=len(rows), total=len(rows) + 1, unit="sizes", text=f"batch {batch}")
        try:
            rows.append(_try_batch(task.sized(batch)) | dict(batch_size=batch))
        except torch.OutOfMemoryError:
            stopped = f"a batch of {batch} does not fit"
            break
        memory, rates = rows[-1]["memory"], [row["images_per_second"] for row in rows]
        if task.device.type == "cpu" and 2 * memory > MEMORY * _memory():
            stopped = "twice as many might not fit in the memory"
        elif len(rates) > 2 and max(rates[-2:]) < max(rates[:-2]) / ENOUGH:
            stopped = "more bring nothing"
        batch *= 2
    if not rows:
        raise SitError("not even one image fits", "a smaller --model")
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
    summary = _about(task) | {"stopped": stopped, "suggested": f"--batch-size {size}"}
    summary.pop("batch")
    data = _facts(task) | dict(sizes=rows, suggested=size)
    return Result(summary=summary, tables=[table], data=data)


def _try_batch(task: _Task) -> dict[str, float]:
    """Images/s and memory of a few steps."""
    if task.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(task.device)
    trainer = Trainer(task.job, World(0, 1))
    try:
        trainer.train_step()
        seconds = [task.seconds(trainer.train_step) for _ in range(3)]
        memory = peak_memory(task.device)
    finally:
        trainer.close()
        del trainer
        gc.collect()
        if task.device.type == "cuda":
            torch.cuda.empty_cache()
    return dict(images_per_second=task.batch / statistics.median(seconds), memory=memory)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- sampling -------------------------------------------------------------------------------------


def sample(settings: BenchSettings) -> Stage:
    """Evaluations of a network with random weights beside its matrix products, and solver steps."""
    with _task(settings) as task:
        yield Note("warming up")
        job, batch = task.job, task.batch
        network = _random_network(job.config, task)
        called = network
        if job.compiled:
            called = CompiledNetwork(network, task.device, sizes={batch, 2 * batch})
        inputs = _inputs(task)
        operands = _Operands(task, _products(task, training=False), job.dtype)
        runs = _solver_runs(task, called, inputs)
        evaluations, peaks = [], []
        taken: dict[str, list[float]] = {name: [] for name in runs}
        with torch.no_grad(), autocast(task.device, job.dtype):
            for _ in range(2):
                called(*inputs)
            for number in range(-1, settings.rounds):  # the first warms up
                yield Progress(done=number + 1, total=settings.rounds + 1, unit="rounds")
                peak = _rate(operands.measure())
                seconds = min(task.seconds(lambda: called(*inputs)) for _ in range(2))
                spent = {name: task.seconds(run) / SOLVER_STEPS for name, (run, _) in runs.items()}
                if number >= 0:
                    peaks.append(peak)
                    evaluations.append(seconds)
                    for name, value in spent.items():
                        taken[name].append(value)
        memory = peak_memory(task.device)
        yield Note("measuring the parts of the network, each alone")
        parts = _parts(task, training=False)
    table = Table(
        title="Solver steps",
        header=["sampler", "ms a step", "from - to", "steps", "images/s"],
        rows=[
            [
                name,
                f"{1e3 * statistics.median(values):.4g}",
                f"{1e3 * min(values):.4g} - {1e3 * max(values):.4g}",
                str(runs[name][1]),
                f"{batch / (statistics.median(values) * runs[name][1]):.4g}",
            ]
            for name, values in taken.items()
        ],
    )
    total = statistics.median(evaluations)
    # The parts run as they are, beside the network that is compiled whole.
    rows = parts if job.compiled else parts | {"the rest": max(0.0, total - sum(parts.values()))}
    title = "An evaluation" + (", its parts alone and not compiled" if job.compiled else "")
    return _result(
        task, 2 * total_cost(job.config).macs * batch, evaluations, peaks, rows, title=title,
        what="an evaluation", more={"peak memory": format_bytes(memory)}, tables=[table],
        data=dict(peak_memory_bytes=memory, solver_step_seconds=taken),
    )  # fmt: skip


def _random_network(
    config: TransformerConfig, task: _Task, *, training: bool = False
) -> Transformer:
    """Its weights are drawn, as a new network's output is zero; for evaluation in the task's dtype,
    for training in float32."""
    network = Transformer(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)
    if training:
        return network.to(task.device)
    return build_network(config, network.state_dict(), task.device, dtype=task.job.dtype)


def _inputs(task: _Task) -> tuple[Tensor, Tensor, Tensor]:
    config, batch = task.job.config, task.batch
    random = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *config.latent_shape, generator=random)
    t = torch.rand(batch, generator=random)
    y = torch.randint(0, config.num_classes + 1, (batch,), generator=random)
    return x.to(task.device), t.to(task.device), y.to(task.device)


def _solver_runs(
    task: _Task, network: Callable, inputs: tuple[Tensor, Tensor, Tensor]
) -> dict[str, tuple[Callable[[], None], int]]:
    """Name -> SOLVER_STEPS steps of it, and the steps that `sit sample` takes."""
    config, (noise, _, y) = task.job.config, inputs

    def run(sampler: Ode | Sde, guidance: Guidance) -> Callable[[], None]:
        def steps() -> None:
            guided = GuidedNetwork(network, guidance)
            process = task.job.process
            randn = lambda: torch.randn_like(noise)  # noqa: E731
            for _ in process.sample(guided, noise, y, sampler, randn=randn):
                pass

        return steps

    runs = {}
    for name, (sampler, steps) in SAMPLERS.items():
        runs[name] = run(sampler, Guidance(null_class=config.null_class)), steps
    if config.num_classes:
        sampler, steps = SAMPLERS["ODE, Heun"]
        guided = dict(null_class=config.null_class, scale=SCALE)
        time_of = task.job.process.time_of
        runs["ODE, Heun, guided"] = run(sampler, Guidance(**guided)), steps
        interval = Guidance(**guided, interval=INTERVAL, time_of=time_of)
        runs["ODE, Heun, guided in half of the range"] = run(sampler, interval), steps
    return runs


# --- both -----------------------------------------------------------------------------------------


class _Nothing(nn.Module):
    """In place of a part that is measured by itself."""

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        return x


def _parts(task: _Task, *, training: bool) -> dict[str, float]:
    """Part -> seconds in all blocks, each part alone: forward, and backward where training."""
    config, batch, rounds = task.job.config, task.batch, task.settings.rounds
    design = BLOCKS[config.block]
    ends = _random_network(replace(config, depth=1), task, training=training)
    block = ends.blocks[0]
    ends.blocks = nn.ModuleList()
    modulation, ends.modulation = ends.modulation or nn.Identity(), None
    attention, mlp = block.attn, block.mlp
    block.attn, block.mlp = _Nothing(), _Nothing()
    made = dict(device=task.device, requires_grad=training)
    tokens = torch.randn(batch, config.tokens + design.appended, config.width, **made)
    t, y = torch.randn(2, batch, config.width, device=task.device)
    condition = design.condition(tokens, t, y)[1]
    inputs = _inputs(task)
    if training and task.job.compiled:
        attention, mlp, block = map(torch.compile, (attention, mlp, block))
    parts: dict[str, tuple[Callable[[], Tensor], int]] = {
        "attention": (lambda: attention(tokens), config.depth),
        "MLP": (lambda: mlp(tokens), config.depth),
        "modulation, norms, residuals": (
            lambda: block(tokens, modulation(condition)),
            config.depth,
        ),
        "embeddings, final layer": (lambda: ends(*inputs), 1),
    }

    def work(forward: Callable[[], Tensor]) -> None:
        with autocast(task.device, task.job.dtype), torch.set_grad_enabled(training):
            out = forward()
        if training:
            out.float().mean().backward()

    seconds = {}
    for name, (forward, times) in parts.items():
        work(forward)
        values = [task.seconds(lambda forward=forward: work(forward)) for _ in range(rounds)]
        seconds[name] = times * statistics.median(values)
    return seconds


def _result(
    task: _Task,
    flops: float,
    seconds: list[float],
    peaks: list[float],
    parts: dict[str, float],
    *,
    title: str,
    what: str,
    more: dict[str, str],
    data: dict[str, Any],
    tables: list[Table] | None = None,
) -> Result:
    """flops: of what took `seconds`, by round; peaks: operations a second beside it."""
    rates = [task.batch / s for s in seconds]
    achieved = statistics.median(flops / s for s in seconds)
    ratios = [flops / s / peak for s, peak in zip(seconds, peaks, strict=True)]
    summary = _about(task) | {
        "images/s": f"{statistics.median(rates):.4g} ({min(rates):.4g} to {max(rates):.4g}), "
        f"{1e3 * statistics.median(seconds):.4g} ms {what}",
        "operations": f"{_giga(achieved)} GFLOP/s",
        "matrix products": f"{_giga(statistics.median(peaks))} GFLOP/s at the model's own sizes, "
        f"of which this is {statistics.median(ratios):.0%} ({min(ratios):.0%} to "
        f"{max(ratios):.0%})",
    }
    data = _facts(task) | data | dict(
        seconds=seconds, images_per_second=statistics.median(rates), flops=flops,
        flops_per_second=achieved, matrix_product_rates=peaks, ratios=ratios,
        ratio=statistics.median(ratios), parts=parts,
    )  # fmt: skip
    dense = _dense_peak(task.device)
    if dense is not None:
        data["mfu"] = achieved / dense
        summary["MFU"] = f"{achieved / dense:.1%} of {dense / 1e12:.0f} TFLOP/s, dense bf16"
    whole = sum(parts.values())
    table = Table(
        title=title,
        header=["part", "ms", "share"],
        rows=[[name, f"{1e3 * s:.4g}", f"{s / whole:.1%}"] for name, s in parts.items()],
    )
    return Result(summary=summary | more, tables=[table, *(tables or [])], data=data)


def _about(task: _Task) -> dict[str, str]:
    job, config = task.job, task.job.config
    cost = total_cost(config)
    compiled = ", compiled" if job.compiled and task.settings.what != "gemm" else ""
    where = str(task.device)
    if task.device.type == "cuda":
        where += f" ({torch.cuda.get_device_name(task.device)})"
    else:
        where += f", {count(torch.get_num_threads(), 'thread')}"
    return {
        "model": f"{job.settings.model}, {cost.params / 1e6:.1f} M parameters, {config.tokens} "
        f"tokens of {format_shape(config.latent_shape)}",
        "batch": str(task.batch),
        "running": f"{where}, {precision_name(job.dtype)}{compiled}",
    }


def _facts(task: _Task) -> dict[str, Any]:
    job = task.job
    return dict(
        what=task.settings.what,
        model=job.settings.model,
        batch_size=task.batch,
        device=str(task.device),
        precision=precision_name(job.dtype),
        compiled=job.compiled,
        threads=torch.get_num_threads(),
        rounds=task.settings.rounds,
    )


def _dense_peak(device: torch.device) -> float | None:
    """Operations a second that the maker states for this GPU, where we know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in DENSE_BF16.items() if key in name), None)


def _giga(rate: float) -> str:
    return f"{rate / 1e9:,.0f}"


BENCHES = {"train": train, "sample": sample, "gemm": gemm}
