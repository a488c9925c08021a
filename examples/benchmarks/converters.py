"""Time, memory and bytes per second of `sit import-latents`, beside a plain copy of the same data.

    python examples/benchmarks/converters.py --dir /fast/disk --images 20000

For each layout it writes random latents of the shape of ImageNet's at 256 pixels, then copies and
imports them in turn, `--rounds` times each; the figures are medians. Copy and import both end with
their bytes on the disk, and read from the page cache, where the source has just been written. The
import's rate leaves out the start of the process, which an import of one image measures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

PER_SHARD = 10_000  # images, as LightningDiT has it
SD = 0.18215


def repa(folder: Path, images: int) -> list[str]:
    """(8, 32, 32) float32 a file, mean and std, a thousand files a folder."""
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(images):
        name = f"{i // 1000:05d}/img-mean-std-{i:08d}.npy"
        path = folder / "vae-sd" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mean = rng.standard_normal((4, 32, 32), np.float32) / SD
        np.save(path, np.concatenate([mean, np.full_like(mean, 0.1)]).astype(np.float32))
        pairs.append([name, i % 1000])
    (folder / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return []


def fast_dit(folder: Path, images: int) -> list[str]:
    """(1, 4, 32, 32) float32 and a label a file."""
    rng = np.random.default_rng(0)
    for what in ("features", "labels"):
        (folder / f"imagenet256_{what}").mkdir(parents=True)
    for i in range(images):
        values = rng.standard_normal((1, 4, 32, 32), np.float32)
        np.save(folder / "imagenet256_features" / f"{i}.npy", values)
        np.save(folder / "imagenet256_labels" / f"{i}.npy", np.array([i % 1000]))
    return []


def lightning(folder: Path, images: int) -> list[str]:
    """(32, 16, 16) float32 of the image and of the mirrored one."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    for number, start in enumerate(range(0, images, PER_SHARD)):
        count = min(PER_SHARD, images - start)
        shard = {
            "latents": torch.randn(count, 32, 16, 16, generator=generator),
            "latents_flip": torch.randn(count, 32, 16, 16, generator=generator),
            "labels": torch.arange(start, start + count) % 1000,
        }
        save_file(shard, folder / f"latents_rank00_shard{number:03d}.safetensors")
    torch.save({"mean": torch.zeros(1, 32, 1, 1), "std": torch.ones(1, 32, 1, 1)},
               folder / "latents_stats.pt")  # fmt: skip
    return []


def array(folder: Path, images: int) -> list[str]:
    """One .npy (N, 4, 32, 32) float32, and one of labels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = np.lib.format.open_memmap(
        folder / "z.npy", mode="w+", dtype=np.float32, shape=(images, 4, 32, 32)
    )
    for start in range(0, images, 1000):
        part = values[start : start + 1000]
        part[:] = rng.standard_normal(part.shape, np.float32)
    np.save(folder / "y.npy", np.arange(images) % 1000)
    return ["--labels", str(folder / "y.npy"), "--scaling", "1"]


LAYOUTS = {"repa": (repa, ""), "fast-dit": (fast_dit, ""), "lightning": (lightning, ""),
           "array": (array, "z.npy")}  # fmt: skip


def size_of(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def copy(source: Path, target: Path) -> float:
    """Seconds to copy a folder with `cp -r` and to have it on the disk."""
    shutil.rmtree(target, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def convert(source: Path, out: Path, options: list[str]) -> tuple[float, int]:
    """(seconds, most bytes of memory of its own) of `sit import-latents` in a new process."""
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sitcli", "import-latents", source, out, *options]
    start, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        if process.returncode:
            told.seek(0)
            sys.exit(told.read().decode())
    return seconds, most


def anonymous(pid: int) -> int:
    """Bytes of memory that belong to no file: pages of files are the page cache's. Linux only."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if "RssAnon" in line), 0
    )


def in_child(name: str, folder: Path, images: int) -> list[str]:
    """Write a layout in a process of its own, whose memory is gone afterwards."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(LAYOUTS[name][0], (folder, images))


def measure(name: str, args: argparse.Namespace) -> None:
    """Print the line of a layout."""
    inside = LAYOUTS[name][1]
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        source, one, out = (Path(folder) / part for part in ("source", "one", "out.h5"))
        options, few = in_child(name, source, args.images), in_child(name, one, 1)
        size, copies, imports, starts, memory = size_of(source), [], [], [], 0
        for _ in range(args.rounds):
            copies.append(copy(source, Path(folder) / "copy"))
            starts.append(convert(one / inside, out, few)[0])
            seconds, used = convert(source / inside, out, options)
            imports.append(seconds)
            memory = max(memory, used)
    copied, started, whole = (statistics.median(each) for each in (copies, starts, imports))
    print(
        f"{name:10} {size / 1e6:6.0f} MB  {copied:6.2f} s {size / copied / 1e6:5.0f} MB/s  "
        f"{whole:6.2f} s, {started:4.2f} to start {size / (whole - started) / 1e6:5.0f} MB/s  "
        f"{copied / (whole - started):5.2f}  {memory / 1e6:6.0f} MB",
        flush=True,
    )


def main() -> None:
    """Print a line for each layout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", default=None, help="where to write; default the temporary folder")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    args = parser.parse_args()
    print("layout     source     copy                import                          ratio  memory")
    for name in args.layouts.split(","):
        measure(name, args)


if __name__ == "__main__":
    main()
