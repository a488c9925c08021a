"""The report of a benchmark: the facts of the machine and the network beside the figures."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from sitcli.commands.bench.job import BenchJob
from sitcli.events import Result, Table
from sitcli.machine.devices import precision_name
from sitcli.model.flops import total_cost
from sitcli.text import count, format_shape

# Dense bf16 operations per second, from the makers' data sheets.
DENSE_BF16 = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12, "RTX 4090": 165e12,
}  # fmt: skip


def result_of(
    bench: BenchJob,
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
    """The result of a benchmark of the network.

    flops: operations of what was timed; seconds: its time in each round; peaks: operations per
    second of the matrix products in each round; parts: part -> seconds; title: of their table;
    what: the thing that was timed, for people; more, data: further facts for people and as JSON.
    """
    rates = [bench.batch / s for s in seconds]
    achieved = statistics.median(flops / s for s in seconds)
    ratios = [flops / s / peak for s, peak in zip(seconds, peaks, strict=True)]
    summary = describe(bench) | {
        "images/s": f"{statistics.median(rates):.4g} ({min(rates):.4g} to {max(rates):.4g}), "
        f"{1e3 * statistics.median(seconds):.4g} ms {what}",
        "operations": f"{in_giga(achieved)} GFLOP/s",
        "matrix products": f"{in_giga(statistics.median(peaks))} GFLOP/s at the model's own sizes, "
        f"of which this is {statistics.median(ratios):.0%} ({min(ratios):.0%} to "
        f"{max(ratios):.0%})",
    }
    data = facts_of(bench) | data | dict(
        seconds=seconds, images_per_second=statistics.median(rates), flops=flops,
        flops_per_second=achieved, matrix_product_rates=peaks, ratios=ratios,
        ratio=statistics.median(ratios), parts=parts,
    )  # fmt: skip
    dense = _dense_peak(bench.device)
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


def describe(bench: BenchJob) -> dict[str, str]:
    """The model, the batch and the machine, for people."""
    job, config = bench.job, bench.job.config
    cost = total_cost(config)
    compiled = ", compiled" if job.compiled and bench.settings.what != "gemm" else ""
    where = str(bench.device)
    if bench.device.type == "cuda":
        where += f" ({torch.cuda.get_device_name(bench.device)})"
    else:
        where += f", {count(torch.get_num_threads(), 'thread')}"
    return {
        "model": f"{job.settings.model}, {cost.params / 1e6:.1f} M parameters, {config.tokens} "
        f"tokens of {format_shape(config.latent_shape)}",
        "batch": str(bench.batch),
        "running": f"{where}, {precision_name(job.dtype)}{compiled}",
    }


def facts_of(bench: BenchJob) -> dict[str, Any]:
    """The model, the batch and the machine, as JSON."""
    job = bench.job
    return dict(
        what=bench.settings.what,
        model=job.settings.model,
        batch_size=bench.batch,
        device=str(bench.device),
        precision=precision_name(job.dtype),
        compiled=job.compiled,
        threads=torch.get_num_threads(),
        rounds=bench.settings.rounds,
    )


def _dense_peak(device: torch.device) -> float | None:
    """Operations per second that the maker states for this GPU; None if it is not in DENSE_BF16."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in DENSE_BF16.items() if key in name), None)


def in_giga(rate: float) -> str:
    """A rate in billions: 1.5e12 -> '1,500'."""
    return f"{rate / 1e9:,.0f}"
