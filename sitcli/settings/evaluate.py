"""Settings of `sit evaluate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import DEVICE_HELP, GPUS_HELP, MOST_SEED, PROCS_HELP, option


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Options of `sit evaluate`."""

    samples: list[Path] | None = option(
        None,
        "Sample sets, folders of pictures, or .npz; several are compared in one table. "
        "[default: the newest set below samples/] "
        "With --nll a run or one of its steps. [default: the newest run]",
        argument=True,
    )
    reference: Path | None = option(
        None,
        "Reference: a folder, archive or shards of images, a latent store, sample set or ADM .npz. "
        "[default: the images the run's latent store was made from] "
        "With --nll a latent store. [default: the run's]",
        group="Data",
    )
    reference_num: int | None = option(
        None, "Use only this many reference images, spread evenly.", group="Data", low=2
    )
    reference_classes: names.ReferenceClasses = option(
        "all",
        "all: compare with all classes of the reference; same: with those alone that the samples "
        "are of, by their names, or by their numbers where a side has no names.",
        group="Data",
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
    all: bool = option(False, "All metrics that --features gives, in one pass.", group="Metrics")
    isc_splits: int | None = option(
        None,
        "Equal splits of the shuffled samples, as torch-fidelity takes the Inception Score. "
        "[default: ADM's, every 5,000 in file order and one of the rest]",
        group="Metrics",
        low=1,
    )
    bootstrap: int | None = option(
        None,
        "95% intervals, where no formula gives them from figures of this many halves and quarters "
        "of the samples (an m out of n bootstrap without replacement), e.g. 50.",
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
        "Measure the likelihood of images under a model, instead of metrics of samples: the exact "
        "log-likelihood of a SiT model, the variational bound of a DiT model.",
        group="Likelihood",
    )
    num: int | None = option(
        None, "Images, spread evenly over the store. [default: 64]", group="Likelihood", low=2
    )
    probes: int | None = option(
        None,
        "Random probes of the divergence per image; 0 computes the exact trace, at a backward pass "
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
        "Seed of KID's subsets, the real images beside the samples, the bootstrap and the samples "
        "of --history; with --nll of the probes and of sampled bytes and posteriors.",
        group="Running",
        low=0,
        high=MOST_SEED,
    )
    device: str = option("auto", DEVICE_HELP, group="Running")
