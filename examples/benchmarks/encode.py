"""`sit encode-latents` beside the bare autoencoder loop on images that are in memory already.

    python examples/benchmarks/encode.py imagenet/ --vae taef2/ [--images 64] [--rounds 3]

The two alternate; printed are images/s of each (both encode the mirrored images too) and the
ratio, medians over the rounds. The stage's figure holds everything: reading and cropping, writing
and reading back.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from sitcli.io.autoencoder import load_autoencoder, to_signed
from sitcli.io.images import open_source, prepare
from sitcli.io.launch import resolve_device, resolve_precision
from sitcli.settings import EncodeSettings
from sitcli.stages.encode import encode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--vae", default="pixels")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    device = resolve_device("auto")
    dtype = resolve_precision("auto", device)
    autoencoder = load_autoencoder(options.vae, device=device, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        images = copy_images(options, Path(folder) / "images")
        bare, stage = [], []
        for number in range(options.rounds):
            bare.append(len(images) / bare_loop(autoencoder, images, options.batch_size))
            store = Path(folder) / f"{number}.h5"
            stage.append(len(images) / whole_stage(options, Path(folder) / "images", store))
    ratio = statistics.median(s / b for s, b in zip(stage, bare, strict=True))
    print(f"bare loop    {statistics.median(bare):.3g} images/s")
    print(f"sit encode   {statistics.median(stage):.3g} images/s")
    print(f"ratio        {ratio:.2f} on {device}, {dtype}, {torch.get_num_threads()} thread(s)")


def copy_images(options: argparse.Namespace, folder: Path) -> np.ndarray:
    """The first images as files for the stage, and prepared (N, H, W, 3) for the bare loop."""
    source = open_source(options.source)
    folder.mkdir()
    prepared = []
    for index in range(min(options.images, len(source))):
        image = source.read(index)
        image.save(folder / f"{index:05d}.jpg", quality=95)
        prepared.append(prepare(image, options.image_size, "adm"))
    return np.stack(prepared)


def bare_loop(autoencoder, images: np.ndarray, batch_size: int) -> float:
    """Seconds to encode all images and their mirrors."""
    start = time.perf_counter()
    with torch.inference_mode():
        for begin in range(0, len(images), batch_size):
            batch = images[begin : begin + batch_size]
            for view in (batch, batch[:, :, ::-1]):
                autoencoder.encode(to_signed(view)).cpu()
    return time.perf_counter() - start


def whole_stage(options: argparse.Namespace, source: Path, store: Path) -> float:
    """Seconds the stage takes, libraries loaded."""
    settings = EncodeSettings(
        source=source,
        out=store,
        vae=options.vae,
        image_size=options.image_size,
        batch_size=options.batch_size,
    )
    start = time.perf_counter()
    for _ in encode(settings):
        pass
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
