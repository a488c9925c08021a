"""The average of the weights, by hand and in shards."""

from __future__ import annotations

import pytest
import torch

from sitcli.model.ema import ShardedEma, ema_decay


def module() -> torch.nn.Module:
    """Seven weights in one tensor and three in another, and a buffer."""
    made = torch.nn.Linear(1, 3, bias=False)
    made.more = torch.nn.Parameter(torch.arange(7.0))
    made.register_buffer("table", torch.tensor([5.0, 6.0]))
    return made


def test_the_decay_of_a_warm_up() -> None:
    """Catches: a warm-up that begins at the final decay, or that never reaches it."""
    assert ema_decay(0, decay=0.9999, warmup=True) == 1 / 10
    assert ema_decay(8, decay=0.9999, warmup=True) == 9 / 18
    assert ema_decay(10**6, decay=0.9999, warmup=True) == 0.9999
    assert ema_decay(0, decay=0.9999, warmup=False) == 0.9999


@pytest.mark.parametrize("step", [0, 1, 2, 10, 100, 1000])
def test_a_warm_up_is_tensorflows(step: int) -> None:
    """Catches: another constant than the 10 of tf.train.ExponentialMovingAverage, whose decay with
    num_updates is min(decay, (1 + num_updates) / (10 + num_updates)): the complement is
    9 / (10 + num_updates)."""
    assert 1 - ema_decay(step, decay=1.0, warmup=True) == pytest.approx(9 / (10 + step), rel=1e-12)


def test_the_end_of_a_warm_up() -> None:
    """Catches: a warm-up that ends early or late: 9 / (10 + step) is 0.001 at step 8990."""
    assert ema_decay(8989, decay=0.999, warmup=True) < 0.999
    assert [ema_decay(step, decay=0.999, warmup=True) for step in (8990, 8991)] == [0.999, 0.999]


def test_an_average_is_the_geometric_sum() -> None:
    """Catches: decay and 1 - decay exchanged, or an average that begins at zero.

    After n updates at the constant decay d, with weights k at update k = 1 .. n and 0 before:
    (1 - d) sum_k d^(n-k) k.
    """
    layer, decay, n = module(), 0.75, 6
    layer.more.data.zero_()
    ema = ShardedEma(layer)
    for k in range(1, n + 1):
        layer.more.data.fill_(k)
        ema.update(decay)
    expected = (1 - decay) * sum(decay ** (n - k) * k for k in range(1, n + 1))
    # Six interpolations in float32, of values up to 6.
    torch.testing.assert_close(ema.gather()["more"], torch.full((7,), expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
def test_shards_put_together_are_the_average_of_one(world_size: int) -> None:
    """Catches: a slice that begins elsewhere, an element that nobody keeps, or padding that comes
    back as a weight."""
    layer = module()
    ranks = [ShardedEma(layer, rank=r, world_size=world_size) for r in range(world_size)]
    whole = ShardedEma(layer)
    layer.more.data.mul_(3).add_(1)
    for ema in (*ranks, whole):
        ema.update(0.5)
    shards = torch.cat([ema.shards["more"] for ema in ranks])
    assert torch.equal(shards[:7], whole.gather()["more"])
    assert not shards[7:].any()
    lengths = {ema.shards["more"].numel() for ema in ranks}
    assert lengths == {-(-7 // world_size)}
    assert ranks[0].num_bytes == 4 * (-(-7 // world_size) + -(-3 // world_size))


def test_an_average_comes_back_in_any_number_of_shards() -> None:
    """Catches: a resumed average that begins again from the weights, or slices of another world."""
    state = {"weight": torch.rand(3, 1), "more": torch.rand(7)}
    shards = []
    for rank in range(3):
        ema = ShardedEma(module(), rank=rank, world_size=3)
        ema.load(state)
        shards.append(ema.shards["more"])
    assert torch.equal(torch.cat(shards)[:7], state["more"])
    alone = ShardedEma(module())
    alone.load(state)
    assert torch.equal(alone.gather()["weight"], state["weight"])
    assert torch.equal(alone.gather()["table"], torch.tensor([5.0, 6.0]))


def test_weights_that_are_not_finite_show() -> None:
    """Catches: an average of NaN that is saved over the last good one."""
    layer = module()
    ema = ShardedEma(layer)
    ema.update(0.9)
    assert ema.is_finite()
    layer.more.data[3] = torch.inf
    ema.update(0.9)
    assert not ema.is_finite()
