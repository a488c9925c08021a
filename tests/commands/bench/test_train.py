"""`sit bench train`: the batch that it suggests."""

from __future__ import annotations

import pytest
import torch

from sitcli.commands.bench import train
from tests.commands.bench.measuring import measured


def test_the_suggested_batch_is_the_smallest_fast_one(monkeypatch) -> None:
    """Catches: a suggestion that is not among the fastest, or that is larger than it need be."""
    speeds = iter([1.0, 2.0, 3.9, 4.0, 3.8, 3.0])

    def tried(task):
        return dict(images_per_second=next(speeds), memory=1000)

    monkeypatch.setattr(train, "_try_batch", tried)
    result = measured("train", find_batch=True)
    assert result.data["suggested"] == 4
    assert [row["batch_size"] for row in result.data["sizes"]] == [1, 2, 4, 8, 16]
    assert "larger batches are not faster" in result.summary["stopped"]


@pytest.mark.parametrize("full", [torch.OutOfMemoryError("full"), None])
def test_batches_that_do_not_fit_end_the_search(monkeypatch, full) -> None:
    """Catches: a search that goes on past the memory, or an error for a batch it only tried."""

    def tried(task):
        if full is not None and task.batch == 8:
            raise full
        memory = train._memory() if full is None and task.batch == 4 else 1000
        return dict(images_per_second=float(task.batch), memory=memory)

    monkeypatch.setattr(train, "_try_batch", tried)
    result = measured("train", find_batch=True)
    assert result.data["suggested"] == 4
    assert ("does not fit" if full else "might not fit") in result.summary["stopped"]
