"""Every closed list of choices, torch-free so that ``--help`` stays fast.

Each list names the rows of one table elsewhere; a test ties the two together.
"""

from __future__ import annotations

from typing import Literal, get_args

Interpolant = Literal["linear", "gvp", "vp"]
Prediction = Literal["velocity", "score", "noise", "data"]
LossWeight = Literal["none", "velocity", "likelihood"]
Betas = Literal["linear", "cosine"]
Variance = Literal["learned-range", "fixed-small", "fixed-large"]
OneStepSolver = Literal["euler", "heun", "rk4"]
MultistepSolver = Literal["ab2", "dpm++2m"]  # these run only from noise to data
AdaptiveSolver = Literal["dopri5"]
SdeSolver = Literal["euler-maruyama", "heun"]
LastStep = Literal["mean", "tweedie", "euler", "none"]
Wt = Literal["kl", "kl-eta", "sigma", "sin2", "linear", "constant", "decreasing"]
GuidedChannels = Literal["all", "3"]
LabelPolicy = Literal["balanced", "random"]
Posterior = Literal["sample", "mode"]
Schedule = Literal["constant", "cosine", "linear"]
Weights = Literal["ema", "model"]
Crop = Literal["adm", "resize", "none"]
ReferenceClasses = Literal["all", "same"]
Labels = Literal["auto", "folders", "none"]
Normalize = Literal["autoencoder", "channels"]
LatentValues = Literal["auto", "scaled", "unscaled"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Zero = Literal["0", "1", "2", "3"]
Offload = Literal["none", "optimizer", "params"]
Compile = Literal["auto", "on", "off"]
OnNan = Literal["stop", "rollback"]
Bench = Literal["train", "sample", "encode", "loader", "gemm"]
Block = Literal["adaln-zero", "adaln", "cross-attention", "in-context"]
Lineage = Literal["official-sit", "official-dit", "repa", "lightningdit", "diffusers"]
ExportFormat = Literal["official-sit", "official-dit", "diffusers", "safetensors"]
TimeDistribution = Literal["uniform", "logit-normal"]
Mlp = Literal["gelu", "swiglu"]
QkKind = Literal["rms", "layer"]
Norm = Literal["layer", "rms"]
TrainPreset = Literal["official-sit", "official-dit", "fast", "fast-sync", "lightning"]
SamplePreset = Literal["official-sit", "official-dit", "fast"]
Size = Literal["Mi", "Ti", "S", "B", "L", "XL"]
PaperSize = Literal["S", "B", "L", "XL"]


def _joined(*lists: object) -> tuple[str, ...]:
    """The names of several lists, each once."""
    return tuple(dict.fromkeys(name for each in lists for name in get_args(each)))


OdeSolver = Literal[_joined(OneStepSolver, MultistepSolver, AdaptiveSolver)]
ODE_SOLVERS = get_args(OdeSolver)
MAP_SOLVERS = _joined(OneStepSolver, AdaptiveSolver)  # these also run from data to noise
Solver = Literal[(*ODE_SOLVERS, *(set(get_args(SdeSolver)) - set(ODE_SOLVERS)))]
INTERPOLANTS = get_args(Interpolant)
PREDICTIONS = get_args(Prediction)
LOSS_WEIGHTS = get_args(LossWeight)
BETAS = get_args(Betas)
VARIANCES = get_args(Variance)
SDE_SOLVERS = get_args(SdeSolver)
LAST_STEPS = get_args(LastStep)
WTS = get_args(Wt)
SCHEDULES = get_args(Schedule)
LINEAGES = get_args(Lineage)
EXPORT_FORMATS = get_args(ExportFormat)
BLOCKS = get_args(Block)
TIME_DISTRIBUTIONS = get_args(TimeDistribution)
MLPS = get_args(Mlp)
QK_KINDS = get_args(QkKind)
NORMS = get_args(Norm)
TRAIN_PRESETS = get_args(TrainPreset)
SAMPLE_PRESETS = get_args(SamplePreset)
SIZES = get_args(Size)
PAPER_MODELS = tuple(f"{size}/{patch}" for size in get_args(PaperSize) for patch in (8, 4, 2))
EMBEDDED_VAES = ("pixels", "patch-pca")
DEFAULT_VAE = "stabilityai/sd-vae-ft-ema"
