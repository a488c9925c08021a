"""Small real artefacts for tests: pictures, a latent store under `pixels`, sample sets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from sitcli.autoencoders.base import to_signed
from sitcli.autoencoders.load import load_autoencoder
from sitcli.events import Result, Stage
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.store import LatentStore
from sitcli.metrics.moments import Moments
from sitcli.samples.sample_set import SampleSet
from sitcli.storage.rows import Rows

ENVIRONMENT = {"OMP_NUM_THREADS": "1", **os.environ}  # of processes that tests start
COLOURS = np.array([[220, 40, 40], [40, 200, 60], [50, 70, 230]], np.uint8)


def finish(stage: Stage) -> Result:
    """Run a stage to its end."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def pictures(number: int, *, side: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, side, side, 3) flat colours with a dark stripe, and their classes (N,)."""
    random = np.random.default_rng(seed)
    labels = np.arange(number) % len(COLOURS)
    images = np.repeat(COLOURS[labels][:, None, None], side, 1).repeat(side, 2)
    for image, row in zip(images, random.integers(0, side, number), strict=True):
        image[row] = 20
    return images, labels


def make_store(path: Path, *, number: int = 24, side: int = 8, classes: bool = True) -> LatentStore:
    """A complete store of `number` pictures under the identity autoencoder."""
    images, labels = pictures(number, side=side)
    autoencoder = load_autoencoder("pixels", device=torch.device("cpu"), dtype=torch.float32)
    create_store(
        path,
        paths=[f"{label}/{i}.png" for i, label in enumerate(labels)],
        labels=labels if classes else np.zeros_like(labels),
        class_names=["red", "green", "blue"] if classes else [],
        row_shape=(3, side, side),
        kind="latents",
        flips=True,
        autoencoder=autoencoder.spec,
        autoencoder_arrays={},
        scaling=autoencoder.scaling,
        image_size=side,
        crop="none",
        source=str(path.parent / "pictures"),
        source_fingerprint=f"{number}-{side}-{classes}",
        vae="pixels",
        batch_size=8,
        precision="fp32",
    )
    latents = to_signed(images).numpy().astype(np.float16)
    with Rows(path, writable=True) as file:
        flipped = np.ascontiguousarray(latents[..., ::-1])
        crc = row_checksums(latents, flipped)
        file.write(range(number), latents=latents, latents_flipped=flipped, crc32=crc)
        file.set_attrs(complete=True, checksum=LatentStore(file).checksum())
    return LatentStore.open(path)


def write_folder(path: Path, images: np.ndarray) -> Path:
    """PNG files 000.png, 001.png, ... of images (N, H, W, 3) uint8."""
    path.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


def write_samples(path: Path, images: np.ndarray, *, finish: bool = True, **meta: Any) -> Path:
    """A sample set of images (N, H, W, 3) uint8, each of a class of its own."""
    numbers = np.arange(len(images))
    samples = SampleSet.create(
        path / "samples.h5",
        labels=numbers,
        seeds=numbers,
        image_size=images.shape[1:3],
        latent_shape=None,
        meta=meta,
    )
    samples.rows.write(numbers, images=images)
    if finish:
        samples.finish()
    return path


def moments(vectors: np.ndarray, block: int = 7) -> Moments:
    """Of vectors (N, D), taken in block by block."""
    total = Moments(vectors.shape[1])
    for start in range(0, len(vectors), block):
        total.add(vectors[start : start + block])
    return total


def inception_file(path: Path) -> Path:
    """The real InceptionV3 with seeded random weights, as a file of the official one's form."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    path_empty = path.with_name("empty.pth")
    torch.save({}, path_empty)
    # The constructor has no "do not load": give it nothing to load.
    with patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3(
            "x", ["2048"], feature_extractor_weights_path=str(path_empty)
        )
    # Plain random weights shrink every image to the same features; He's keep their spread.
    rng = torch.Generator().manual_seed(0)
    for name, weight in network.state_dict().items():
        if name.endswith("conv.weight"):
            weight.normal_(0, (2 / weight[0].numel()) ** 0.5, generator=rng)
        elif name == "fc.weight":
            weight.normal_(0, 0.1, generator=rng)
    torch.save(network.state_dict(), path)
    return path
