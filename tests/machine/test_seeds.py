"""Seeds of the random streams."""

from __future__ import annotations

import torch

from sitcli.machine.seeds import generator, stream_seed


def test_streams_are_what_they_were() -> None:
    """Catches: a change of the seeding, which would change every sample and break every resume."""
    assert stream_seed(0, "step", 1) == 4238720567276977853
    draws = {float(torch.rand((), generator=generator(0, "image", i))) for i in range(100)}
    assert len(draws) == 100
