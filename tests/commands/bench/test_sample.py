"""`sit bench sample`: the samplers that it measures."""

from __future__ import annotations

import torch

from sitcli.commands.bench.sample import INTERVAL, SAMPLERS, SCALE, SOLVER_STEPS
from sitcli.core.flow import Flow
from sitcli.core.guidance import Guidance, GuidedNetwork


def test_half_of_the_evaluations_are_guided_in_the_interval() -> None:
    """Catches: an interval that leaves out all guidance, or none, so that the figure beside "in
    half of the range" is another one's."""
    guided = dict(null_class=3, scale=SCALE)
    sampler, _ = SAMPLERS["ODE, Heun"]
    spent = []
    for guidance in (Guidance(**guided), Guidance(**guided, interval=INTERVAL)):
        network = GuidedNetwork(lambda x, t, y: -x, guidance)
        x, y = torch.ones(2, 3, 2, 2), torch.tensor([0, 1])
        list(Flow().sample(network, x, y, sampler))
        spent.append(network.evaluations)
    plain = 2 * 2 * SOLVER_STEPS  # two images, two evaluations a step
    assert spent == [2 * plain, plain + plain // 2]
