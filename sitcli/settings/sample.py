"""Settings of `sit sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import (
    COMPILE_HELP,
    DEVICE_HELP,
    GPUS_HELP,
    MOST_SEED,
    PRECISION_HELP,
    PROCS_HELP,
    option,
)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """Options of `sit sample`."""

    checkpoint: Path | None = option(
        None,
        "A run directory or one of its steps. [default: the newest run below runs/]",
        argument=True,
    )
    out: Path | None = option(
        None,
        "Sample set to write, a folder or NAME.h5. [default: samples/RUN-STEP-HASH]",
        group="Files",
    )
    num: int | None = option(
        None, "Images to draw. [default: 64; with --noise one per row]", group="Images", low=1
    )
    classes: str | None = option(
        None,
        "Only these classes, by number or name: 207,360 or 'goldfish,golden retriever'. A name "
        "with commas may stand in double quotes.",
        group="Images",
    )
    preset: names.SamplePreset | None = option(
        None,
        "Defaults for a whole recipe, which any other option overrides: official-sit and "
        "official-dit as the official sample_ddp.py under guidance 1.5; fast: 20 evaluations of "
        "ab2.",
        group="Sampler",
    )
    noise: Path | None = option(
        None,
        "Begin with this noise, NOISE.npy (N, C, h, w) at t = 1, image i with row i, instead of "
        "drawing it from the seed.",
        group="Images",
    )
    labels: names.LabelPolicy = option(
        "balanced", "balanced: every class in turn; random: drawn from the seed.", group="Images"
    )
    invert: Path | None = option(
        None,
        "Draw nothing: find the noise of these images along the ODE, draw them again from it, and "
        "compare. A folder, archive, sample set, .npz or latent store, at most --num of it.",
        group="Images",
        role="mode",
    )
    ode: bool = option(
        False, "The probability-flow ODE. [default for a SiT model]", group="Sampler", role="mode"
    )
    sde: bool = option(False, "The reverse SDE.", group="Sampler", role="mode")
    ddpm: bool = option(
        False,
        "Ancestral sampling of a DiT model's chain. [default for a DiT model]",
        group="Sampler",
        role="mode",
    )
    ddim: bool = option(False, "DDIM over a DiT model's chain.", group="Sampler", role="mode")
    solver: names.Solver | None = option(
        None,
        "ODE: euler, heun, rk4, dopri5, or with one evaluation a step ab2 (Adams-Bashforth) and "
        "dpm++2m; SDE: euler-maruyama, heun. "
        "[default: heun; with --sde euler-maruyama]",
        group="Sampler",
        role="detail",
    )
    steps: int | None = option(
        None,
        "Steps in network time, the SDE's last one included; of --ddpm and --ddim how many of the "
        "chain's 1000. [default: 50, of euler 100; with --sde or --ddpm 250]",
        group="Sampler",
        low=1,
        role="detail",
    )
    t_shift: str | None = option(
        None,
        "ODE and SDE: move the steps' times towards the noise, as sit train --t-shift: a number or "
        "auto. [default: the run's]",
        group="Sampler",
        role="detail",
    )
    t_start: float | None = option(
        None,
        "ODE and SDE: the time t at which sampling begins; t = 1 is noise. [default: 1, or for "
        "score and noise models the latest at which the run's loss says that its estimate of the "
        "data is of use]",
        group="Sampler",
        low=0,
        high=1,
        role="detail",
    )
    t_end: float | None = option(
        None,
        "ODE, and SDE with --last-step none: the time t at which sampling ends; t = 0 is data. "
        "[default: 0 (vp: 1e-5); with --sde 0.001]",
        group="Sampler",
        low=0,
        high=1,
        role="detail",
    )
    rtol: float | None = option(
        None, "dopri5: relative tolerance. [default: 1e-5]", group="Sampler", low=0, role="detail"
    )
    atol: float | None = option(
        None, "dopri5: absolute tolerance. [default: 1e-5]", group="Sampler", low=0, role="detail"
    )
    wt: names.Wt | None = option(
        None, "SDE: diffusion coefficient w_t. [default: sigma]", group="Sampler", role="detail"
    )
    wt_scale: float | None = option(
        None, "SDE: factor on w_t. [default: 1]", group="Sampler", low=0, role="detail"
    )
    eta: float | None = option(
        None,
        "eta of --wt kl-eta [default: 0.1], or of --ddim: 0 is deterministic, 1 as noisy as DDPM "
        "[default: 0].",
        group="Sampler",
        low=0,
        role="detail",
    )
    last_step: names.LastStep | None = option(
        None,
        "SDE: the last step, without noise: mean of the SDE step, tweedie's posterior mean, "
        "euler on the ODE, or none. [default: mean; with --wt constant tweedie]",
        group="Sampler",
        role="detail",
    )
    last_step_size: float | None = option(
        None,
        "SDE: time left for the last step. [default: where sigma is 0.04: linear 0.04, gvp 0.0255, "
        "vp 0.0086]",
        group="Sampler",
        low=0,
        high=0.5,
        role="detail",
    )
    cfg_scale: float = option(
        1.0, "Classifier-free guidance; 1 is none and costs nothing.", group="Guidance", low=0
    )
    cfg_channels: names.GuidedChannels | None = option(
        None,
        "Channels that are guided; the published DiT and SiT figures use 3. [default: all; for "
        "imported weights those of their published figures]",
        group="Guidance",
    )
    cfg_interval: str | None = option(
        None,
        "Guide only at times t in LO,HI, e.g. 0,0.7 (t = 1 is noise): outside it the unconditional "
        "half is not evaluated.",
        group="Guidance",
    )
    guide: Path | None = option(
        None,
        "Autoguidance: a smaller or less trained run of the same latents, or a step of this one, "
        "to extrapolate away from.",
        group="Guidance",
    )
    guide_scale: float | None = option(
        None, "Autoguidance: how far; 1 is none. [default: 2]", group="Guidance", low=0
    )
    internal_scale: float = option(
        1.0,
        "Extrapolate away from the second head of a run trained with --internal-guidance; 1 is "
        "none. It costs no evaluation.",
        group="Guidance",
        low=0,
    )
    weights: names.Weights = option("ema", "Averaged or last weights.", group="Sampler")
    latents: bool = option(False, "Keep the latents in the sample set too.", group="Files")
    latents_only: bool = option(
        False,
        "Keep the latents, float32, and decode none: no autoencoder is needed.",
        group="Files",
    )
    png: bool = option(False, "Write a folder of PNG files too.", group="Files")
    npz: bool = option(False, "Write ADM's samples.npz (arr_0) too.", group="Files")
    show_path: bool = option(
        False, "Save path.png: x_t along the trajectory of the first images.", group="Files"
    )
    vae: str | None = option(
        None, "Where the autoencoder is now, if it moved since encoding.", group="Files"
    )
    batch_size: int = option(64, "Images per network call.", group="Running", low=1)
    compile: names.Compile = option("auto", COMPILE_HELP, group="Running")
    gpus: int | None = option(None, GPUS_HELP, group="Running", low=1)
    procs: int | None = option(None, PROCS_HELP, group="Running", low=1)
    seed: int = option(
        0, "Image i depends on (seed, i) alone.", group="Running", low=0, high=MOST_SEED
    )
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")
