"""Small real artefacts for tests: pictures, latent stores, sample sets, runs and trainings."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from sitcli.autoencoders.base import to_signed
from sitcli.autoencoders.load import load_autoencoder
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.commands.sample.stage import sample
from sitcli.core.flow import Flow
from sitcli.events import Result, Stage
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.store import LatentStore
from sitcli.metrics.moments import Moments
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.train import TrainSettings
from sitcli.storage.files import with_checksum
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import write_tensors
from tests.model.networks import filled

SHARED = Path(__file__).parents[2] / "shared"  # weights and pictures beside the checkout
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


def write_samples(
    path: Path,
    images: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    finish: bool = True,
    **meta: Any,
) -> Path:
    """A sample set of images (N, H, W, 3) uint8, each of a class of its own if no labels say."""
    numbers = np.arange(len(images))
    samples = SampleSet.create(
        path / "samples.h5",
        labels=numbers if labels is None else labels,
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


TRAINING = dict(
    model="SiT-Mi/4", width=32, depth=2, heads=2, batch_size=8, log_every=1, save_every=2,
    sample_every=0, precision="fp32", lr=1e-3, device="cpu",
)  # fmt: skip


def losses(run: Path) -> list[tuple[int, float, float]]:
    return [(e["step"], e["loss"], e["grad_norm"]) for e in RunDir(run).read_metrics()]


def train_settings(store: Path, out: Path, **more) -> TrainSettings:
    return TrainSettings(latents=[store], out=out, **{**TRAINING, **more})


def train_command(store: Path, out: Path, **more) -> list[str]:
    options = {**TRAINING, **more, "latents": store, "out": out}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    return ["-m", "sitcli", "train", *flags]


def numbered_losses(run: Path) -> list[tuple[int, float]]:
    return [(e["step"], e["loss"]) for e in RunDir(run).read_metrics()]


def wait_for_steps(run: Path, number: int, process: subprocess.Popen, timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while len(RunDir(run).read_metrics()) < number:
        assert process.poll() is None, "the trainer ended early"
        assert time.monotonic() < end, "the trainer did not get going"
        time.sleep(0.02)


CONFIG = TransformerConfig(
    input_size=8, patch=2, channels=3, out_channels=3, width=32, depth=2, heads=2, num_classes=3
)


def random_network(config: TransformerConfig) -> Transformer:
    return filled(config, std=0.08)


def make_run(folder: Path, *, process: Flow | None = None, classes: bool = True) -> Path:
    """A run with one checkpoint of random weights: sampling does not ask how they were found."""
    store = make_store(folder / "tiny.h5", classes=classes)
    process = process or Flow()
    config = dataclasses.replace(
        CONFIG,
        out_channels=process.out_channels(CONFIG.channels),
        num_classes=CONFIG.num_classes if classes else 0,
    )
    network = random_network(config)
    run = RunDir(folder / "runs" / "tiny")
    step = run.begin_save(7)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", network.state_dict())
    counts = [1.0] * 4
    meta = checkpoint_meta(
        config, process, model="SiT-Mi/2", ema=0.9999, label_dropout=0.1,
        latents=latent_facts(store), loss_by_t=dict(sums=counts, counts=counts),
    )  # fmt: skip
    run.commit_save(7, meta)
    return run.path


def draw(run: Path, out: str, **options) -> SampleSet:
    """Sample into a folder beside the run."""
    options = {"num": 8, "steps": 4, "precision": "fp32", "device": "cpu", **options}
    result = finish(sample(SampleSettings(checkpoint=run, out=run.parents[1] / out, **options)))
    return SampleSet.open(result.path)


def use_patch_pca(run: Path) -> None:
    """Give the run a network on the 4 x 4 x 4 latents of patch-pca."""
    fitted = fit_patch_pca(pictures(24)[0], patch=2, channels=4)
    step = open_checkpoint(run).path
    arrays = {name: torch.from_numpy(array) for name, array in fitted.arrays.items()}
    write_tensors(step / "autoencoder.safetensors", arrays)
    config = dataclasses.replace(CONFIG, input_size=4, channels=4, out_channels=4)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", random_network(config).state_dict())
    meta = json.loads((step / "meta.json").read_text())
    meta["transformer"] = dataclasses.asdict(config)
    meta["latents"]["autoencoder"] = fitted.spec
    write_meta(step / "meta.json", meta)


def normalise(run: Path, **facts: Any) -> None:
    """Give the run's latents this `scaling` and `shift`."""
    file = open_checkpoint(run).path / "meta.json"
    meta = json.loads(file.read_text())
    meta["latents"] |= facts
    write_meta(file, meta)


def write_meta(file: Path, meta: dict[str, Any]) -> None:
    """Replace a checkpoint's meta.json, as a checkpoint that was saved with these facts has it."""
    file.write_text(json.dumps(with_checksum(meta) if "checksum" in meta else meta))
