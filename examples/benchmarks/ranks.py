"""What a rank keeps in memory and how fast it trains: ZeRO stages 0 to 3 on 1, 2 and 4 ranks.

    python examples/benchmarks/ranks.py [--latents STORE.h5] [--model SiT-S/2] [--steps 8]

Every cell is one `sit train` of the same steps on the same images, so the final losses must agree.
Bytes are those of the fullest rank between two steps. The ideal is what the stage promises: the
parameters whole, or with stage 3 a share of them; the optimizer's state whole with stage 0, else a
share; the average a share always. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from sitcli.images.drawn import SHAPES, draw_shape

SIT = [sys.executable, "-m", "sitcli"]
STAGES, RANKS = (0, 1, 2, 3), (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=Path)
    parser.add_argument("--model", default="SiT-S/2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--gpus", action="store_true", help="ranks on GPUs instead of the CPU")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = options.latents or make_store(Path(folder))
        cells = {
            (zero, ranks): train(options, store, Path(folder) / f"{zero}-{ranks}", zero, ranks)
            for zero in STAGES
            for ranks in RANKS
        }
    header = [
        "ZeRO",
        "ranks",
        "loss",
        "model MB",
        "optimizer MB",
        "EMA MB",
        "sum / ideal",
        "images/s",
    ]
    print(f"| {' | '.join(header)} |")
    print("|---" * len(header) + "|")
    for (zero, ranks), cell in cells.items():
        held = cell["bytes_per_rank"]
        ideal = ideal_bytes(cell["params"], zero, ranks)
        sizes = " | ".join(f"{held[kind] / 1e6:.1f}" for kind in ("model", "optimizer", "ema"))
        ratio = f"{sum(held.values()) / 1e6:.1f} / {ideal / 1e6:.1f}"
        rate = f"{cell['images_per_second']:.3g}"
        print(f"| {zero} | {ranks} | {cell['loss']:.7f} | {sizes} | {ratio} | {rate} |")


def make_store(folder: Path) -> Path:
    """64 of the quickstart's pictures under --vae pixels: (3, 32, 32) latents."""
    for number in range(64):
        name = list(SHAPES)[number % len(SHAPES)]
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(draw_shape(name, number, size=32, seed=0))
        picture.save(folder / "images" / name / f"{number}.png")
    store = folder / "images.h5"
    command = [*SIT, "encode-latents", str(folder / "images"), str(store), "--vae", "pixels"]
    subprocess.run(command, check=True, capture_output=True)
    return store


def train(
    options: argparse.Namespace, store: Path, out: Path, zero: int, ranks: int
) -> dict[str, object]:
    """The result of one cell, as --json tells it."""
    flags = dict(latents=store, out=out, model=options.model, steps=options.steps, zero=zero)
    flags |= {"batch-size": options.batch_size, "gpus" if options.gpus else "procs": ranks}
    # Two lines of metrics, the second without the start-up.
    flags |= {"log-every": options.steps // 2, "sample-every": 0, "precision": "fp32"}
    command = [*SIT, "train", "--json", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {"OMP_NUM_THREADS": str(max(1, os.cpu_count() // ranks)), **os.environ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"ZeRO {zero} on {ranks} ranks failed:\n{done.stderr}")
    plan = subprocess.run([*command, "--dry-run"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout) | dict(params=json.loads(plan.stdout)["params"])


def ideal_bytes(params: int, zero: int, ranks: int) -> float:
    """float32 parameters, AdamW's two moments, ZeRO's copy of the weights, and the average."""
    model = 4 * params / (ranks if zero == 3 else 1)
    moments = 8 * params / (ranks if zero else 1)
    copy = 4 * params / ranks if zero else 0
    return model + moments + copy + 4 * params / ranks


if __name__ == "__main__":
    main()
