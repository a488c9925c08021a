"""The presets that claim to be the official commands, against those commands' own values.

The values are those of github.com/willisma/SiT at 947f95b and github.com/facebookresearch/DiT at
ed81ce2. The samplers' formulas are written out here in the official code's time, which is 0 at the
noise and 1 at the data, and with its D = w/2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sitcli.commands.sample.job import prepare
from sitcli.commands.sample.stage import sample
from sitcli.core.diffusion import Diffusion
from sitcli.events import Note, Progress, Warn
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.presets import SAMPLE, TRAIN
from sitcli.settings.sample import SampleSettings
from sitcli.settings.train import TrainSettings
from tests.core.exact import exact_network
from tests.core.gaussian import Gaussian
from tests.tiny import finish, make_run

# (our option, the official value, where it is). The same in both repositories.
BOTH_TRAIN = [
    ("batch_size", 256, "train.py --global-batch-size"),
    ("lr", 1e-4, "train.py AdamW(lr=1e-4)"),
    ("weight_decay", 0.0, "train.py AdamW(weight_decay=0)"),
    ("beta2", 0.999, "train.py AdamW, torch's default betas"),
    ("schedule", "constant", "train.py: no scheduler"),
    ("warmup", 0, "train.py: no scheduler"),
    ("clip", 0.0, "train.py: no clipping"),
    ("ema", 0.9999, "train.py update_ema(decay=0.9999)"),
    ("ema_warmup", False, "train.py update_ema: the same decay from the first step on"),
    ("label_dropout", 0.1, "models.py class_dropout_prob=0.1"),
    ("flip", True, "train.py RandomHorizontalFlip()"),
    ("posterior", "sample", "train.py latent_dist.sample()"),
    ("block", "adaln-zero", "models.py: adaLN modulation, zero at first"),
    ("mlp", "gelu", "models.py Mlp(act_layer=GELU tanh)"),
    ("norm", "layer", "models.py LayerNorm(elementwise_affine=False)"),
    ("rope", False, "models.py: a fixed sine-cosine embedding"),
    ("qk_norm", False, "models.py: timm's Attention, whose default is none"),
    ("loss_weight", "none", "SiT train_utils.py --loss-weight None; DiT create_diffusion MSE"),
    ("t_dist", "uniform", "SiT transport.sample: rand; DiT train.py: randint"),
    ("t_shift", None, "as --t-dist"),
    ("direction_loss", 0.0, "no such loss"),
    ("layer_sync", 0.0, "no such loss"),
    ("internal_guidance", 0.0, "no such loss"),
    ("tread", 0.0, "no routing"),
    ("repa", None, "no such loss"),
    # Both scripts count 1400 epochs of ImageNet, "except training iters"; the papers' comparisons
    # (DiT section 4, SiT Table 2) are after 400,000 steps.
    ("steps", 400_000, "SiT and DiT papers"),
]
TRAINED = {
    "official-sit": [
        *BOTH_TRAIN,
        ("model", "SiT-XL/2", "train.py --model"),
        ("interpolant", "linear", "train_utils.py --path-type Linear"),
        ("prediction", "velocity", "train_utils.py --prediction"),
    ],
    "official-dit": [
        *BOTH_TRAIN,
        ("model", "DiT-XL/2", "train.py --model"),
        ("betas", "linear", "create_diffusion(noise_schedule='linear')"),
        ("variance", "learned-range", "create_diffusion(learn_sigma=True)"),
        ("prediction", "noise", "create_diffusion(predict_xstart=False)"),
    ],
}
BOTH_DRAWN = [
    # SiT's sample_ddp.py has 1.0 here, DiT's 1.5; both papers' best figures have 1.5.
    ("cfg_scale", 1.5, "sample_ddp.py --cfg-scale 1.5"),
    ("cfg_channels", "3", "models.py forward_with_cfg: model_out[:, :3]"),
    ("cfg_interval", None, "models.py forward_with_cfg: at every time"),
    ("labels", "random", "sample_ddp.py: torch.randint(0, num_classes)"),
    ("weights", "ema", "download.py find_model: checkpoint['ema']"),
    ("steps", 250, "sample_ddp.py --num-sampling-steps"),
]
DRAWN = {
    "official-sit": [
        *BOTH_DRAWN,
        ("sde", True, "sample_ddp.py SDE"),
        ("solver", "euler-maruyama", "train_utils.py --sampling-method Euler"),
        ("wt", "sigma", "train_utils.py --diffusion-form sigma"),
        ("wt_scale", 2.0, "train_utils.py --diffusion-norm 1.0, of D = w/2"),
        ("last_step", "mean", "train_utils.py --last-step Mean"),
        ("last_step_size", 0.04, "train_utils.py --last-step-size"),
        ("t_shift", None, "integrators.py: linspace(t0, t1, num_steps)"),
    ],
    "official-dit": [
        *BOTH_DRAWN,
        ("ddpm", True, "sample_ddp.py p_sample_loop"),
        ("wt", None, "p_sample_loop has none"),
        ("eta", None, "p_sample_loop has none"),
    ],
}
PROCESSES = {"official-sit": None, "official-dit": Diffusion()}


@pytest.mark.parametrize("preset", TRAINED)
def test_training_is_the_official_scripts(preset: str) -> None:
    """Catches: an option of train.py that the preset or our default says otherwise."""
    settings = TrainSettings(**TRAIN[preset])
    for name, value, source in TRAINED[preset]:
        assert getattr(settings, name) == value, source


@pytest.mark.parametrize("preset", DRAWN)
def test_sampling_is_the_official_scripts(tmp_path: Path, preset: str) -> None:
    """Catches: an option of sample_ddp.py that the preset, or our default where it says nothing,
    says otherwise: w_t was half of the official code's, and the labels were dealt out evenly."""
    run = make_run(tmp_path, process=PROCESSES[preset])
    settings = prepare(SampleSettings(checkpoint=run, **SAMPLE[preset])).settings
    for name, value, source in DRAWN[preset]:
        assert getattr(settings, name) == value, source


DATA = Gaussian(mean=0.7, std=0.6)
SHAPE = (3, 4, 2, 2)


def noises(seed: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)


def drawn(job, data: Gaussian, seed: int) -> Tensor:
    """What our sampler makes of the exact network and the noise of this seed."""
    process, randn = job.checkpoint.process, noises(seed)
    y = torch.zeros(SHAPE[0], dtype=torch.long)
    steps = process.sample(exact_network(process, data), randn(), y, job.sampler, randn=randn)
    return [x for _, x in steps][-1]


def official_sde(data: Gaussian, steps: int, seed: int) -> Tensor:
    """transport.sample_sde of the defaults: sigma, norm 1, Euler, Mean, 0.04."""

    def drift(x: Tensor, t: float) -> tuple[Tensor, float]:
        alpha, sigma = t, 1 - t  # of the data and of the noise
        variance = alpha**2 * data.std**2 + sigma**2
        centred = x - alpha * data.mean
        # E[x_* - eps | x] and the score of x, for data N(mean, std^2).
        velocity = data.mean + (alpha * data.std**2 - sigma) / variance * centred
        D = 1.0 * sigma
        return velocity - D * centred / variance, D

    randn = noises(seed)
    x = randn()
    times = np.linspace(0, 1 - 0.04, steps)
    dt = times[1] - times[0]
    for t in times[:-1]:
        d, D = drift(x, t)
        x = x + d * dt + math.sqrt(2 * D * dt) * randn()
    return x + drift(x, times[-1])[0] * 0.04


def test_official_sit_is_the_official_sde(tmp_path: Path) -> None:
    """Catches: another w_t, grid, count of steps, last step or sign: 250 steps of both, from the
    same noise with the same noise, through the exact network."""
    job = prepare(SampleSettings(checkpoint=make_run(tmp_path), **SAMPLE["official-sit"]))
    expected = official_sde(DATA, 250, seed=1)
    # 250 steps in float64, and a float32 in nothing.
    torch.testing.assert_close(drawn(job, DATA, seed=1), expected, rtol=1e-9, atol=1e-9)
    half = dataclasses.replace(job.settings, wt_scale=1.0)
    other = drawn(prepare(half), DATA, seed=1)
    assert float((other - expected).abs().max()) > 0.05  # the test tells the old preset apart
    guidance = job.guidance(None)
    assert (guidance.scale, guidance.channels, guidance.interval) == (1.5, 3, None)


def official_ddpm(data: Gaussian, steps: int, seed: int) -> Tensor:
    """p_sample_loop of create_diffusion(str(steps)), its network saying -1 of the variance."""
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    kept = [round(k * 999 / (steps - 1)) for k in range(steps)]
    bars = alpha_bar[kept]
    before = np.append(1.0, bars[:-1])
    beta = 1 - bars / before
    variance = beta * (1 - before) / (1 - bars)
    variance[0] = variance[1]  # posterior_log_variance_clipped
    randn = noises(seed)
    x = randn()
    for i in reversed(range(steps)):
        total = bars[i] * data.std**2 + 1 - bars[i]
        eps = math.sqrt(1 - bars[i]) / total * (x - math.sqrt(bars[i]) * data.mean)
        start = (x - math.sqrt(1 - bars[i]) * eps) / math.sqrt(bars[i])
        mean = beta[i] * math.sqrt(before[i]) / (1 - bars[i]) * start
        mean = mean + (1 - before[i]) * math.sqrt(1 - beta[i]) / (1 - bars[i]) * x
        share = (-1 + 1) / 2  # of log beta, the rest of the posterior's
        log_variance = share * math.log(beta[i]) + (1 - share) * math.log(variance[i])
        x = mean + (math.exp(log_variance / 2) * randn() if i else 0.0)
    return x


def test_official_dit_is_the_official_chain(tmp_path: Path) -> None:
    """Catches: other betas, steps kept, variances, or noise in the last step."""
    run = make_run(tmp_path, process=Diffusion())
    job = prepare(SampleSettings(checkpoint=run, **SAMPLE["official-dit"]))
    # The network's own times come back through float32 nowhere; abar is at least 4e-5.
    torch.testing.assert_close(
        drawn(job, DATA, seed=2), official_ddpm(DATA, 250, seed=2), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("named", [True, False])
def test_a_set_of_the_earlier_preset_goes_on_with_its_own_numbers(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """Catches: a set whose other half is drawn under the corrected preset, one that cannot go on,
    or a complete one that hides the corrected preset behind the earlier one's images."""
    monkeypatch.chdir(tmp_path)
    common: dict[str, Any] = dict(checkpoint=run, num=4, device="cpu", precision="fp32")
    common |= dict(batch_size=2, steps=3, **(dict(out=tmp_path / "set") if named else {}))
    # As 0.7.0 resolved it; the set is cut short after two of the four images.
    earlier = dict(sde=True, wt="sigma", cfg_scale=1.5, cfg_channels="3")
    stage = sample(SampleSettings(**common, **earlier))
    next(event for event in stage if isinstance(event, Progress) and event.done == 3)
    stage.close()
    preset = SAMPLE["official-sit"] | common
    typed = SampleSettings(preset="official-sit", **preset)
    by_preset = dict.fromkeys(SAMPLE["official-sit"], "remove --preset official-sit")
    events = list(sample(typed, by_preset | {"num": "remove --num"}))
    assert any("of sit 0.7 or earlier" in e.text for e in events if isinstance(e, Warn))
    assert any("going on: 2 of 4" in e.text for e in events if isinstance(e, Note))
    (file,) = tmp_path.rglob("samples.h5")
    meta = SampleSet.open(file).meta
    assert (meta["wt_scale"], meta["labels"]) == (1.0, "balanced")
    unbroken = finish(sample(SampleSettings(**common | dict(out=tmp_path / "whole"), **earlier)))
    assert np.array_equal(SampleSet.open(file).images, SampleSet.open(unbroken.path).images)
    # A complete set is left alone; only under its own name is it meant.
    settings = prepare(typed).settings
    assert (settings.wt_scale, settings.labels) == ((1, "balanced") if named else (2, "random"))
    other = prepare(dataclasses.replace(typed, out=tmp_path / "other")).settings
    assert (other.wt_scale, other.labels) == (2, "random")
    # What the user says wins over both.
    said = prepare(dataclasses.replace(typed, out=tmp_path / "other", wt_scale=3.0)).settings
    assert said.wt_scale == 3
