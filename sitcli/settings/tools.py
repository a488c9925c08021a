"""Settings of `sit flops`, `inspect`, `watch`, `bench` and `quickstart`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sitcli import names
from sitcli.settings.option import DEVICE_HELP, MOST_SEED, PRECISION_HELP, option


@dataclass(frozen=True, kw_only=True)
class FlopsSettings:
    """Options of `sit flops`."""

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
    """Options of `sit inspect`."""

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
    """Options of `sit watch`."""

    run: Path | None = option(
        None, "A run directory. [default: the run below runs/ that wrote last]", argument=True
    )
    every: float = option(2.0, "Seconds between looks at the files.", low=0.1)
    once: bool = option(False, "Show the run as it is now, and end. So does --json.")


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Options of `sit bench`."""

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
        "train: try batch sizes from 1 on, doubling, and print the smallest that is within 3% of "
        "the fastest.",
        group="Network",
    )
    compile: names.Compile = option(
        "auto", "train, sample: as in sit train and sit sample.", group="Network"
    )
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
        "each, as layouts of a file per image do, and measure reading them too.",
        group="Data",
        low=0,
    )
    dir: Path | None = option(
        None,
        "Folder for files that are removed at the end. [default: the system's temporary folder]",
        group="Data",
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
    """Options of `sit quickstart`."""

    out: Path = option(Path("quickstart"), "Folder for everything.", argument=True)
    images_per_class: int = option(200, "Pictures drawn of each of the 10 classes.", low=2)
    steps: int = option(1500, "Training steps.", low=1)
    seed: int = option(0, "Everything random is a function of it.", low=0, high=MOST_SEED)
    device: str = option("auto", DEVICE_HELP)
