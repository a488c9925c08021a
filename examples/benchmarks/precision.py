"""What bf16 costs in accuracy: of samples, beside the solver's own error, and of training losses.

    python examples/benchmarks/precision.py RUN_OR_STEP [--latents STORE.h5] [--steps 300]

Samples: 16 images' latents from the same noise, bf16 beside fp32 at equal steps of Heun, and fp32
beside 1000 steps; root mean squares over the latents' deviation. Training: the run's own model from
its beginning, the same steps in both; means of the losses over the last half.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from sitcli.commands.train.stage import train
from sitcli.core.flow import Ode
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.machine.devices import autocast
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.train import TrainSettings

STEPS, IMAGES, REFERENCE_STEPS = (5, 10, 25, 50, 100), 16, 1000
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--cfg-scale", type=float, default=1.0)
    parser.add_argument("--latents", type=Path, help="train too, on this store")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    print("| Heun steps | solver's error | bf16 | bf16 / solver |")
    print("|---|---|---|---|")
    for steps, error, difference in samples(options.checkpoint, options.cfg_scale):
        print(f"| {steps} | {error:.1e} | {difference:.1e} | {difference / error:.2f} |")
    if options.latents:
        losses = {name: loss(options, name) for name in DTYPES}
        ratio = losses["bf16"] / losses["fp32"]
        print(f"loss after {options.steps} steps: {losses}, bf16 / fp32 {ratio:.4f}")


@torch.no_grad()
def samples(path: Path, scale: float):
    """(steps, the solver's error in fp32, what bf16 differs by)."""
    checkpoint = open_checkpoint(path)
    config, process, device = checkpoint.config, checkpoint.process, torch.device("cpu")
    noise = torch.randn(IMAGES, *config.latent_shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(IMAGES) % max(1, config.num_classes)

    def draw(steps: int, dtype: torch.dtype) -> torch.Tensor:
        network = GuidedNetwork(
            checkpoint.network("ema", device, dtype=dtype),
            Guidance(null_class=config.null_class, scale=scale),
        )
        with autocast(device, dtype):
            *_, (_, x) = process.sample(network, noise, y, Ode(solver="heun", steps=steps))
        return x

    reference = draw(REFERENCE_STEPS, torch.float32)

    def rms(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).square().mean().sqrt() / reference.std())

    for steps in STEPS:
        full = draw(steps, torch.float32)
        yield steps, rms(full, reference), rms(draw(steps, torch.bfloat16), full)


def loss(options: argparse.Namespace, precision: str) -> float:
    """The mean over the last half of the steps."""
    model = open_checkpoint(options.checkpoint).meta["model"]
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainSettings(
            latents=[options.latents], out=Path(folder) / "run", model=model, steps=options.steps,
            batch_size=32, precision=precision, log_every=1, sample_every=0,
            save_every=options.steps,
        )  # fmt: skip
        for _ in train(settings):
            pass
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    half = losses[len(losses) // 2 :]
    return sum(half) / len(half)


if __name__ == "__main__":
    main()
