"""Runs, stores and measurements for the tests of `sit evaluate --nll`."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.evaluate.likelihood import likelihood
from sitcli.core.flow import Flow
from sitcli.latents.layout import create_store
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import write_tensors
from tests.tiny import CONFIG, finish, make_store, random_network

SIZE = 3 * 8 * 8


def make_run(
    store: LatentStore,
    *,
    process: Flow | None = None,
    config: TransformerConfig = CONFIG,
    network: Transformer | None = None,
    **meta,
) -> Path:
    """A run with one checkpoint, of random weights unless a network is given."""
    run = RunDir(store.path.parent / "runs" / "tiny")
    step = run.begin_save(7)
    network = network or random_network(config)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", network.state_dict())
    facts = dict(model="SiT-Mi/2", ema=0.9999, label_dropout=0.1) | meta
    curve = dict(sums=[1.0], counts=[1.0])
    run.commit_save(
        7,
        checkpoint_meta(
            config, process or Flow(), latents=latent_facts(store), loss_by_t=curve, **facts
        ),
    )
    return run.path


def zero_network(config: TransformerConfig = CONFIG) -> Transformer:
    """As it is initialised, adaLN-Zero: its output is 0 everywhere."""
    return Transformer(config)


def make_moments_store(path: Path, number: int = 6) -> LatentStore:
    """A store of posteriors, of mean 0.5 and std 0.1."""
    spec = make_store(path.parent / "pixels.h5").autoencoder
    create_store(
        path,
        paths=[f"{i}.png" for i in range(number)],
        labels=np.zeros(number, np.int64),
        class_names=[],
        row_shape=(6, 8, 8),
        kind="moments",
        flips=False,
        autoencoder={**spec, "kind": "kl", "deterministic": False, "hash": "k" * 64},
        autoencoder_arrays={},
        scaling=Scaling(2.0),
        image_size=8,
        crop="none",
        source="s",
        source_fingerprint="s",
        vae="x",
        batch_size=8,
        precision="fp32",
    )
    latents = np.full((number, 6, 8, 8), 0.5, np.float16)
    latents[:, 3:] = 0.1
    with Rows(path, writable=True) as file:
        file.write(range(number), latents=latents)
        file.set_attrs(complete=True)
    return LatentStore.open(path)


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return make_store(tmp_path / "tiny.h5")


def measure(run: Path, **options) -> dict:
    """The document that is written."""
    options = dict(num=6, solver="heun", steps=4) | options
    settings = EvaluateSettings(samples=[run], nll=True, device="cpu", **options)
    return json.loads(finish(likelihood(settings)).path.read_text())


def value(document: dict, name: str) -> float:
    return next(f["value"] for f in document["figures"] if f["metric"] == name)


def normal_nats(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)
