"""An engine around a network: the norm of its gradients, its weights, and what it holds."""

from __future__ import annotations

import pytest
import torch

from sitcli.engine.engine import (
    compiles_stage_3,
    gradient_norm,
    held_bytes,
    own_linear_function,
    whole_weights,
)
from tests.engine.training import engine, train
from tests.model.networks import TINY, filled


def test_the_gradient_norm_of_stage_0_is_that_of_all_gradients() -> None:
    """Catches: the norm of one parameter, or of gradients that are already clipped or scaled."""
    network = filled(TINY)
    x, t, y = torch.randn(4, 4, 8, 8), torch.rand(4), torch.arange(4)
    network(x, t, y).square().mean().backward()
    squares = [p.grad.double().square().sum() for p in network.parameters() if p.grad is not None]
    expected = float(torch.stack(squares).sum().sqrt())
    with engine(torch.float32, zero=0, clip=1e-3) as made:
        made.backward(made(x, t, y).square().mean())
        # Sums of 40 thousand squares in float32, in another order.
        assert float(gradient_norm(made)) == pytest.approx(expected, rel=1e-4)
    with engine(torch.float32, zero=1) as made:
        made.backward(made(x, t, y).square().mean())
        assert gradient_norm(made) is None


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_whole_weights_are_the_networks(zero: int) -> None:
    """Catches: a shard in place of a weight, a buffer left out, or a view that training changes."""
    expected = filled(TINY).state_dict()
    with engine(torch.float32, zero=zero) as made:
        found = whole_weights(made, keep=True)
        assert whole_weights(made, keep=False) == {}
        train(made, 1)
        later = whole_weights(made, keep=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    changed = {key for key in found if not torch.equal(found[key], later[key])}
    assert changed == {name for name, p in filled(TINY).named_parameters() if p.requires_grad}


def test_what_is_held_between_steps() -> None:
    """Catches: a moment counted twice, or the model's weights among the optimizer's."""
    count = sum(p.numel() for p in filled(TINY).parameters())
    with engine(torch.float32, zero=0) as made:
        assert held_bytes(made) == {"model": 4 * count, "optimizer": 0}
        train(made, 1)
        assert held_bytes(made) == {"model": 4 * count, "optimizer": 2 * 4 * count}


@pytest.mark.parametrize("keeps", [True, False])
def test_a_torch_that_loses_gradients_is_found(
    monkeypatch: pytest.MonkeyPatch, *, keeps: bool
) -> None:
    """Catches: stage 3 compiled by a torch that gives its weights no gradients (2.11)."""

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        used = weight if keeps else weight.detach() + 0 * weight
        return x @ used.t() + bias

    monkeypatch.setattr("deepspeed.runtime.zero.linear.zero3_linear_wrap", linear)
    assert compiles_stage_3(torch.device("cpu")) == keeps


def test_stage_3_gives_the_linear_function_back() -> None:
    """Catches: a later training in the same process that computes with stage 3's function."""
    before = torch.nn.functional.linear
    with own_linear_function(), engine(torch.float32, zero=3) as made:
        train(made, 1)
        assert torch.nn.functional.linear is not before
    assert torch.nn.functional.linear is before
