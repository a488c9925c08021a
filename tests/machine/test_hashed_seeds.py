"""The streams of version 0.7 and earlier."""

from __future__ import annotations

import numpy as np
import torch

from sitcli.machine.hashed_seeds import Hashed, generator, stream_seed
from sitcli.machine.seeds import Stream

STREAMS = Hashed(3)


def test_seeds_are_what_they_were() -> None:
    """Catches: a change of the seeding: what 0.7 began would go on with other numbers."""
    assert stream_seed(0, "step", 1) == 4238720567276977853


def test_a_step_draws_as_0_7_drew_it() -> None:
    """Catches: a rank that draws for its own images alone, or calls that come in another order:
    0.7 drew noise, times, dropped labels, flips, posterior and routes of the whole batch in turn.
    """
    for again, more in ((False, []), (True, ["again"])):
        random = generator(3, "step", 5, *more)
        noise, times = torch.randn(8, 2, 3, generator=random), torch.rand(8, generator=random)
        steps = torch.randint(1000, (8,), generator=random)
        order = torch.rand(8, 4, generator=random).argsort(1)
        part = slice(2, 5)
        step = STREAMS.step(5, 40, 8, part, again=again)
        assert torch.equal(step(Stream.NOISE).normal(2, 3), noise[part])
        assert torch.equal(step(Stream.TIMES).uniform(), times[part])
        assert torch.equal(step(Stream.TIMES).integers(1000), steps[part])
        assert torch.equal(step(Stream.ROUTES).permutation(4), order[part])


def test_order_grid_and_samples_are_drawn_as_0_7_drew_them() -> None:
    """Catches: another name of a stream, or one generator for all images of a set."""
    order = torch.randperm(10, generator=generator(3, "epoch", 2))
    assert STREAMS.order(2, 10).tolist() == order.tolist()
    grid = torch.randn(4, 3, generator=generator(3, "grid"))
    assert torch.equal(STREAMS.grid(4).normal(3), grid)
    each = [generator(3, "image", i) for i in (7, 1)]
    samples = STREAMS.samples(np.array([7, 1]))
    for _ in range(2):  # at t = 1, and of the first step
        expected = torch.stack([torch.randn(3, generator=random) for random in each])
        assert torch.equal(samples.normal(3), expected)
