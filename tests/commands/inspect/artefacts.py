"""Tiny artefacts of every kind for the tests of `sit inspect`, and how they are damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from sitcli.autoencoders.base import to_signed
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.commands.inspect.stage import inspect
from sitcli.core.flow import Flow
from sitcli.engine.optimizer_state import MOMENTS, write_snapshot
from sitcli.events import Result
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.readback import ReadBack
from sitcli.latents.store import LatentStore
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.tools import InspectSettings
from sitcli.storage.rows import BROKEN, DONE, Rows
from sitcli.storage.tensors import write_tensors
from tests.tiny import write_meta

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
NUM = 13  # image 4 is broken


def inspected(path: Path, **settings) -> Result:
    """The stage's result; its events are read and dropped, as a silent terminal would."""
    stage = inspect(InspectSettings(path=path, device="cpu", **settings))
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def facts(result: Result) -> dict[str, str]:
    return dict(result.tables[0].rows)


def make_store(path: Path, *, complete: bool = True, encoded: int = NUM) -> LatentStore:
    """patch-pca latents of one-coloured pictures, a colour per class, flips included."""
    labels = np.arange(NUM) % 3
    noise = np.random.default_rng(0).integers(0, 20, (NUM, 8, 8, 3), dtype=np.uint8)
    images = COLOURS[labels][:, None, None] + noise
    pca = fit_patch_pca(images, patch=4, channels=6)
    latents = pca.encode(to_signed(images)).half().numpy()
    create_store(
        path,
        paths=[f"{label}/{i}.png" for i, label in enumerate(labels)],
        labels=labels,
        class_names=["red", "green", "blue"],
        row_shape=latents.shape[1:],
        kind="latents",
        flips=True,
        autoencoder=pca.spec,
        autoencoder_arrays=pca.arrays,
        scaling=pca.scaling,
        image_size=8,
        crop="adm",
        source="/data/colours",
        source_fingerprint="f" * 64,
        vae="patch-pca",
        batch_size=4,
        precision="fp32",
    )
    status = np.where(np.arange(NUM) == 4, BROKEN, DONE)
    latents[4] = 0
    values = dict(latents=latents, latents_flipped=latents)
    values["crc32"] = row_checksums(latents, latents)
    values["problems"] = ["cut short" if flag == BROKEN else "" for flag in status]
    with Rows(path, writable=True) as file:
        rows = {name: value[:encoded] for name, value in values.items()}
        file.write(np.arange(encoded), status=status[:encoded], **rows)
        store = LatentStore.open(path, allow_incomplete=True)
        read = ReadBack(store)
        for _ in read:
            pass
        facts = dict(mean=read.mean, std=read.std, checksum=read.checksum)
        file.set_attrs(**facts, complete=complete)
    return LatentStore.open(path, allow_incomplete=True)


def overwrite(path: Path, name: str, row: int, value: float) -> None:
    """Damage one row of a row file past its flags, as a bad disk would."""
    with Rows(path, writable=True) as file:
        array = np.array(file.array(name)[row : row + 1])
        array[...] = value
        file.write([row], **{name: array})


def make_run(folder: Path) -> RunDir:
    """A run with checkpoints at steps 10 and 20 and one whose saving was interrupted."""
    store = make_store(folder.parent / "a.h5")
    config = TransformerConfig(
        input_size=2, patch=1, channels=6, out_channels=6, width=16, depth=1, heads=2, num_classes=3
    )
    directory = RunDir(folder)
    weights = Transformer(config).state_dict()
    for step in (10, 20):
        path = directory.begin_save(step)
        write_tensors(path / "model.safetensors", weights)
        write_tensors(path / "ema.safetensors", weights)
        arrays = {k: torch.from_numpy(v) for k, v in store.autoencoder_arrays.items()}
        write_tensors(path / "autoencoder.safetensors", arrays)
        parameters = list(Transformer(config).named_parameters())
        moments = {
            f"{moment} {name} 0": torch.zeros(parameter.numel())
            for name, parameter in parameters
            for moment in MOMENTS
        }
        write_snapshot(path, moments, {"step": "1.0"}, rank=0, world_size=1)
        bins = {"sums": [0.0], "counts": [0]}
        process = Flow(interpolant="gvp")
        meta = checkpoint_meta(config, process, latents=latent_facts(store), loss_by_t=bins)
        directory.commit_save(step, meta)
        directory.log_metrics({"step": step, "loss": 1 / step, "images_per_second": 5.0})
    directory.begin_save(30)
    directory.config.write_text("train:\n  model: SiT-Mi/1\n  steps: 40\n  lr: 0.0001\n")
    return directory


def make_samples(folder: Path, *, done: int = 6) -> SampleSet:
    """Six one-coloured images of three classes, of which the last `done` are drawn."""
    labels = np.arange(6) % 3
    samples = SampleSet.create(
        folder / "samples.h5",
        labels=labels,
        seeds=np.arange(6),
        image_size=(8, 8),
        latent_shape=(2, 4, 4),
        meta={"class_names": ["red", "green", "blue"], "solver": "heun", "cfg_scale": 1.5},
    )
    noise = np.random.default_rng(0).integers(0, 20, (6, 8, 8, 3), dtype=np.uint8)
    images = COLOURS[labels][:, None, None] + noise
    latents = np.zeros((6, 2, 4, 4), np.float32)
    drawn = slice(6 - done, 6)
    arrays = dict(images=images[drawn], latents=latents[drawn])
    samples.write(np.arange(6)[drawn], evaluations=33 * done, **arrays)
    if done == 6:
        samples.finish()
    return samples


def measured(directory: RunDir, interpolant: str, *, means=(1.0, None, 4.0, 0.5)) -> Path:
    """The newest step of `make_run`, as if these losses had been measured along that path."""
    step = directory.newest()
    meta = json.loads((step / "meta.json").read_text())
    meta["process"]["interpolant"] = interpolant
    counts = [0 if mean is None else 8 for mean in means]
    sums = [8 * (mean or 0) for mean in means]
    meta["loss_by_t"] = {"sums": sums, "counts": counts}
    write_meta(step / "meta.json", meta)
    return step
