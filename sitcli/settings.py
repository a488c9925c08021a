"""What each stage can be told, defined once and torch-free.

The command line builds its options from these classes (name, type, default, help), a run's
``config.yaml`` is written from them, and the stages read them: there is no second list to keep
in step. To add an option, add a field here and use it in the stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sitcli import names


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    flag: str = "",
    argument: bool = False,
    low: float | None = None,
    high: float | None = None,
    role: str = "",
) -> Any:
    """A settings field that is also a command-line option (or argument).

    help: one sentence, shown by ``--help``; group: the panel it is listed in; flag: another name
    than the field's; low/high: inclusive bounds; role: "mode" for options of which one is chosen,
    "detail" for those that say how: where a flag chooses, the file's choice and its details go.
    """
    metadata = dict(help=help, group=group, flag=flag, argument=argument, low=low, high=high)
    metadata["role"] = role
    return field(default=default, metadata=metadata)


DEVICE_HELP = "cpu, cuda, cuda:1, mps; auto takes the first GPU there is."
COMPILE_HELP = (
    "torch.compile the network; auto does so where there is a compiler, for minutes of work only."
)
PRECISION_HELP = "auto is bf16 autocast where the hardware computes in it, else fp32."
GPUS_HELP = "Run on this many of this machine's GPUs, a process each."
PROCS_HELP = "Run in this many processes on the CPU."


@dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    source: Path = option(
        ...,
        "Images: a folder per class, a flat folder, a .tar or .zip of either, or a tar of tars.",
        argument=True,
    )
    out: Path = option(..., "The latent store to write, e.g. out.h5.", argument=True)
    vae: str = option(
        names.DEFAULT_VAE,
        "Autoencoder: a hub name or local folder of diffusers, a TAESD-style weights file or "
        "folder, a latent store made with it, or an embedded one that needs no download: pixels, "
        "patch-pca.",
        group="Autoencoder",
    )
    pca_patch: int | None = option(
        None, "patch-pca: side of a patch, in pixels. [default: 4]", group="Autoencoder", low=1
    )
    pca_channels: int | None = option(
        None,
        "patch-pca: principal components kept per patch. [default: 12]",
        group="Autoencoder",
        low=1,
    )
    image_size: int | None = option(
        None,
        "Side of the square images in pixels. [default: 256; 32 for the embedded autoencoders; "
        "under --vae STORE.h5 that store's]",
        group="Images",
        low=1,
    )
    crop: names.Crop = option(
        "adm",
        "adm: area-halve, resize the short side, centre crop, as ADM, DiT and SiT do; "
        "resize: stretch; none: every image must have the size already.",
        group="Images",
    )
    flip: bool = option(
        True, "Encode the mirrored images too (a VAE is not flip-equivariant).", group="Images"
    )
    strict: bool = option(False, "Stop at the first broken image.", group="Images")
    align_features: str | None = option(
        None,
        "Keep features of every image too, for sit train --repa: dinov2, a timm model "
        "(timm:NAME), or a TorchScript FILE.pt that returns a map (B, D, rows, columns).",
        group="Features",
    )
    align_weights: Path | None = option(
        None,
        "Weights of dinov2 or the timm model, if they are not where torch hub or timm keep them.",
        group="Features",
    )
    overwrite: bool = option(False, "Replace OUT if it holds something else.", group="Running")
    batch_size: int = option(16, "Images per autoencoder call.", group="Running", low=1)
    workers: int | None = option(
        None,
        "Processes that read images, for each that encodes. [default: processors - 1, at most 8, "
        "shared among those that encode]",
        group="Running",
        low=0,
    )
    gpus: int | None = option(None, GPUS_HELP, group="Running", low=1)
    procs: int | None = option(None, PROCS_HELP, group="Running", low=1)
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    preset: names.TrainPreset | None = option(
        None,
        "Defaults for a whole recipe, which any other option overrides: official-sit and "
        "official-dit as the papers train; fast: half of the tokens skip blocks; fast-sync: and "
        "LayerSync; lightning: LightningDiT's blocks and times.",
        group="Model",
    )
    latents: list[Path] | None = option(
        None,
        "Latent store; several --latents are read as one. [default: the newest complete *.h5 below "
        "this folder]",
        group="Files",
    )
    out: Path | None = option(
        None, "Run directory. [default: runs/MODEL-PATH-PREDICTION-HASH]", group="Files"
    )
    model: str | None = option(
        None,
        "SiT-SIZE/PATCH learns a flow, DiT-SIZE/PATCH the discrete process; sizes Mi, Ti, S, B, L, "
        "XL. [default: SiT-XL/2 on a GPU, SiT-Ti on a CPU]",
        group="Model",
    )
    patch: int | None = option(None, "Override the patch side.", group="Model", low=1)
    depth: int | None = option(None, "Override the number of blocks.", group="Model", low=1)
    width: int | None = option(None, "Override the hidden size.", group="Model", low=4)
    heads: int | None = option(None, "Override the attention heads.", group="Model", low=1)
    block: names.Block = option(
        "adaln-zero",
        "How time and label enter: one of the DiT paper's four block designs.",
        group="Model",
    )
    mlp: names.Mlp = option("gelu", "swiglu: gated hidden units, as many weights.", group="Model")
    norm: names.Norm = option("layer", "rms: RMSNorm in place of LayerNorm.", group="Model")
    rope: bool = option(
        False, "Turn queries and keys by their position, beside the fixed embedding.", group="Model"
    )
    qk_norm: bool = option(False, "RMS-normalise queries and keys.", group="Model")
    interpolant: names.Interpolant | None = option(
        None, "SiT: path between data and noise. [default: linear]", group="Objective"
    )
    betas: names.Betas | None = option(
        None, "DiT: noise schedule of the 1000 steps. [default: linear]", group="Objective"
    )
    variance: names.Variance | None = option(
        None,
        "DiT: variance of a reverse step; learned-range takes as many output channels again and "
        "adds the variational bound to the loss. [default: learned-range]",
        group="Objective",
    )
    prediction: names.Prediction | None = option(
        None, "What the network outputs. [default: velocity; DiT: noise]", group="Objective"
    )
    loss_weight: names.LossWeight = option(
        "none",
        "none: the plain loss of the prediction; velocity: times lambda_t^2, equal to the velocity "
        "loss (SiT eq. 49); likelihood: the maximum-likelihood weight.",
        group="Objective",
    )
    t_dist: names.TimeDistribution = option(
        "uniform",
        "How times are drawn; logit-normal: sigmoid(--t-mean + --t-std n), n normal.",
        group="Objective",
    )
    t_mean: float | None = option(
        None,
        "logit-normal: above 0 favours noise. [default: 0]",
        group="Objective",
        low=-10,
        high=10,
    )
    t_std: float | None = option(
        None, "logit-normal: the normal's width. [default: 1]", group="Objective", low=0.01, high=10
    )
    t_dist_until: int | None = option(
        None, "Draw times uniformly after this step. [default: never]", group="Objective", low=1
    )
    t_shift: str | None = option(
        None,
        "Move times towards the noise, t' = s t / (1 + (s-1) t): a number s, or auto for "
        "sqrt(C h w / 4096), 1 for the SD VAE at 256 pixels. [default: 1]",
        group="Objective",
    )
    direction_loss: float = option(
        0.0,
        "Weight of 1 - cos between predicted and true velocity; LightningDiT has 1.",
        group="Objective",
        low=0,
    )
    layer_sync: float = option(
        0.0,
        "Weight of LayerSync: an early block's tokens are aligned with a later one's; the paper "
        "has 0.2.",
        group="Objective",
        low=0,
    )
    sync_blocks: str | None = option(
        None,
        "LayerSync: after which blocks, EARLY,LATE. [default: 8,16 of 28 blocks, and in "
        "proportion]",
        group="Objective",
    )
    internal_guidance: float = option(
        0.0,
        "Weight of the loss of a second output head after an early block, for sit sample "
        "--internal-scale; the paper has 0.5.",
        group="Objective",
        low=0,
    )
    aux_block: int | None = option(
        None,
        "The block after which that head is. [default: 4 of 12, 8 of 24 and more]",
        group="Objective",
        low=1,
    )
    tread: float = option(
        0.0,
        "Share of the tokens that skip the middle blocks in training (TREAD); the paper has 0.5.",
        group="Objective",
        low=0,
        high=0.9,
    )
    tread_blocks: str | None = option(
        None,
        "TREAD: they skip what lies between, START,STOP: blocks START+1 to STOP. [default: 2 and "
        "4 less than all; 1 and 1 of fewer than 8]",
        group="Objective",
    )
    repa: str | None = option(
        None,
        "REPA: LAMBDA,BLOCK, e.g. 0.5,8: align the tokens after that block with the features of "
        "a store made with --align-features.",
        group="Objective",
    )
    label_dropout: float = option(
        0.1, "Chance to hide a label, for guidance.", group="Objective", low=0, high=1
    )
    flip: bool = option(True, "Draw mirrored images half of the time.", group="Objective")
    posterior: names.Posterior = option(
        "sample",
        "Draw a fresh latent from the VAE's posterior, or take its mode.",
        group="Objective",
    )
    steps: int | None = option(
        None,
        "Optimizer steps in all. [default: 400000 on a GPU, 2000 on a CPU]",
        group="Optimizer",
        low=1,
    )
    batch_size: int | None = option(
        None,
        "Global batch, over all processes. [default: 256 on a GPU, 64 on a CPU]",
        group="Optimizer",
        low=1,
    )
    accumulate: int = option(1, "Micro-batches per step.", group="Optimizer", low=1)
    lr: float = option(1e-4, "Learning rate of AdamW.", group="Optimizer", low=0)
    schedule: names.Schedule = option(
        "constant",
        "Learning rate after the warm-up; cosine and linear end at 0.",
        group="Optimizer",
    )
    warmup: int = option(0, "Steps of linear warm-up.", group="Optimizer", low=0)
    weight_decay: float = option(0.0, "AdamW's weight decay.", group="Optimizer", low=0)
    beta2: float = option(
        0.999, "AdamW's second beta; the first is 0.9.", group="Optimizer", low=0, high=1
    )
    clip: float = option(0.0, "Clip the gradient norm; 0 leaves it.", group="Optimizer", low=0)
    ema: float = option(
        0.9999, "Decay of the weights' moving average.", group="Optimizer", low=0, high=1
    )
    ema_warmup: bool = option(
        True,
        "Begin with decay (1+step)/(10+step) until it reaches --ema, so that short runs "
        "have a usable average; --no-ema-warmup is the papers' constant decay.",
        group="Optimizer",
    )
    power_ema: bool = option(
        False,
        "Track two averages of power-function profile too, and keep them with every checkpoint: "
        "sit ema makes one of any length of them afterwards.",
        group="Optimizer",
    )
    gpus: int | None = option(None, GPUS_HELP, group="Processes", low=1)
    procs: int | None = option(None, PROCS_HELP, group="Processes", low=1)
    zero: names.Zero | None = option(
        None,
        "DeepSpeed ZeRO stage: 0 nothing, 1 optimizer, 2 + gradients, 3 + parameters sharded. "
        "[default: 1; 0 in one process; 3 with --offload params]",
        group="Processes",
    )
    offload: names.Offload = option(
        "none",
        "Keep the optimizer's state, or with --zero 3 the parameters too, in the main memory.",
        group="Processes",
    )
    deepspeed_config: Path | None = option(
        None,
        "DeepSpeed's JSON, for what no option says (buckets, communication). A contradiction with "
        "an option is an error.",
        group="Processes",
    )
    checkpoint_blocks: str = option(
        "none",
        "Recompute the activations of blocks backward instead of keeping them: none, all, every-2 "
        "(every second block), every-3, ...",
        group="Processes",
    )
    compile: names.Compile = option(
        "auto",
        COMPILE_HELP,
        group="Processes",
    )
    save_every: int | None = option(
        None,
        "Steps between checkpoints. [default: a tenth of the steps, at most 10000]",
        group="Checkpoints",
        low=1,
    )
    keep: int = option(3, "Newest checkpoints to keep; 0 keeps all.", group="Checkpoints", low=0)
    keep_every: int | None = option(
        None, "Keep the checkpoints of every so many steps for good.", group="Checkpoints", low=1
    )
    strict: bool = option(
        False,
        "Stop when a checkpoint cannot be written. [default: warn and train on]",
        group="Checkpoints",
    )
    on_nan: names.OnNan = option(
        "stop",
        "When the loss is no number: stop; or rollback, once, to the last checkpoint, and draw "
        "other noise and times for the steps since.",
        group="Checkpoints",
    )
    sample_every: int | None = option(
        None,
        "Steps between sample grids; 0 draws none. [default: as --save-every]",
        group="Watching",
        low=0,
    )
    log_every: int = option(50, "Steps between lines of metrics.jsonl.", group="Watching", low=1)
    wandb: bool = option(
        False, "Log to Weights & Biases too (pip install wandb).", group="Watching"
    )
    seed: int = option(0, "Everything random is a function of it.", group="Running", low=0)
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
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
        None, "Images to draw. [default: 64; under --noise its rows]", group="Images", low=1
    )
    classes: str | None = option(
        None, "Only these classes, numbers or names: 207,360 or 'goldfish,teapot'.", group="Images"
    )
    preset: names.SamplePreset | None = option(
        None,
        "Defaults for a whole recipe, which any other option overrides: official-sit and "
        "official-dit as the papers' best figures; fast: 20 evaluations of ab2.",
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
        "Ancestral sampling of a DiT model's chain. [its default]",
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
        "chain's 1000. [default: 50; with --sde or --ddpm 250]",
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
        "euler on the ODE, or none. [default: mean]",
        group="Sampler",
        role="detail",
    )
    last_step_size: float | None = option(
        None,
        "SDE: time left for the last step. [default: 0.04]",
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
        "Channels that are guided; 3 is what the published DiT and SiT figures use. [default: all; "
        "of imported weights what their figures were made with]",
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
    seed: int = option(0, "Image i depends on (seed, i) alone.", group="Running", low=0)
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    samples: list[Path] | None = option(
        None,
        "Sample sets, folders of pictures, or .npz; several are compared in one table. "
        "[default: the newest set below samples/] "
        "With --nll a run or one of its steps. [default: the newest run]",
        argument=True,
    )
    reference: Path | None = option(
        None,
        "Reference: a folder, latent store, sample set or ADM .npz. "
        "[default: the images the run's latent store was made from] "
        "With --nll a latent store. [default: the run's]",
        group="Data",
    )
    reference_num: int | None = option(
        None, "Use only this many reference images, spread evenly.", group="Data", low=2
    )
    fid: bool = option(
        False, "Frechet distance. [default when no metric is named]", group="Metrics"
    )
    sfid: bool = option(
        False, "Frechet distance of the spatial features, as ADM takes it.", group="Metrics"
    )
    isc: bool = option(False, "Inception Score.", group="Metrics")
    kid: bool = option(False, "Kernel distance, polynomial kernel.", group="Metrics")
    prc: bool = option(False, "Precision and recall, k = 3.", group="Metrics")
    dc: bool = option(False, "Density and coverage, k = 5.", group="Metrics")
    fdd: bool = option(
        False, "Frechet distance of DINOv2 features (FD-DINOv2), beside others.", group="Metrics"
    )
    all: bool = option(False, "All that --features gives, in one pass.", group="Metrics")
    isc_splits: int | None = option(
        None,
        "Splits of the Inception Score. [default: of 5,000 as ADM; below 10,000 samples 10]",
        group="Metrics",
        low=1,
    )
    bootstrap: int | None = option(
        None,
        "95% intervals from so many resamples of the samples, 100 say; minutes each at 50,000.",
        group="Metrics",
        low=10,
    )
    features: str = option(
        "inception",
        "inception; or clearly labelled as not FID: dinov2, pixels, or a TorchScript FILE.pt.",
        group="Features",
    )
    features_weights: Path | None = option(
        None, "InceptionV3 weights, if torch-fidelity has not cached them.", group="Features"
    )
    dinov2_weights: Path | None = option(
        None,
        "DINOv2 weights of a ViT-S, B or L/14, if torch hub has not cached them.",
        group="Features",
    )
    history: Path | None = option(
        None,
        "Score every checkpoint of this run: --num samples of each, by the default sampler or "
        "--solver and --steps. [--num: 1000]",
        group="History",
    )
    nll: bool = option(
        False,
        "How likely a model holds images to be, instead of metrics of samples: the exact "
        "log-likelihood of a SiT model, the variational bound of a DiT model.",
        group="Likelihood",
    )
    num: int | None = option(
        None, "Images, spread evenly over the store. [default: 64]", group="Likelihood", low=2
    )
    probes: int | None = option(
        None,
        "Random probes of the divergence an image; 0 takes the exact trace, at a backward pass "
        "for each dimension. [default: 1]",
        group="Likelihood",
        low=0,
    )
    solver: names.OdeSolver | None = option(
        None,
        "euler, heun, rk4 or dopri5; of --history any of sit sample's. [default: rk4]",
        group="Likelihood",
    )
    steps: int | None = option(
        None,
        "Steps of the ODE [default: 50], or of a DiT model's chain [default: all].",
        group="Likelihood",
        low=1,
    )
    rtol: float | None = option(
        None, "dopri5: relative tolerance. [default: 1e-5]", group="Likelihood", low=0
    )
    atol: float | None = option(
        None, "dopri5: absolute tolerance. [default: 1e-5]", group="Likelihood", low=0
    )
    batch_size: int = option(16, "Images per network call.", group="Running", low=1)
    gpus: int | None = option(None, GPUS_HELP, group="Running", low=1)
    procs: int | None = option(None, PROCS_HELP, group="Running", low=1)
    seed: int = option(
        0,
        "KID's subsets, the halves of the floor, the bootstrap, the samples of --history; with "
        "--nll the probes, and where bytes and posteriors are sampled.",
        group="Running",
        low=0,
    )
    device: str = option("auto", DEVICE_HELP, group="Running")


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    run: Path | None = option(
        None,
        "A run trained with --power-ema. [default: the newest below runs/]",
        argument=True,
    )
    std: float = option(
        ...,
        "Length of the average, as its standard deviation relative to the training time: 0.05 is "
        "short, 0.10 long.",
        low=0.005,
        high=0.28,
    )
    step: int | None = option(
        None, "The average as it was at this step. [default: the newest that was kept]", low=1
    )
    out: Path | None = option(None, "Run directory to write. [default: RUN-emaSTD]")


@dataclass(frozen=True, kw_only=True)
class ImportSettings:
    weights: Path = option(
        ...,
        "A .pt, .pth, .ckpt, .bin or .safetensors file, a folder of diffusers, or hf:OWNER/NAME "
        "(and /FILE within it) on the hub.",
        argument=True,
    )
    out_dir: Path = option(..., "Run directory to write, e.g. runs/sit-xl.", argument=True)
    model: str | None = option(
        None,
        "SiT-XL/2, DiT-B/4, ...: whether it is a SiT or a DiT, where neither the file nor its name "
        "tells; its size is checked.",
        group="Whose they are",
    )
    lineage: names.Lineage | None = option(
        None,
        "official-sit, official-dit (fast-DiT's too), repa, diffusers: decides process, direction "
        "of time and guided channels. [default: as the file tells]",
        group="Whose they are",
    )
    heads: int | None = option(
        None, "Attention heads, of a width that no preset has.", group="Whose they are", low=1
    )
    interpolant: names.Interpolant | None = option(
        None,
        "SiT: path it was trained on. [default: as the trainer's arguments say, else linear]",
        group="Whose they are",
    )
    prediction: names.Prediction | None = option(
        None,
        "SiT: what it outputs. [default: as the trainer's arguments say, else velocity]",
        group="Whose they are",
    )
    image_size: str | None = option(
        None,
        "512, or 256x512 (height first): recompute the positions for images of this size. "
        "[default: that of the weights]",
        group="Images",
    )
    vae: str | None = option(
        None,
        "Autoencoder of the latents, as in encode-latents. [default: for 4 channels "
        "stabilityai/sd-vae-ft-ema, else it must be said]",
        group="Images",
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    checkpoint: Path = option(
        ..., "A run directory or one of its steps; of a run the newest step.", argument=True
    )
    out: Path = option(..., "File to write; for --format diffusers a folder.", argument=True)
    format: names.ExportFormat = option(
        "safetensors",
        "official-sit, official-dit: a state dict the official code loads; diffusers: a folder "
        "with its own pipeline; safetensors: official keys and all that sit import needs.",
    )
    weights: names.Weights = option("ema", "Averaged or last weights.")
    vae: str | None = option(
        None, "diffusers: where the autoencoder is now, if it moved since encoding."
    )
    overwrite: bool = option(False, "Replace OUT if it is there.")


@dataclass(frozen=True, kw_only=True)
class FlopsSettings:
    model: str | None = option(
        None, "SiT-S/2, DiT-XL/2, ... [default: all twelve of the papers]", argument=True
    )
    image_size: int = option(256, "Side of the images in pixels.", group="Model", low=1)
    downsample: int = option(8, "Pixels per latent, each way.", group="Model", low=1)
    channels: int = option(4, "Latent channels.", group="Model", low=1)
    out_channels: int | None = option(
        None,
        "Network output channels. [default: twice the latent's, as the papers]",
        group="Model",
        low=1,
    )
    num_classes: int = option(1000, "Classes; 0 is unconditional.", group="Model", low=0)
    patch: int | None = option(None, "Override the patch side.", group="Model", low=1)
    depth: int | None = option(None, "Override the number of blocks.", group="Model", low=1)
    width: int | None = option(None, "Override the hidden size.", group="Model", low=4)
    heads: int | None = option(None, "Override the attention heads.", group="Model", low=1)
    block: names.Block = option(
        "adaln-zero",
        "How time and label enter: one of the DiT paper's four block designs.",
        group="Model",
    )
    sampling_steps: int = option(
        250, "Network evaluations per sample, before guidance.", group="Cost", low=1
    )
    guidance: bool = option(False, "Count guidance: two evaluations each.", group="Cost")
    train_steps: int = option(400_000, "Training steps.", group="Cost", low=1)
    batch_size: int = option(256, "Training batch.", group="Cost", low=1)
    check: bool = option(
        True, "Compare the formula with torch's own counter on the meta device.", group="Cost"
    )


@dataclass(frozen=True, kw_only=True)
class InspectSettings:
    path: Path = option(..., "A latent store, run, step or sample set.", argument=True)
    verify: bool = option(False, "Read everything back and recompute checksums.")
    preview: Path | None = option(None, "Decode a grid of pictures into this PNG.")
    plot: bool = option(
        False, "Draw the loss over t and every w_t into RUN/w_t-STEP.png, and print them."
    )
    eta: float | None = option(None, "With --plot: eta of w_t kl-eta. [default: 0.1]", low=0)
    vae: str | None = option(None, "Where the autoencoder is now, if it moved since encoding.")
    device: str = option("auto", DEVICE_HELP)


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    run: Path | None = option(
        None, "A run directory. [default: the run below runs/ that wrote last]", argument=True
    )
    every: float = option(2.0, "Seconds between looks at the files.", low=0.1)
    once: bool = option(False, "Show how it stands now, and end. So does --json.")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    what: names.Bench = option(
        ...,
        "train: steps; sample: network evaluations and solver steps; encode: encode-latents; "
        "loader: reading latents; gemm: a model's matrix products alone.",
        argument=True,
    )
    model: str | None = option(
        None,
        "train, sample, gemm: SiT-SIZE/PATCH or DiT-SIZE/PATCH, as in sit train. [default: "
        "SiT-XL/2 on a GPU, SiT-S/2 on a CPU]",
        group="Network",
    )
    batch_size: int | None = option(
        None,
        "Images a batch. [default: loader 256, encode 16, else 64 on a GPU and 16 on a CPU]",
        group="Running",
        low=1,
    )
    find_batch: bool = option(
        False,
        "train: try batch sizes from 1 on, doubling, and tell the smallest that is within 3% of "
        "the fastest.",
        group="Network",
    )
    compile: names.Compile = option("auto", "train, sample: as there.", group="Network")
    tread: float = option(
        0.0,
        "train: as sit train --tread; the network's parts are measured without it.",
        group="Network",
        low=0,
        high=0.9,
    )
    source: Path | None = option(
        None,
        "encode: images, as in encode-latents. [default: pictures drawn on the spot]",
        group="Images",
    )
    vae: str = option(
        names.DEFAULT_VAE, "encode: the autoencoder, as in encode-latents.", group="Images"
    )
    image_size: int = option(256, "encode: side of the images.", group="Images", low=8)
    images: int = option(64, "encode: how many, each with its mirror.", group="Images", low=1)
    latents: Path | None = option(
        None,
        "Latent store. [default: loader: the newest complete *.h5 below this folder; train, "
        "sample, gemm: 4 x 32 x 32 of noise, 1000 classes]",
        group="Data",
    )
    items: int | None = option(
        None,
        "loader: make a store of this many items of 8 x 32 x 32 float16 with flips (32 KiB an "
        "item), and remove it at the end.",
        group="Data",
        low=1,
    )
    files: int = option(
        0,
        "loader: write this many items into files too, a .npy of the latent and one of the label "
        "each, as layouts of a file per image do, and measure them beside.",
        group="Data",
        low=0,
    )
    dir: Path | None = option(
        None, "Where to write meanwhile. [default: the system's temporary folder]", group="Data"
    )
    posterior: names.Posterior = option(
        "sample", "loader: as in training; mode reads the means alone.", group="Data"
    )
    cold: bool = option(
        False,
        "loader: drop the store from the page cache before every round; as root, what the kernel "
        "remembers of the files' names and places too.",
        group="Data",
    )
    workers: int = option(1, "loader: processes that read at once.", group="Data", low=1)
    rounds: int = option(5, "Rounds; the figures are medians.", group="Running", low=1)
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")


@dataclass(frozen=True, kw_only=True)
class QuickstartSettings:
    out: Path = option(Path("quickstart"), "Folder for everything.", argument=True)
    images_per_class: int = option(200, "Pictures drawn of each of the 10 classes.", low=2)
    steps: int = option(1500, "Training steps.", low=1)
    seed: int = option(0, "Everything random is a function of it.", low=0)
    device: str = option("auto", DEVICE_HELP)
