"""Where sampling begins: standard deviation and Frechet distance of every pair and solver.

    python examples/sampling/ends.py --data cifar10.tar --out ends/

Trains a small network for every interpolant and prediction on pixels, and draws latents with each
solver's default steps over the default interval, with 1000 steps of the same, and from --t-start
0.999. It writes ends.md and ends.json. What is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sitcli import names
from sitcli.commands.sample.options import resolve
from sitcli.commands.sample.sampler import sampler_of
from sitcli.latents.store import LatentStore
from sitcli.metrics.frechet import frechet_distance
from sitcli.metrics.moments import Moments, gaussian_of
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.settings.sample import SampleSettings

REFERENCE = dict(solver="ab2", steps=1000)  # one evaluation a step
# Label -> options of `sit sample`.
ODES: dict[str, dict] = {solver: dict(solver=solver) for solver in names.ODE_SOLVERS}
SDES: dict[str, dict] = {f"SDE {wt}": dict(sde=True, wt=wt) for wt in ("sigma", "kl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("ends"))
    parser.add_argument("--size", type=int, default=8, help="side in pixels")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--num", type=int, default=1000, help="latents to draw")
    parser.add_argument("--reference-num", type=int, default=64, help="latents of 1000 steps")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    file, store = args.out / "ends.json", args.out / "store.h5"
    found = json.loads(file.read_text()) if file.exists() else {}
    run_sit("encode-latents", args.data, store, "--vae", "pixels", "--image-size", args.size)
    data = data_of(store)
    for interpolant in names.INTERPOLANTS:
        for prediction in names.PREDICTIONS:
            pair = f"{interpolant} {prediction}"
            if pair in found:
                continue
            run = args.out / "runs" / pair.replace(" ", "-")
            words = ["--interpolant", interpolant, "--prediction", prediction, "--out", run]
            size = ["--model", "SiT-Mi/2", "--steps", args.steps, "--batch-size", 64]
            run_sit("train", "--latents", store, *size, *words)
            found[pair] = measured(open_checkpoint(run), data, args.num, args.reference_num)
            file.write_text(json.dumps(found, indent=1))
            (args.out / "ends.md").write_text(table(found))
    print((args.out / "ends.md").read_text())


def run_sit(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "sitcli", *map(str, words)], check=True)


def data_of(path: Path) -> np.ndarray:
    """All latents (N, D) of a store of pixels."""
    store = LatentStore.open(path)
    return store.batch(np.arange(store.num_items)).flatten(1).numpy()


@torch.no_grad()
def measured(checkpoint: Checkpoint, data: np.ndarray, num: int, reference_num: int) -> dict:
    """The figures of one run: label -> number."""
    network = checkpoint.network("ema", torch.device("cpu"))
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(num, *checkpoint.config.latent_shape, generator=random)
    y = torch.arange(num) % max(1, checkpoint.config.num_classes)
    target = gaussian_of(moments_of(data))

    def draw(number: int, **options) -> np.ndarray:
        sampler = sampler_of(resolve(SampleSettings(**options), checkpoint), checkpoint)
        randn: Callable = lambda: torch.randn(noise[:number].shape, generator=random)  # noqa: E731
        *_, (_, x) = checkpoint.process.sample(
            network, noise[:number], y[:number], sampler, randn=randn
        )
        return x.flatten(1).numpy()

    interval = sampler_of(resolve(SampleSettings(), checkpoint), checkpoint).interval
    figures = {"data": float(data.std()), "start": interval.start, "std": {}, "fd": {}, "same": {}}
    for label, options in (ODES | SDES).items():
        x = draw(num, **options)
        figures["std"][label] = float(x.std())
        figures["fd"][label] = frechet_distance(gaussian_of(moments_of(x)), target)
        figures["same"][label] = float(x[:reference_num].std())
    figures["same"]["1000 steps"] = float(draw(reference_num, **REFERENCE).std())
    if interval.start < 1:
        x = draw(num, t_start=0.999)
        figures["std"]["heun from 0.999"] = float(x.std())
        figures["fd"]["heun from 0.999"] = frechet_distance(gaussian_of(moments_of(x)), target)
    return figures


def moments_of(x: np.ndarray) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def table(found: dict[str, dict]) -> str:
    """Standard deviation and, after a slash, Frechet distance; a row for every pair."""
    labels = [*ODES, *SDES, "heun from 0.999"]
    lines = [
        f"| pair | from t | 1000 steps / heun | {' | '.join(labels)} |",
        "|---" * (len(labels) + 3) + "|",
    ]
    for pair, row in found.items():
        cells = [
            f"{row['std'][label]:.3f} / {row['fd'][label]:.2f}" if label in row["std"] else ""
            for label in labels
        ]
        ratio = row["same"]["1000 steps"] / row["same"]["heun"]
        lines.append(f"| {pair} | {row['start']:.4f} | {ratio:.3f} | {' | '.join(cells)} |")
    deviation = next(iter(found.values()))["data"]
    return f"The data's standard deviation is {deviation:.3f}.\n\n" + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
