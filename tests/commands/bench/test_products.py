"""`sit bench gemm`: the matrix products of a model."""

from __future__ import annotations

from tests.commands.bench.measuring import measured


def test_products_are_measured_in_both_dtypes() -> None:
    """Catches: products of other sizes than the model's, or one dtype's rate given for both."""
    result = measured("gemm", precision="bf16")
    rates = result.data["flops_per_second"]
    assert [*rates] == ["bf16", "fp32"]
    products = result.data["products"]
    assert len(result.tables[0].rows) == len(products) + 1
    first = products[0]
    assert (first["m"], first["k"], first["n"], first["count"]) == (32, 128, 512, 4)
    assert all(value > 0 for p in products for value in p["flops_per_second"].values())
