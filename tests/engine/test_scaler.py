"""fp16 training under every ZeRO stage, on a CPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sitcli.engine.engine import whole_weights
from sitcli.engine.optimizer_state import snapshot
from sitcli.engine.scaler import load_scaler_state, loss_scale, scaler_state
from tests.engine.training import engine, train

every_stage = pytest.mark.parametrize("zero", [0, 1, 2, 3])


def weights(engine: Any) -> list[Tensor]:
    return [*whole_weights(engine, keep=True).values()]


def first_moments(engine: Any) -> Tensor:
    """AdamW's first moments of all parameters, flattened: after one step 0.1 times the gradient
    that it was given."""
    tensors, _ = snapshot(engine, rank=0, world_size=1)
    names = sorted(name for name in tensors if name.startswith("exp_avg "))
    return torch.cat([tensors[name] for name in names])


@every_stage
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_fp16_applies_the_gradients_of_fp32(zero: int, clip: float) -> None:
    """Catches: gradients that are applied scaled, or clipped before they are unscaled, as
    DeepSpeed 0.19.8 does by itself in stages 1 to 3: then clip 0.5 means clip 0.5 / 65536.
    AdamW's steps do not tell, since they are the same for any multiple of a gradient; its
    moments do."""
    with engine(torch.float32, zero=zero, clip=clip) as exact:
        train(exact, 1)
        expected = first_moments(exact)
        norm = exact.get_global_grad_norm()  # None under stage 0
        assert loss_scale(exact) is None
        assert scaler_state(exact) == {}
    with engine(torch.float16, zero=zero, clip=clip) as half:
        losses = train(half, 1)
        moments = first_moments(half)
        # The 16 products that a gradient goes through here round by 2^-11 each; 4 times that.
        assert float((moments - expected).norm() / expected.norm()) < 16 * 4 * 2**-11
        if norm is not None:
            assert float(half.get_global_grad_norm()) == pytest.approx(float(norm), rel=2**-5)
        if clip:
            assert float(moments.norm()) == pytest.approx(0.1 * clip, rel=2**-5)
        losses += train(half, 59)
        assert loss_scale(half) == 65536
    assert losses[-1] < 0.5 * losses[0]


@every_stage
def test_an_overflow_is_skipped_and_halves_the_scale(zero: int) -> None:
    """Catches: a step with infinite gradients applied; or, as DeepSpeed's stages 1 to 3 do by
    themselves, a scale that stays, so that every step is skipped for ever."""
    with engine(torch.float16, zero=zero) as half:
        load_scaler_state(half, {"scale": 2.0**40, "good_steps": 7})
        before = weights(half)
        train(half, 1)
        assert scaler_state(half) == {"scale": 2.0**39, "good_steps": 0}
        assert all(map(torch.equal, weights(half), before))
        train(half, 30)
        assert 1 < loss_scale(half) < 2.0**39
        assert not torch.equal(weights(half)[0], before[0])
        assert all(map(math.isfinite, train(half, 1)))


@every_stage
def test_the_scale_doubles_where_it_would_have(zero: int) -> None:
    """Catches: a resumed run whose scale doubles at another step than that of one run
    throughout."""
    other = (zero + 1) % 4
    with engine(torch.float16, zero=zero) as half:
        load_scaler_state(half, {"scale": 1024.0, "good_steps": 1996})
        train(half, 2)
        state = scaler_state(half)
        assert state == {"scale": 1024.0, "good_steps": 1998}
        train(half, 3)
        doubled = scaler_state(half)
    assert doubled["scale"] == 2048.0
    for stage in (zero, other):
        with engine(torch.float16, zero=stage) as resumed:
            load_scaler_state(resumed, state)
            assert scaler_state(resumed) == state
            train(resumed, 3)
            assert loss_scale(resumed) == 2048.0
            if stage == zero:
                assert scaler_state(resumed) == doubled


@every_stage
def test_fp32_after_fp16_has_no_scale(zero: int) -> None:
    """Catches: DeepSpeed's memory of an earlier engine's float16 making a scaler for a later
    one."""
    with engine(torch.float16, zero=1) as half:
        assert loss_scale(half) == 65536
    with engine(torch.float32, zero=zero) as exact:
        load_scaler_state(exact, {"scale": 8.0, "good_steps": 1})
        assert scaler_state(exact) == {}
        assert train(exact, 3)[-1] < math.inf
        if zero:
            assert exact.get_global_grad_norm() < 1000
