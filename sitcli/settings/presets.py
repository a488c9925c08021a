"""Recipes: the defaults that each --preset sets, by command and option. Torch-free.

Options from the command line, the environment or a file win over a preset.
"""

from __future__ import annotations

from typing import Any

# Both papers: AdamW, 1e-4 constant, batch 256, EMA 0.9999 from the first step on.
_OFFICIAL: dict[str, Any] = dict(
    block="adaln-zero",
    steps=400_000,
    batch_size=256,
    lr=1e-4,
    label_dropout=0.1,
    ema=0.9999,
    ema_warmup=False,
)
# LightningDiT's times and optimizer (Yao et al. 2025, Table 1).
_TIMES: dict[str, Any] = dict(t_dist="logit-normal", lr=2e-4, beta2=0.95)
_FAST: dict[str, Any] = _TIMES | dict(tread=0.5)
TRAIN: dict[str, dict[str, Any]] = {
    "official-sit": _OFFICIAL | dict(model="SiT-XL/2", interpolant="linear", prediction="velocity"),
    "official-dit": _OFFICIAL
    | dict(model="DiT-XL/2", betas="linear", variance="learned-range", prediction="noise"),
    "fast": _FAST,
    "fast-sync": _FAST | dict(layer_sync=0.2),
    "lightning": _TIMES | dict(mlp="swiglu", norm="rms", rope=True, qk_norm=True),
}
# The samplers of the best published figures, 250 evaluations under guidance 1.5 on three channels;
# and a sampler of 20 evaluations.
SAMPLE: dict[str, dict[str, Any]] = {
    "official-sit": dict(sde=True, wt="sigma", steps=250, cfg_scale=1.5, cfg_channels="3"),
    "official-dit": dict(ddpm=True, steps=250, cfg_scale=1.5, cfg_channels="3"),
    "fast": dict(ode=True, solver="ab2", steps=20),
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"train": TRAIN, "sample": SAMPLE}
