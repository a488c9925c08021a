"""Presets: the defaults that each --preset sets, by command and option. Torch-free.

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
# The official sample_ddp.py with the guidance of the best published figures, 1.5 on three channels:
# SiT's default SDE (w_t = 2 sigma_t, see core/wt.py) and DiT's ancestral sampler. Both draw their
# labels. And a sampler of 20 evaluations.
_GUIDED: dict[str, Any] = dict(cfg_scale=1.5, cfg_channels="3", labels="random")
SAMPLE: dict[str, dict[str, Any]] = {
    "official-sit": _GUIDED
    | dict(
        sde=True,
        solver="euler-maruyama",
        steps=250,
        wt="sigma",
        wt_scale=2.0,
        last_step="mean",
        last_step_size=0.04,
        t_shift="1",
    ),
    "official-dit": _GUIDED | dict(ddpm=True, steps=250),
    "fast": dict(ode=True, solver="ab2", steps=20),
}
# What sit 0.7 and earlier had instead: sample sets begun then go on with it.
EARLIER_SAMPLE: dict[str, dict[str, Any]] = {
    "official-sit": dict(wt_scale=None, labels="balanced", t_shift=None),
    "official-dit": dict(labels="balanced"),
}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {"train": TRAIN, "sample": SAMPLE}
