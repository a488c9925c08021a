"""What a benchmark says follows from its seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.commands.bench.job import prepared
from sitcli.commands.bench.report import in_giga, result_of
from sitcli.settings.tools import BenchSettings
from tests.commands.bench.measuring import TINY


def test_rates_are_medians_of_rounds(tmp_path: Path) -> None:
    """Catches: a mean in which one slow round counts, a ratio of other rounds, shares of a part.

    Three rounds of a batch of two: 1, 2 and 4 seconds for 8e9 operations, beside products at 16,
    8 and 4 GFLOP/s: 2, 1 and 0.5 images a second; 1/2 of the products' rate in every round.
    """
    with prepared(BenchSettings(what="train", dir=tmp_path, **TINY)) as bench:
        result = result_of(
            bench, 8e9, [1.0, 2.0, 4.0], [16e9, 8e9, 4e9], {"a": 1.0, "b": 3.0},
            title="A step", what="a step", more={"peak memory": "1 GB"}, data={"kept": 7},
        )  # fmt: skip
    data = result.data
    assert data["images_per_second"] == 1.0
    assert data["flops_per_second"] == 4e9
    assert data["ratios"] == [0.5, 0.5, 0.5]
    assert (data["ratio"], data["kept"], data["batch_size"]) == (0.5, 7, 2)
    assert "mfu" not in data  # of a CPU no maker's figure is known
    assert result.summary["images/s"] == "1 (0.5 to 2), 2000 ms a step"
    assert result.summary["operations"] == "4 GFLOP/s"
    assert "of which this is 50% (50% to 50%)" in result.summary["matrix products"]
    assert result.tables[0].rows == [["a", "1000", "25.0%"], ["b", "3000", "75.0%"]]


@pytest.mark.parametrize(("rate", "text"), [(1e9, "1"), (1.5e12, "1,500"), (4e8, "0")])
def test_rates_are_told_in_giga(rate: float, text: str) -> None:
    """Catches: a factor of a thousand."""
    assert in_giga(rate) == text
