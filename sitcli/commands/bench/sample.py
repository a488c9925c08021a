"""`sit bench sample`: evaluations of the network by each sampler, beside its products' rate."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from sitcli.commands.bench.job import BenchJob, prepared
from sitcli.commands.bench.parts import random_inputs, random_network, time_parts
from sitcli.commands.bench.products import Operands, products_of, products_rate
from sitcli.commands.bench.report import result_of
from sitcli.core.flow import Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.wt import wt_of
from sitcli.events import Note, Progress, Stage, Table
from sitcli.machine.devices import autocast, peak_memory
from sitcli.model.compile import CompiledNetwork
from sitcli.model.flops import total_cost
from sitcli.settings.tools import BenchSettings
from sitcli.text import format_bytes

SOLVER_STEPS = 4  # in a round
# Samplers, and the steps that `sit sample` takes with them by default.
SAMPLERS: dict[str, tuple[Ode | Sde, int]] = {
    "ODE, Heun": (Ode(solver="heun", steps=SOLVER_STEPS), 50),
    "SDE, Euler-Maruyama": (Sde(w=wt_of("sigma"), wt="sigma", steps=SOLVER_STEPS), 250),
}
# The guidance that is measured. Half of the evaluations of SOLVER_STEPS Heun steps lie in INTERVAL.
SCALE, INTERVAL = 1.5, (0.3, 0.8)


# --- sampling -------------------------------------------------------------------------------------


def sample(settings: BenchSettings) -> Stage:
    """Time evaluations of a network with random weights, its matrix products, and solver steps."""
    with prepared(settings) as bench:
        yield Note("warming up")
        job, batch = bench.job, bench.batch
        network = random_network(job.config, bench)
        called = network
        if job.compiled:
            called = CompiledNetwork(network, bench.device, sizes={batch, 2 * batch})
        inputs = random_inputs(bench)
        operands = Operands(bench, products_of(bench, training=False), job.dtype)
        runs = _solver_runs(bench, called, inputs)
        evaluations, peaks = [], []
        taken: dict[str, list[float]] = {name: [] for name in runs}
        with torch.no_grad(), autocast(bench.device, job.dtype):
            for _ in range(2):
                called(*inputs)
            for number in range(-1, settings.rounds):  # the first warms up
                yield Progress(done=number + 1, total=settings.rounds + 1, unit="rounds")
                peak = products_rate(operands.measure())
                seconds = min(bench.seconds(lambda: called(*inputs)) for _ in range(2))
                spent = {name: bench.seconds(run) / SOLVER_STEPS for name, (run, _) in runs.items()}
                if number >= 0:
                    peaks.append(peak)
                    evaluations.append(seconds)
                    for name, value in spent.items():
                        taken[name].append(value)
        memory = peak_memory(bench.device)
        yield Note("measuring the parts of the network, each alone")
        parts = time_parts(bench, training=False)
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
    # The parts are not compiled, so they do not add up to the compiled network.
    rows = parts if job.compiled else parts | {"the rest": max(0.0, total - sum(parts.values()))}
    title = "An evaluation" + (", its parts alone and not compiled" if job.compiled else "")
    return result_of(
        bench, 2 * total_cost(job.config).macs * batch, evaluations, peaks, rows, title=title,
        what="an evaluation", more={"peak memory": format_bytes(memory)}, tables=[table],
        data=dict(peak_memory_bytes=memory, solver_step_seconds=taken),
    )  # fmt: skip


def _solver_runs(
    bench: BenchJob, network: Callable, inputs: tuple[Tensor, Tensor, Tensor]
) -> dict[str, tuple[Callable[[], None], int]]:
    """Name of a sampler -> (a function that takes SOLVER_STEPS steps, steps of `sit sample`)."""
    config, (noise, _, y) = bench.job.config, inputs

    def run(sampler: Ode | Sde, guidance: Guidance) -> Callable[[], None]:
        def steps() -> None:
            guided = GuidedNetwork(network, guidance)
            process = bench.job.process
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
        time_of = bench.job.process.time_of
        runs["ODE, Heun, guided"] = run(sampler, Guidance(**guided)), steps
        interval = Guidance(**guided, interval=INTERVAL, time_of=time_of)
        runs["ODE, Heun, guided in half of the range"] = run(sampler, interval), steps
    return runs
