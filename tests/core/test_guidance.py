"""Guidance by what is weaker: each formula by hand, and every evaluation counted."""

from __future__ import annotations

import pytest
import torch

from sitcli.core.diffusion import Ddim, Diffusion
from sitcli.core.flow import Flow, Ode
from sitcli.core.guidance import Guidance, GuidedNetwork


def test_guidance_channels_and_null_class() -> None:
    """Catches: the null class hard-coded to 1000, or the wrong channels guided."""

    def network(x, t, y):
        return y.view(-1, 1, 1, 1).expand(len(y), 8, 2, 2).to(x.dtype)

    x, t, y = torch.zeros(2, 4, 2, 2), torch.zeros(2), torch.tensor([1, 2])
    guided = GuidedNetwork(network, Guidance(scale=3.0, channels=None, null_class=10))
    assert guided(x, t, y)[:, 0, 0, 0].tolist() == [10 + 3 * (1 - 10), 10 + 3 * (2 - 10)]
    assert guided.evaluations == 4
    three = GuidedNetwork(network, Guidance(scale=3.0, channels=3, null_class=10))(x, t, y)
    # The fourth channel and the four of a learned variance are the conditional ones.
    assert three[0, :, 0, 0].tolist() == [-17, -17, -17, 1, 1, 1, 1, 1]
    assert guided(x, t, y)[0, :, 0, 0].tolist() == [-17] * 4 + [1] * 4
    plain = GuidedNetwork(network, Guidance(scale=1.0, channels=None, null_class=10))
    assert plain(x, t, y)[:, 0, 0, 0].tolist() == [1, 2]
    assert plain.evaluations == 2


def test_guidance_of_bf16_outputs_is_computed_in_fp32() -> None:
    """Catches: the difference of two bf16 outputs taken in bf16, which keeps two digits of it."""

    def network(x, t, y):
        return torch.where(y.view(-1, 1, 1, 1) == 9, 1.0, 1.0078125).bfloat16().expand_as(x)

    guided = GuidedNetwork(network, Guidance(scale=1.3, channels=None, null_class=9))
    found = guided(torch.zeros(1, 1, 1, 1), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert found.item() == pytest.approx(1 + 1.3 * 0.0078125, abs=1e-6)


NULL = 9


def network(x, t, y):
    """The label and the time, so that each output says what was asked."""
    return (y + t).view(-1, 1, 1, 1).expand(len(y), 4, 2, 2).to(x.dtype)


def inputs(t: list[float], y: list[int]):
    return torch.zeros(len(t), 4, 2, 2), torch.tensor(t), torch.tensor(y)


def test_interval_by_sample() -> None:
    """Catches: an interval that is closed on one side, turned round, or asked of the first sample
    alone: under dopri5 each has a time of its own."""
    guided = GuidedNetwork(network, Guidance(null_class=NULL, scale=3.0, interval=(0.2, 0.5)))
    t = [0.1, 0.2, 0.3, 0.5, 0.6]
    x, times, y = inputs(t, [1, 2, 3, 4, 5])
    found = guided(x, times, y)[:, 0, 0, 0]
    expected = [
        NULL + 3 * (label - NULL) + time if 0.2 <= time <= 0.5 else label + time
        for label, time in zip([1, 2, 3, 4, 5], t, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert (guided.evaluations, guided.saved) == (8, 2)


def test_interval_along_a_trajectory() -> None:
    """Catches: evaluations outside that are made all the same, and thrown away."""
    for low, high, inside in ((0.0, 1.0, 10), (0.0, 0.5, 5), (0.35, 0.65, 3), (0.95, 0.99, 0)):
        g = Guidance(null_class=NULL, scale=2.0, interval=(low, high))
        guided = GuidedNetwork(network, g)
        x, _, y = inputs([0, 0], [1, 2])
        list(Flow().sample(guided, x, y, Ode(solver="euler", steps=10)))
        assert guided.evaluations == 2 * (10 + inside)
        assert guided.saved == 2 * (10 - inside)


def test_interval_of_the_chain_is_in_t() -> None:
    """Catches: DiT's step numbers taken for times: 700 would lie beyond every interval."""
    flow = Diffusion(variance="fixed-small")
    g = Guidance(null_class=NULL, scale=2.0, interval=(0.0, 0.5), time_of=flow.time_of)
    guided = GuidedNetwork(lambda x, t, y: 0 * x, g)
    x, _, y = inputs([0], [1])
    list(flow.sample(guided, x, y, Ddim(steps=10)))
    # Steps 0, 111, 222, 333, 444 and five above 0.5.
    assert guided.evaluations == 10 + 5


def test_autoguidance() -> None:
    """Catches: the scale on the wrong network, or a guide that is evaluated though nobody asked."""
    calls = []

    def guide(x, t, y):
        calls.append(len(x))
        return network(x, t, y) - 5

    x, t, y = inputs([0.0, 0.0], [1, 2])
    guided = GuidedNetwork(network, Guidance(null_class=NULL, guide=guide, guide_scale=2.0))
    assert guided(x, t, y)[:, 0, 0, 0].tolist() == [-4 + 2 * 5, -3 + 2 * 5]
    assert (guided.evaluations, calls) == (4, [2])
    three = Guidance(null_class=NULL, guide=guide, guide_scale=2.0, channels=3)
    assert GuidedNetwork(network, three)(x, t, y)[0, :, 0, 0].tolist() == [6, 6, 6, 1]
    off = GuidedNetwork(network, Guidance(null_class=NULL, guide=guide, guide_scale=1.0))
    assert off(x, t, y)[:, 0, 0, 0].tolist() == [1, 2]
    assert off.evaluations == 2


def test_internal_guidance_costs_no_evaluation() -> None:
    """Catches: a second pass for the second head."""

    def two_headed(x, t, y):
        output = network(x, t, y)
        return output, output - 2

    x, t, y = inputs([0.0], [1])
    guided = GuidedNetwork(
        network, Guidance(null_class=NULL, internal_scale=1.5), two_headed=two_headed
    )
    assert guided(x, t, y)[0, 0, 0, 0].item() == -1 + 1.5 * 2
    assert guided.evaluations == 1


def test_several_add_their_differences() -> None:
    """Catches: one guidance applied to the outcome of another."""

    def two_headed(x, t, y):
        return network(x, t, y), network(x, t, y) - 2

    g = Guidance(
        null_class=NULL,
        scale=2.0,
        guide=lambda x, t, y: network(x, t, y) - 5,
        guide_scale=3.0,
        internal_scale=1.5,
    )
    x, t, y = inputs([0.0], [1])
    found = GuidedNetwork(network, g, two_headed=two_headed)(x, t, y)[0, 0, 0, 0].item()
    assert found == pytest.approx(1 + (2 - 1) * (1 - NULL) + (3 - 1) * 5 + (1.5 - 1) * 2)
