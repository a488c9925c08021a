"""What is beyond the papers, measured on CIFAR-10 with one command.

    python examples/beyond/study.py --data cifar10.tar --out beyond/

Every mechanism is trained with several seeds and scored twice: after as many steps as the base,
and after as much time, as the ratio of their speeds, measured first and side by side, has it. Type
it again after an interruption: what is finished is skipped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import io
import json
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The split, the latent store, the classifier and its score are the other study's.
sys.path.insert(1, str(Path(__file__).resolve().parents[1] / "design-space"))

from mechanisms import BASE, BY_NAME, DRAW, DRAWINGS, MECHANISMS, NUM, STEPS, Mechanism

LEAST, MOST = 0.5, 1.6  # times the base's steps, for equal time
ROUNDS, ROUND_STEPS = 7, 8  # of measuring speed


@dataclass(frozen=True)
class Study:
    """Where everything is, and how much there is of it."""

    out: Path
    steps: int
    num: int
    seeds: int

    def record(self, *parts: str) -> Path:
        return self.out / "cells" / f"{'-'.join(parts)}.json"

    def run_path(self, name: str, seed: int) -> Path:
        return self.out / "runs" / f"{name}-s{seed}"

    def train_options(self, mechanism: Mechanism, seed: int) -> dict[str, Any]:
        options = {**BASE, **mechanism.options}
        if "t_dist_until" in options:
            options["t_dist_until"] = self.steps // 2
        options["warmup"] = min(options["warmup"], self.steps // 4)
        return dict(
            options, seed=seed, latents=[self.out / "train.h5"],
            out=self.run_path(mechanism.name, seed), precision="fp32", device="cpu",
            keep=0, sample_every=0, log_every=max(1, self.steps // 7),
        )  # fmt: skip


def main() -> int:
    args = parse_arguments()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scaled = dict(steps=max(8, int(STEPS * args.scale)), num=max(20, int(NUM * args.scale)))
    study = Study(args.out.resolve(), seeds=args.seeds, **scaled)
    from prepare import prepare

    facts = prepare(study.out, args.data, device="cpu", scale=args.scale)
    add_features(study, args.scale)
    (study.out / "cells").mkdir(exist_ok=True)
    speeds = measure_speeds(study)
    jobs = [(m.name, seed) for seed in range(study.seeds) for m in MECHANISMS]
    with concurrent.futures.ProcessPoolExecutor(
        args.workers, multiprocessing.get_context("spawn")
    ) as pool:
        futures = [pool.submit(work, study, name, seed, speeds) for name, seed in jobs]
        for future in concurrent.futures.as_completed(futures):
            print(future.result(), flush=True)
    results = collect(study, facts, speeds)
    write(study.out / "results.json", results)
    from report import write_report

    write_report(study.out)
    print(study.out / "RESULTS.md")
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--data", type=Path, help="images, a folder per class: a folder, a .tar or a .zip")
    option("--out", type=Path, default=Path("beyond"), help="folder for everything")
    option("--seeds", type=int, default=3, help="trainings of every mechanism")
    option("--workers", type=int, default=2, help="processes of one thread each")
    option("--scale", type=float, default=1.0, help="0.02 tries everything out in little")
    return parser.parse_args()


def add_features(study: Study, scale: float) -> None:
    """OUT/encoder.pt, and the store again with its features; REPA aligns with them.

    The encoder learned to tell by how many quarters an image was turned: no label, and not the
    features of the metric.
    """
    import torch
    from classifier import fit
    from prepare import CHANNELS, PATCH, finish, load_images

    from sitcli.commands.encode.stage import encode
    from sitcli.settings.encode import EncodeSettings

    path, store = study.out / "encoder.pt", study.out / "train.h5"
    if not path.exists():
        images, _ = load_images(study.out / "train.tar")
        turns = torch.arange(len(images)) % 4
        turned = torch.stack(
            [torch.rot90(image, int(k), (1, 2)) for image, k in zip(images, turns, strict=True)]
        )
        network = fit(turned, turns, epochs=max(0.1, 8 * min(1.0, 10 * scale)), note=print)

        class Map(torch.nn.Module):
            """uint8 (B, 3, 32, 32) -> (B, 128, 4, 4)."""

            def __init__(self, network: torch.nn.Module) -> None:
                super().__init__()
                self.stem, self.norm = network.stem, network.norm
                self.stages = network.stages

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                x = images.float() / 127.5 - 1.0
                return self.stages(torch.relu(self.norm(self.stem(x))))

        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Map(network).eval()), buffer)
        path.write_bytes(buffer.getvalue())
    settings = EncodeSettings(
        source=study.out / "train.tar",
        out=store,
        vae="patch-pca",
        pca_patch=PATCH,
        pca_channels=CHANNELS,
        align_features=str(path),
        overwrite=True,
    )
    finish(encode(settings))


def measure_speeds(study: Study) -> dict[str, float]:
    """Seconds of a training step over the base's, by mechanism: all trainers in one process, in
    turn, a thread; the median of the rounds."""
    kept = study.record("speeds")
    known = json.loads(kept.read_text()) if kept.exists() else {}
    wanted = [m for m in MECHANISMS if m.name not in known]
    if not wanted:
        return known
    import torch

    from sitcli.commands.train.job import prepare
    from sitcli.commands.train.trainer import Trainer
    from sitcli.engine.engine import join_group
    from sitcli.machine.world import World
    from sitcli.settings.train import TrainSettings

    torch.set_num_threads(1)
    world = World(0, 1)
    trainers = {}
    for mechanism in {"base": BY_NAME["base"], **{m.name: m for m in wanted}}.values():
        options = study.train_options(mechanism, 0) | {"out": study.out / "speed", "steps": 10_000}
        options["power_ema"] = False
        job = prepare(TrainSettings(**options), world)
        join_group(world, job.device)
        trainers[mechanism.name] = Trainer(job, world)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(ROUNDS):
        for name, trainer in trainers.items():
            began = time.perf_counter()
            for _ in range(ROUND_STEPS):
                trainer.train_step()
            seconds[name].append((time.perf_counter() - began) / ROUND_STEPS)
    for trainer in trainers.values():
        trainer.close()
    ratios = known | {
        name: statistics.median(a / b for a, b in zip(values[1:], seconds["base"][1:], strict=True))
        for name, values in seconds.items()
    }
    write(kept, ratios)
    return ratios


def work(study: Study, name: str, seed: int, speeds: dict[str, float]) -> str:
    """Train one mechanism with one seed, and draw and score all that is asked of it."""
    import torch

    torch.set_num_threads(1)
    mechanism, began = BY_NAME[name], time.monotonic()
    share = min(MOST, max(LEAST, 1 / speeds[name]))
    ends = {"steps": study.steps, "time": round(study.steps * share)}
    if abs(share - 1) < 0.02:
        ends["time"] = study.steps
    figures = []
    for steps in sorted(set(ends.values())):
        train(study, mechanism, seed, steps)
        cell = study.record(name, f"s{seed}", str(steps))
        if not cell.exists():
            checkpoint = study.run_path(name, seed) / f"step-{steps:07d}"
            write(cell, draw(study, checkpoint, DRAW, cell.stem, seed))
        figures.append(f"{steps} steps {json.loads(cell.read_text())['fd']:.3f}")
    for drawing in DRAWINGS:
        if drawing.run != name:
            continue
        cell = study.record("draw", drawing.name, f"s{seed}")
        if not cell.exists():
            run, options = study.run_path(name, seed), dict(drawing.options)
            checkpoint = run / f"step-{study.steps:07d}"
            if drawing.guide is not None:
                options["guide"] = run / f"step-{round(study.steps * drawing.guide):07d}"
            if drawing.std is not None:
                checkpoint = average(run, drawing.std, study.steps)
            write(cell, draw(study, checkpoint, options, cell.stem, seed))
    return f"{name} s{seed}: {', '.join(figures)}, {time.monotonic() - began:.0f} s"


def train(study: Study, mechanism: Mechanism, seed: int, steps: int) -> None:
    """`sit train` up to `steps`; goes on from an earlier end, with the same learning rate."""
    from prepare import finish

    from sitcli.commands.train.stage import train as stage
    from sitcli.settings.train import TrainSettings

    options = study.train_options(mechanism, seed)
    every = max(1, study.steps // 14 if mechanism.options.get("power_ema") else study.steps // 2)
    finish(stage(TrainSettings(**options, steps=steps, save_every=every)))


def average(run: Path, std: float, step: int) -> Path:
    """`sit ema`."""
    from prepare import finish

    from sitcli.commands.ema import average as stage
    from sitcli.settings.weights import EmaSettings

    return finish(stage(EmaSettings(run=run, std=std, step=step))).path


def draw(
    study: Study, checkpoint: Path, options: dict[str, Any], name: str, seed: int
) -> dict[str, Any]:
    """`sit sample`, then `sit evaluate`."""
    from prepare import finish, score

    from sitcli.commands.sample.stage import sample
    from sitcli.settings.sample import SampleSettings

    out = study.out / "samples" / name
    settings = SampleSettings(
        checkpoint=checkpoint, out=out, num=study.num, seed=seed, batch_size=125, precision="fp32",
        device="cpu", **options,
    )  # fmt: skip
    result = finish(sample(settings))
    figure = score(study.out, out)
    return dict(
        fd=figure["value"],
        floor=figure["floor"],
        evaluations=result.data["evaluations_per_image"],
        step=result.data["step"],
    )


def collect(study: Study, facts: dict[str, Any], speeds: dict[str, float]) -> dict[str, Any]:
    """Everything the report needs."""
    cells = {path.stem: json.loads(path.read_text()) for path in study.out.glob("cells/*.json")}
    cells.pop("speeds")
    versions = {name: importlib.metadata.version(name) for name in ("sitcli", "torch")}
    budget = asdict(study) | {"out": ""}
    return dict(facts, budget=budget, speeds=speeds, versions=versions, cells=cells)


def write(path: Path, data: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
