"""What every cell needs: the split, the latent store, the classifier and the floors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classifier import accuracy, fit

from sitcli.autoencoders.base import decode_latents
from sitcli.autoencoders.load import from_spec
from sitcli.commands.encode.stage import encode
from sitcli.commands.evaluate.stage import evaluate
from sitcli.features.extractors import choose_features
from sitcli.images.source import Source, open_source
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import precision_name, resolve_device, resolve_precision
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings

HELD_OUT = 2000  # images that no network sees, as many of every class
FLOOR_IMAGES = 1000  # of them, whose distance is the least that as many samples can reach
PATCH, CHANNELS = 4, 8  # 32 x 32 x 3 pixels -> 8 x 8 x 8 latents
CLASSIFIER_EPOCHS = 12


def prepare(out: Path, data: Path | None, *, device: str, scale: float) -> dict[str, Any]:
    """Make what is missing below OUT; returns what OUT/study.json says of it."""
    facts_path = out / "study.json"
    if facts_path.exists():
        return json.loads(facts_path.read_text())
    if data is None:
        raise SystemExit("error: --data is needed: images, a folder per class")
    out.mkdir(parents=True, exist_ok=True)
    train, test = out / "train.tar", out / "test.tar"
    if not (train.exists() and test.exists()):
        split(open_source(data), train, test)
    store = out / "train.h5"
    settings = EncodeSettings(
        source=train, out=store, vae="patch-pca", pca_patch=PATCH, pca_channels=CHANNELS
    )
    finish(encode(settings))
    right = train_classifier(out, max(0.1, CLASSIFIER_EPOCHS * min(1.0, scale * 10)))
    features = choose_features(str(out / "classifier.pt"), None)
    real, floor = floors(out, store)
    facts = dict(
        num_train=len(open_source(train)),
        num_test=len(open_source(test)),
        classes=open_source(train).class_names,
        classifier_accuracy=right,
        metric=features.label("FID"),
        floor=floor,
        **real,
        sampling_precision=precision_name(resolve_precision("auto", resolve_device(device))),
    )
    write_atomically(facts_path, json.dumps(facts, indent=1).encode())
    return facts


def finish(stage: Any) -> Any:
    """Run a stage of sit to its end; its result."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def split(source: Source, train: Path, test: Path) -> None:
    """HELD_OUT images into one tar and the others into another, by the hash of their names."""
    by_class: dict[str, list[int]] = {name: [] for name in source.class_names}
    for index, item in enumerate(source.items):
        by_class[source.class_names[item.label]].append(index)
    parts: dict[Path, list[tuple[str, int]]] = {train: [], test: []}
    for name, indices in by_class.items():
        file_names = {i: source.items[i].name.rsplit("/", 1)[-1] for i in indices}
        mixed = sorted(indices, key=lambda i: hashlib.sha256(file_names[i].encode()).digest())
        held_out = set(mixed[: min(HELD_OUT // len(by_class), len(mixed) // 5)])
        for i in indices:
            parts[test if i in held_out else train].append((f"{name}/{file_names[i]}", i))
    for path, members in parts.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, index in members:
                data = source.read_bytes(index)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        write_atomically(path, buffer.getvalue())


def load_images(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (N, 3, 32, 32) and int64 (N,) of one of the two tars."""
    source = open_source(path)
    images = np.stack([np.array(source.read(i)) for i in range(len(source))])
    labels = torch.tensor([item.label for item in source.items])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def train_classifier(out: Path, epochs: float) -> float:
    """Write OUT/classifier.pt, which gives features; its accuracy on the held-out part."""
    path, kept = out / "classifier.pt", out / "classifier.json"
    if not (path.exists() and kept.exists()):
        network = fit(*load_images(out / "train.tar"), epochs=epochs, note=print)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(network), buffer)
        write_atomically(path, buffer.getvalue())
        right = accuracy(network, *load_images(out / "test.tar"))
        write_atomically(kept, json.dumps(dict(accuracy=right)).encode())
    right = json.loads(kept.read_text())["accuracy"]
    print(f"classifier: {right:.1%} of the held-out images are told right")
    return right


def floors(out: Path, store: Path) -> tuple[dict[str, float], float]:
    """Distances of held-out images, and of them through the autoencoder; the stage's floor."""
    images, _ = load_images(out / "test.tar")
    images = images[:: max(1, len(images) // FLOOR_IMAGES)][:FLOOR_IMAGES].permute(0, 2, 3, 1)
    opened = LatentStore.open(store)
    autoencoder = from_spec(
        opened.autoencoder,
        opened.autoencoder_arrays,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    latents = autoencoder.encode(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
    decoded = decode_latents(autoencoder, latents, opened.scaling)
    distances = {}
    for name, array in dict(real=images, autoencoder=decoded).items():
        path = out / f"{name}.npz"
        np.savez(path, arr_0=np.asarray(array))
        figure = score(out, path)
        distances[name] = figure["value"]
    return distances, figure["floor"]


def score(out: Path, samples: Path) -> dict[str, Any]:
    """`sit evaluate SAMPLES --features OUT/classifier.pt --fid`: the figure."""
    settings = EvaluateSettings(
        samples=[samples],
        reference=out / "train.h5",
        features=str(out / "classifier.pt"),
        fid=True,
        batch_size=125,
        device="cpu",
    )
    return finish(evaluate(settings)).data["figures"][0]


def write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
