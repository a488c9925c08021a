"""What is compared: mechanisms of training, each against the base, and mechanisms of sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Base network and budget: a small SiT on 8 x 8 x 8 latents of CIFAR-10, 16 tokens.
BASE: dict[str, Any] = dict(model="SiT-Mi/2", depth=6, batch_size=32, lr=2e-3, warmup=50)
STEPS = 700
NUM = 1000  # images of a figure
DRAW: dict[str, Any] = dict(solver="dpm++2m", steps=20)


@dataclass(frozen=True)
class Mechanism:
    """One way to train: `options` of sit train on top of BASE."""

    name: str
    title: str
    options: dict[str, Any]


_LIGHTNING_BLOCK = dict(mlp="swiglu", norm="rms", rope=True, qk_norm=True)
_TIMES = dict(t_dist="logit-normal")


def _of(name: str, title: str, **options: Any) -> Mechanism:
    return Mechanism(name, title, options)


MECHANISMS = (
    _of("base", "SiT as published", power_ema=True),
    _of("logit-normal", "logit-normal times", t_dist="logit-normal"),
    _of("logit-normal-until", "logit-normal times for the first half", t_dist="logit-normal",
        t_dist_until=STEPS // 2),
    _of("direction", "velocity-direction loss", direction_loss=1.0),
    _of("shift", "time shift, auto (0.35 here), in training and sampling", t_shift="auto"),
    _of("layer-sync", "LayerSync 0.2", layer_sync=0.2),
    _of("internal", "internal guidance's second head, not used in sampling",
        internal_guidance=0.5),
    _of("tread", "TREAD, half of the tokens", tread=0.5),
    _of("repa", "REPA 0.5 after block 2, rotation-prediction features", repa="0.5,2"),
    _of("swiglu", "SwiGLU", mlp="swiglu"),
    _of("rms", "RMSNorm", norm="rms"),
    _of("rope", "2-D RoPE", rope=True),
    _of("qk-norm", "QK-norm", qk_norm=True),
    _of("lightning", "preset lightning: the four blocks, logit-normal times",
        **_LIGHTNING_BLOCK, **_TIMES),
    _of("lightning-direction", "preset lightning and the velocity-direction loss",
        **_LIGHTNING_BLOCK, **_TIMES, direction_loss=1.0),
    _of("fast", "preset fast: TREAD, logit-normal times", tread=0.5, **_TIMES),
    _of("fast-sync", "preset fast-sync: fast and LayerSync", tread=0.5, layer_sync=0.2, **_TIMES),
)  # fmt: skip
BY_NAME = {mechanism.name: mechanism for mechanism in MECHANISMS}


@dataclass(frozen=True)
class Drawing:
    """One way to sample a training: `options` of sit sample; guide: share of the base's steps."""

    name: str
    title: str
    run: str
    options: dict[str, Any]
    guide: float | None = None
    std: float | None = None


def _draw(name: str, title: str, *, run: str = "base", **options: Any) -> Drawing:
    own = {key: options.pop(key) for key in ("guide", "std") if key in options}
    return Drawing(name, title, run, {**DRAW, **options}, **own)


DRAWINGS = (
    _draw("plain", "no guidance"),
    _draw("cfg", "guidance 1.5", cfg_scale=1.5),
    _draw("cfg-interval", "guidance 1.5 for t in 0 to 0.7", cfg_scale=1.5, cfg_interval="0,0.7"),
    _draw("cfg-middle", "guidance 1.5 for t in 0.2 to 0.7", cfg_scale=1.5, cfg_interval="0.2,0.7"),
    _draw("cfg2", "guidance 2", cfg_scale=2.0),
    _draw("cfg2-interval", "guidance 2 for t in 0 to 0.7", cfg_scale=2.0, cfg_interval="0,0.7"),
    _draw("guide", "autoguidance by half the training, 1.5", guide=0.5, guide_scale=1.5),
    _draw("guide2", "autoguidance by half the training, 2", guide=0.5, guide_scale=2.0),
    _draw("guide3", "autoguidance by half the training, 3", guide=0.5, guide_scale=3.0),
    _draw("internal-1", "second head, not used", run="internal"),
    _draw("internal-1.4", "internal guidance 1.4", run="internal", internal_scale=1.4),
    _draw("internal-2", "internal guidance 2", run="internal", internal_scale=2.0),
    _draw("shift", "time shift, auto (0.35 here), in sampling alone", t_shift="auto"),
    _draw("shift-2", "time shift 2, in sampling alone", t_shift="2"),
    *(_draw(f"ema-{std:g}", f"power-function average, std {std:g}", std=std)
      for std in (0.03, 0.05, 0.08, 0.10, 0.15, 0.2)),
    _draw("euler-20", "Euler, 20 evaluations", solver="euler"),
    _draw("heun-10", "Heun, 20 evaluations", solver="heun", steps=10),
    _draw("rk4-5", "RK4, 20 evaluations", solver="rk4", steps=5),
    _draw("ab2-20", "AB2, 20 evaluations", solver="ab2"),
    _draw("dpm-10", "DPM-Solver++(2M), 10 evaluations", steps=10),
    _draw("heun-50", "Heun, 100 evaluations", solver="heun", steps=50),
)  # fmt: skip
