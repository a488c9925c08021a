"""What token routing (TREAD) saves of a training step: `--tread` beside the same model without.

    python examples/benchmarks/routing.py [--model SiT-S/2] [--batch-size 16] [--share 0.5]

Both trainers are in one process and alternate; printed are the seconds of a step, medians over the
rounds, their ratio with its range over the rounds, and the ratio of the multiply-accumulates.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from ranks import make_store

from sitcli.commands.train.job import prepare
from sitcli.commands.train.trainer import Trainer
from sitcli.engine.engine import join_group
from sitcli.machine.world import World
from sitcli.settings.train import TrainSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="SiT-S/2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    options = parser.parse_args()
    world = World(0, 1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder))
        trainers, flops = [], []
        for share in (0.0, options.share):
            settings = TrainSettings(
                latents=[store], out=Path(folder) / "run", model=options.model, steps=10**6,
                batch_size=options.batch_size, tread=share, sample_every=0,
            )  # fmt: skip
            job = prepare(settings, world)
            join_group(world, job.device)
            trainers.append(Trainer(job, world))
            flops.append(job.step_flops)
        seconds: list[list[float]] = [[], []]
        for _ in range(options.rounds + 1):
            for trainer, own in zip(trainers, seconds, strict=True):
                began = time.perf_counter()
                for _ in range(options.steps):
                    trainer.train_step()
                own.append((time.perf_counter() - began) / options.steps)
        for trainer in trainers:
            trainer.close()
    whole, routed = (own[1:] for own in seconds)  # the first warms up
    ratios = [a / b for a, b in zip(whole, routed, strict=True)]
    print(
        f"{options.model}, batch {options.batch_size}: {statistics.median(whole):.3f} s a step, "
        f"with --tread {options.share:g} {statistics.median(routed):.3f} s: "
        f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"multiply-accumulates {flops[0] / flops[1]:.2f}x"
    )


if __name__ == "__main__":
    main()
