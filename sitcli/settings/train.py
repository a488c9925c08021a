"""Settings of `sit train`."""

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
class TrainSettings:
    """Options of `sit train`."""

    preset: names.TrainPreset | None = option(
        None,
        "Defaults for a whole recipe, which any other option overrides: official-sit and "
        "official-dit as the papers train; fast: half of the tokens skip blocks; fast-sync: fast "
        "and LayerSync; lightning: LightningDiT's blocks and times.",
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
    init: str | None = option(
        None,
        "Begin a new run from these weights: a run, a step of one, an imported folder, or what sit "
        "import takes (a file, hf:OWNER/NAME). Network and objective are the source's, where no "
        "option says otherwise.",
        group="Model",
    )
    weights: names.Weights = option("ema", "With --init: averaged or last weights.", group="Model")
    freeze: list[str] | None = option(
        None,
        "Do not train these parameters, by name or pattern: 'blocks.[0-5].*'; may be repeated.",
        group="Model",
    )
    train_only: list[str] | None = option(
        None,
        "Train these parameters alone, by name or pattern: '*adaLN*'; may be repeated.",
        group="Model",
    )
    lora: int | None = option(
        None,
        "With --init: train low-rank adapters of this rank beside the blocks' layers, and what is "
        "new; checkpoints keep these alone (pip install 'sitcli[lora]').",
        group="Model",
        low=1,
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
    qk_norm: bool = option(False, "Normalise queries and keys.", group="Model")
    qk_kind: names.QkKind = option(
        "rms", "How --qk-norm does: layer is LayerNorm, as REPA has it.", group="Model"
    )
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
        "The block after which the second head is. [default: 4 of 12, 8 of 24 and more]",
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
        "TREAD: START,STOP: those tokens skip the blocks START+1 to STOP. [default: all but the "
        "first 2 and the last 4; of fewer than 8 blocks all but the first and the last]",
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
        "sit ema makes an average of any length from them afterwards.",
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
        "DeepSpeed's JSON, for settings without an option (buckets, communication). A "
        "contradiction with an option is an error.",
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
        "If the loss is not finite: stop; or rollback, once, to the last checkpoint, and draw "
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
    seed: int = option(
        0, "Everything random is a function of it.", group="Running", low=0, high=MOST_SEED
    )
    device: str = option("auto", DEVICE_HELP, group="Running")
    precision: names.Precision = option("auto", PRECISION_HELP, group="Running")
