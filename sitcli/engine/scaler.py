"""The loss scale of fp16 training, in every ZeRO stage.

Under stage 0 DeepSpeed 0.19.8 uses torch's GradScaler. Stages 1 to 3 use one too, but wrongly in
two ways. They drop a step with infinite gradients without telling the scaler, so the scale never
falls and every later step is dropped as well. And they clip gradients before unscaling them. The
scaler of DeepSpeed's fp16 mode does both right, and we install it in those stages.
"""

from __future__ import annotations

from typing import Any

import torch

# As torch's GradScaler has them.
FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000  # steps without an overflow until the scale doubles


def install_loss_scaler(engine: Any) -> None:
    """Make a new engine scale its loss if, and only if, it trains in float16."""
    optimizer = engine.optimizer
    if not hasattr(optimizer, "torch_autocast_gradscaler"):  # stage 0
        return
    # It also exists if an earlier engine of this process trained in float16.
    optimizer.torch_autocast_gradscaler = None
    if not engine.torch_autocast_enabled() or engine.torch_autocast_dtype() != torch.float16:
        return
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    optimizer.loss_scaler = DynamicLossScaler(
        init_scale=FIRST_SCALE,
        scale_window=GROWTH_INTERVAL,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        raise_error_at_min_scale=False,
    )
    optimizer.dynamic_loss_scale = True


def loss_scale(engine: Any) -> float | None:
    """The factor of the loss before backward, None unless training is in float16."""
    return scaler_state(engine).get("scale")


def scaler_state(engine: Any) -> dict[str, float | int]:
    """The scale and the steps since it last fell, under any stage; {} unless in float16."""
    if (z0 := getattr(engine, "torch_autocast_z0_gradscaler", None)) is not None:
        state = z0.state_dict()
        return {"scale": state["scale"], "good_steps": state["_growth_tracker"]}
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not scaler.dynamic:
        return {}
    good = scaler.cur_iter - scaler.last_overflow_iter - 1
    return {"scale": float(scaler.cur_scale), "good_steps": good}


def load_scaler_state(engine: Any, state: dict[str, float | int]) -> None:
    """Load the state of an engine of any stage; an empty state changes nothing."""
    if not state or not scaler_state(engine):
        return
    if (z0 := getattr(engine, "torch_autocast_z0_gradscaler", None)) is not None:
        good = state["good_steps"] % GROWTH_INTERVAL
        kept = {"scale": state["scale"], "_growth_tracker": good}
        z0.load_state_dict(z0.state_dict() | kept)
        return
    scaler = engine.optimizer.loss_scaler
    scaler.cur_scale = state["scale"]
    scaler.cur_iter, scaler.last_overflow_iter = state["good_steps"], -1
