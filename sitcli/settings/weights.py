"""Settings of `sit ema`, `sit import` and `sit export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import option


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """Options of `sit ema`."""

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
    """Options of `sit import`."""

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
        "official-sit, official-dit (fast-DiT's too), repa, lightningdit, diffusers: decides "
        "process, direction of time and guided channels. [default: as the file tells]",
        group="Whose they are",
    )
    heads: int | None = option(
        None, "Attention heads, for a width that no preset has.", group="Whose they are", low=1
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
    ignore_args: bool = option(
        False,
        "Take nothing from the trainer's arguments in the file. [default: each is compared with "
        "the tensors and the options, and a contradiction is an error]",
        group="Whose they are",
    )
    class_names: str | None = option(
        None,
        "imagenet, none, or a text FILE with a name a line. [default: as the file says; for 1,000 "
        "classes without names imagenet]",
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
        "stabilityai/sd-vae-ft-ema, for LightningDiT's 32 the VA-VAE, else it must be said]",
        group="Images",
    )
    latent_stats: Path | None = option(
        None,
        "Statistics per channel of the latents: LightningDiT's latents_stats.pt, REPA-E's "
        "NAME-latents-stats.pt. [default: those in a REPA-E network; for LightningDiT the file "
        "beside the weights]",
        group="Images",
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """Options of `sit export`."""

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
