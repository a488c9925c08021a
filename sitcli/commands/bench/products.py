"""The rate of the matrix products that a network is made of, an upper bound on its speed."""

from __future__ import annotations

import statistics

import torch

from sitcli.commands.bench.job import BenchJob, prepared
from sitcli.commands.bench.report import describe, facts_of, in_giga
from sitcli.events import Progress, Result, Stage, Table
from sitcli.machine.devices import precision_name
from sitcli.model.flops import Product, matrix_products
from sitcli.settings.tools import BenchSettings

# --- matrix products ------------------------------------------------------------------------------


def products_of(bench: BenchJob, *, training: bool) -> list[Product]:
    """The matrix products of a batch's forward pass, and in training of its backward pass."""
    products = matrix_products(bench.job.config, bench.batch)
    gradients = [gradient for product in products for gradient in product.gradients]
    return [*products, *(gradients if training else [])]


class Operands:
    """The matrices of the products in a dtype, to time each product."""

    def __init__(self, bench: BenchJob, products: list[Product], dtype: torch.dtype) -> None:
        self.bench, self.products = bench, products
        made = dict(device=bench.device, dtype=torch.float32)
        sizes = {(p.m, p.k, p.n) for p in products}
        # The weights lie as a linear layer's do, (n, k).
        self.pairs = {
            (m, k, n): (torch.randn(m, k, **made).to(dtype), torch.randn(n, k, **made).to(dtype).T)
            for m, k, n in sizes
        }

    @torch.no_grad()
    def measure(self) -> dict[Product, float]:
        """Seconds of each product, the faster of two."""
        taken = {
            size: min(self.bench.seconds(lambda a=a, b=b: a @ b) for _ in range(2))
            for size, (a, b) in self.pairs.items()
        }
        return {p: taken[p.m, p.k, p.n] for p in self.products}


def products_rate(seconds: dict[Product, float]) -> float:
    """Operations per second over all products."""
    return 2 * sum(p.macs for p in seconds) / sum(p.count * s for p, s in seconds.items())


def gemm(settings: BenchSettings) -> Stage:
    """Time the matrix products of a training step, each size alone, in fp32 and in --precision."""
    with prepared(settings) as bench:
        dtypes = dict.fromkeys([bench.job.dtype, torch.float32])
        products = products_of(bench, training=True)
        operands = {dtype: Operands(bench, products, dtype) for dtype in dtypes}
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
        rows.append([p.part, f"{p.m} x {p.k} x {p.n}", str(p.count), *map(in_giga, rates)])
        data.append(p._asdict() | dict(flops_per_second=dict(zip(names, rates, strict=True))))
    totals = [statistics.median(map(products_rate, rounds[dtype])) for dtype in dtypes]
    rows.append(["all", "", "", *map(in_giga, totals)])
    header = ["product", "m x k x n", "times", *(f"GFLOP/s {name}" for name in names)]
    return Result(
        summary=describe(bench)
        | {"matrix products": f"{in_giga(totals[0])} GFLOP/s in {names[0]}"},
        tables=[Table(title="Matrix products of a training step", header=header, rows=rows)],
        data=facts_of(bench)
        | dict(products=data, flops_per_second=dict(zip(names, totals, strict=True))),
    )
