"""`sit bench encode`: `encode-latents` beside the bare autoencoder loop on images in memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from sitcli.autoencoders.base import Autoencoder, to_signed
from sitcli.autoencoders.load import load_autoencoder
from sitcli.commands.bench.synthetic import temporary_folder
from sitcli.commands.encode.stage import encode
from sitcli.errors import SitError
from sitcli.events import Event, Note, Progress, Result, Stage, Table
from sitcli.images.decode import to_square
from sitcli.images.drawn import SHAPES, draw_shape
from sitcli.images.source import open_source
from sitcli.machine.devices import precision_name, resolve_device, resolve_precision, tune_cpu
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.tools import BenchSettings

BATCH_SIZE = 16


def bench_encode(settings: BenchSettings) -> Stage:
    """Time `encode-latents` and the bare autoencoder in turn, on the same images and their mirrors.

    The time of `encode-latents` includes reading and cropping JPEG files, writing and reading back.
    Raises SitError for an autoencoder that cannot be loaded or a source that cannot be read.
    """
    device = resolve_device(settings.device)
    dtype = resolve_precision(settings.precision, device)
    autoencoder = load_autoencoder(settings.vae, device=device, dtype=dtype)
    tune_cpu(device)
    size, rounds = settings.batch_size or BATCH_SIZE, settings.rounds
    with temporary_folder(settings.dir) as name:
        folder = Path(name) / "images"
        images = yield from _images(settings, folder)
        bare, stage = [], []
        for number in range(rounds + 1):  # the first warms both up
            yield Progress(done=number, total=rounds + 1, unit="rounds")
            bare.append(_bare_loop(autoencoder, images, size))
            stage.append(_whole_stage(settings, folder, Path(name) / f"{number}.h5", size, dtype))
    rates = {
        "the autoencoder alone": [len(images) / seconds for seconds in bare[1:]],
        "sit encode-latents": [len(images) / seconds for seconds in stage[1:]],
    }
    ratio = statistics.median(b / s for b, s in zip(bare[1:], stage[1:], strict=True))
    table = Table(
        title="Encoding images",
        header=["", "images/s", "from - to"],
        rows=[
            [label, f"{statistics.median(r):.4g}", f"{min(r):.4g} - {max(r):.4g}"]
            for label, r in rates.items()
        ],
    )
    summary = {
        "autoencoder": f"{settings.vae}, {settings.image_size} px, batches of {size}",
        "images": f"{len(images)} and their mirrors, {rounds} rounds",
        "running": f"{device}, {precision_name(dtype)}, {torch.get_num_threads()} threads",
        "ratio": f"{ratio:.3f} of the autoencoder alone",
    }
    names = ("bare_images_per_second", "stage_images_per_second")
    data = dict(zip(names, rates.values(), strict=True)) | dict(ratio=ratio, batch_size=size)
    return Result(summary=summary, tables=[table], data=data)


def _images(settings: BenchSettings, folder: Path) -> Iterator[Event]:
    """Write the images as files; returns them cropped and resized, (N, H, W, 3) uint8."""
    from PIL import Image

    folder.mkdir()
    side, prepared = settings.image_size, []
    source = None if settings.source is None else open_source(settings.source, labels="none")
    if source is None:
        yield Note("images: coloured shapes, drawn on the spot")
    number = settings.images if source is None else min(settings.images, len(source))
    if not number:
        raise SitError(f"{settings.source} holds no images")
    for index in range(number):
        if source is None:
            name = list(SHAPES)[index % len(SHAPES)]
            image = Image.fromarray(draw_shape(name, index, size=side, seed=0))
        else:
            image = source.read(index)
        image.save(folder / f"{index:05d}.jpg", quality=95)
        prepared.append(to_square(image, side, "adm"))
        yield Progress(done=index + 1, total=number, text="preparing the images")
    return np.stack(prepared)


def _bare_loop(autoencoder: Autoencoder, images: np.ndarray, batch_size: int) -> float:
    """Seconds to encode all images and their mirrors."""
    began = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            for view in (batch, batch[:, :, ::-1]):
                autoencoder.encode(to_signed(view)).cpu()
    return time.perf_counter() - began


def _whole_stage(
    settings: BenchSettings, source: Path, store: Path, batch_size: int, dtype: torch.dtype
) -> float:
    """Seconds of `sit encode-latents` without loading its libraries; its store is removed."""
    bench = EncodeSettings(
        source=source,
        out=store,
        vae=settings.vae,
        image_size=settings.image_size,
        batch_size=batch_size,
        device=settings.device,
        precision=precision_name(dtype),
    )
    began = time.perf_counter()
    for _ in encode(bench):
        pass
    seconds = time.perf_counter() - began
    store.unlink()
    return seconds
