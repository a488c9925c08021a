"""The streams of new runs and sample sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sitcli.core.philox import MOST_STREAM, Draws
from sitcli.machine.seeds import NEW, STREAMS, UNRECORDED, Philox, Stream

# Version 0.8's numbers: these are in runs and sample sets.
FROZEN = dict(
    ORDER=0, NOISE=1, TIMES=2, LABEL_DROPS=3, FLIPS=4, POSTERIOR=5, ROUTES=6, GRIDS=7, SAMPLES=8,
    LABELS=9, LIKELIHOOD_POSTERIOR=10, DEQUANTISATION=11, PROBES=12, BOUND=13, STAND_INS=14,
)  # fmt: skip


def test_a_streams_number_stays() -> None:
    """Catches: a stream that is renumbered, so that what was begun goes on with other numbers, or
    two with one number, which would share all of theirs."""
    assert {stream.name: int(stream) for stream in Stream} == FROZEN
    assert len(Stream.__members__) == len(Stream) <= MOST_STREAM + 1


def test_what_records_no_streams_has_those_of_0_7() -> None:
    """Catches: an old run that goes on with new numbers."""
    assert STREAMS[UNRECORDED](5).samples(np.arange(1)).normal() == torch.randn(
        1, generator=torch.Generator().manual_seed(_seed_of_0_7())
    )
    assert STREAMS[NEW] is Philox


def _seed_of_0_7() -> int:
    from sitcli.machine.hashed_seeds import stream_seed

    return stream_seed(5, "image", 0)


def test_a_step_draws_for_its_images_alone() -> None:
    """Catches: numbers that depend on how many processes share a batch, or an image of one step
    with the numbers of another's."""
    streams = Philox(4)
    whole = streams.step(2, 12, 6, slice(None))(Stream.NOISE).normal(5)
    for part in (slice(0, 3), slice(3, 6), slice(4, 5)):
        assert torch.equal(streams.step(2, 12, 6, part)(Stream.NOISE).normal(5), whole[part])
    # The images of a training are numbered through.
    assert torch.equal(whole, Draws(4, Stream.NOISE, torch.arange(12, 18)).normal(5))
    again = streams.step(2, 12, 6, slice(None), again=True)(Stream.NOISE).normal(5)
    assert not (again == whole).any()


@pytest.mark.parametrize("stream", Stream)
def test_no_stream_has_anothers_numbers(stream: Stream) -> None:
    """Catches: two purposes that draw the same for an item, or two seeds that do."""
    own = Philox(0).draws(stream, np.arange(4)).normal(8)
    others = [Philox(0).draws(other, np.arange(4)).normal(8) for other in Stream if other != stream]
    others += [Philox(seed).draws(stream, np.arange(4)).normal(8) for seed in (1, 2**32, 2**62)]
    assert not any((own == other).any() for other in others)


def test_an_epochs_order_has_every_image_once() -> None:
    """Catches: images left out, or every epoch in one order."""
    orders = [Philox(4).order(epoch, 100).tolist() for epoch in (0, 1)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert orders[0] != orders[1]


def test_a_sampler_draws_an_image_at_a_time() -> None:
    """Catches: an image that depends on the batch it is drawn in, in any step."""
    whole = Philox(4).samples(np.arange(6))
    part = Philox(4).samples(np.array([5, 2]))
    for _ in range(3):
        assert torch.equal(whole.normal(2, 3)[[5, 2]], part.normal(2, 3))
