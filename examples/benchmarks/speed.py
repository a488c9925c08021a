"""Training and sampling of sit beside a plain reference (`reference.py`), in turn, in one run.

    python examples/benchmarks/speed.py [--model SiT-S/2] [--batch-size 16] [--rounds 5]

The reference stands in for the public implementations and does what they do: float32 (on a GPU
TF32), eager. Both have the same weights, and their outputs are compared first. Each works in a
process of its own while the other waits. Printed are the medians over the rounds, and the ratios of
each round's own, with their range. What the autoencoder costs in the reference's training loop does
not depend on its weights: they are random, of the SD VAE's shapes.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from reference import Reference, load, ode, sde, trainer

from sitcli.commands.bench.sample import INTERVAL, SCALE
from sitcli.commands.bench.sample import SOLVER_STEPS as STEPS
from sitcli.commands.bench.synthetic import write_synthetic
from sitcli.commands.train.job import prepare
from sitcli.commands.train.trainer import Trainer
from sitcli.core.flow import Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.wt import wt_of
from sitcli.engine.engine import join_group
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import autocast, tune_cpu
from sitcli.machine.world import World
from sitcli.model.compile import CompiledNetwork
from sitcli.model.config import PRESETS, parse_model
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import build_network
from sitcli.settings.train import TrainSettings

ITEMS = 256  # of the store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="SiT-S/2")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--autoencoder-rounds", type=int, default=1, help="they take minutes")
    parser.add_argument("--only", help="measure what has this in its name, e.g. training")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, options.model)
        context = multiprocessing.get_context("spawn")
        pipes = {}
        for side in (ours, theirs):
            pipe, other = context.Pipe()
            context.Process(target=serve, args=(side, other, folder, options)).start()
            other.close()
            pipes[side.__name__] = pipe
        try:
            measure(pipes, options)
        finally:
            for pipe in pipes.values():
                pipe.close()


def make_data(folder: Path, model: str) -> None:
    """A store of noise, the same latents in a file each, and weights for both."""
    for _ in write_synthetic(folder / "store.h5", ITEMS):
        pass
    store = LatentStore.open(folder / "store.h5")
    for item in range(ITEMS):
        np.save(folder / f"latent-{item:04d}.npy", store.batch(np.array([item]))[0].numpy())
        np.save(folder / f"label-{item:04d}.npy", store.labels[item])
    torch.manual_seed(0)
    network = Transformer(job_of(folder, model, 1, "cpu").config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    torch.save(network.state_dict(), folder / "weights.pt")


def job_of(folder: Path, model: str, batch_size: int, device: str):
    settings = TrainSettings(
        latents=[folder / "store.h5"], out=folder / "run", model=model, batch_size=batch_size,
        steps=10**6, sample_every=0, device=device,
    )  # fmt: skip
    return prepare(settings, World(0, 1))


def serve(side: Callable, pipe: Connection, folder: Path, options: argparse.Namespace) -> None:
    """Do what the pipe names and answer with its seconds, or its result."""
    tasks = side(folder, options)
    with contextlib.suppress(EOFError):  # the other end is gone
        while True:
            name = pipe.recv()
            began = time.perf_counter()
            found = tasks[name]()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            pipe.send(found if name == "output" else time.perf_counter() - began)


def inputs(job, batch: int) -> list[torch.Tensor]:
    """x, t and y on the device, alike for both."""
    random, config = torch.Generator().manual_seed(1), job.config
    x = torch.randn(batch, *config.latent_shape, generator=random)
    t, y = torch.rand(batch, generator=random), torch.arange(batch) % config.num_classes
    return [part.to(job.device) for part in (x, t, y)]


def ours(folder: Path, options: argparse.Namespace) -> dict[str, Callable]:
    batch = options.batch_size
    job = job_of(folder, options.model, batch, options.device)
    state = torch.load(folder / "weights.pt")
    tune_cpu(job.device)
    plain = build_network(job.config, state, job.device)
    network = build_network(job.config, dict(state), job.device, dtype=job.dtype)
    if job.compiled:
        network = CompiledNetwork(network, job.device, sizes={batch, 2 * batch})
    x, t, y = inputs(job, batch)
    join_group(World(0, 1), job.device)
    engine = Trainer(job, World(0, 1))

    def noise() -> torch.Tensor:
        return torch.randn_like(x)

    def draw(sampler: Ode | Sde, **guidance) -> Callable:
        def run() -> None:
            guided = GuidedNetwork(
                network,
                Guidance(null_class=job.config.null_class, time_of=job.process.time_of, **guidance),
            )
            with torch.no_grad(), autocast(job.device, job.dtype):
                for _ in job.process.sample(guided, x, y, sampler, randn=noise):
                    pass

        return run

    heun = Ode(solver="heun", steps=STEPS)

    def output() -> torch.Tensor:
        with torch.no_grad():
            return plain(x, t, y).cpu()

    return {
        "output": output,
        "train": engine.train_step,
        "ode": draw(heun),
        "sde": draw(Sde(w=wt_of("sigma"), wt="sigma", steps=STEPS)),
        "guided": draw(heun, scale=SCALE),
        "interval": draw(heun, scale=SCALE, interval=INTERVAL),
    }


def theirs(folder: Path, options: argparse.Namespace) -> dict[str, Callable]:
    batch = options.batch_size
    job = job_of(folder, options.model, batch, options.device)
    config = job.config
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    depth, width, heads = PRESETS[parse_model(options.model)[1]]
    model = Reference(
        config.input_size, config.patch, config.channels, width, depth, heads, config.num_classes
    )
    load(model, torch.load(folder / "weights.pt"))
    model.to(job.device)
    x, t, y = inputs(job, batch)
    steps: dict[str, Callable] = {}

    def with_autoencoder() -> None:
        if "encoding" not in steps:
            steps["encoding"] = trainer(model, folder, batch, sd_vae().to(job.device))
        steps["encoding"]()

    def output() -> torch.Tensor:
        with torch.no_grad():
            return model(x, t, y).cpu()

    return {
        "output": output,
        "train": trainer(model, folder, batch, None),
        "train, encoding": with_autoencoder,
        "ode": lambda: ode(model, x, y, STEPS),
        "sde": lambda: sde(model, x, y, STEPS),
    }


def sd_vae() -> torch.nn.Module:
    """The SD VAE's network, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    ).eval()


def measure(pipes: dict[str, Connection], options: argparse.Namespace) -> None:
    def ask(side: str, task: str):
        pipes[side].send(task)
        return pipes[side].recv()

    mine, its = ask("ours", "output"), ask("theirs", "output")
    difference = (mine - its).abs().max() / its.std()
    where = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available() and options.device != "cpu":
        where = torch.cuda.get_device_name()
    print(f"{options.model}, batch {options.batch_size}, {where}")
    print(f"same weights: outputs differ by {difference:.1e} of their deviation")
    pairs = {
        "training step": (("theirs", "train"), ("ours", "train"), 1),
        "ODE, Heun, a step": (("theirs", "ode"), ("ours", "ode"), STEPS),
        "SDE, Euler-Maruyama, a step": (("theirs", "sde"), ("ours", "sde"), STEPS),
        "guidance in half of the range, a Heun step": (
            ("ours", "guided"), ("ours", "interval"), STEPS),
    }  # fmt: skip
    pairs = {name: pair for name, pair in pairs.items() if (options.only or "") in name}
    taken = {name: [] for name in pairs}
    for number in range(-1, options.rounds):  # the first warms up
        for name, (slow, fast, parts) in pairs.items():
            times = ask(*slow) / parts, ask(*fast) / parts
            if number >= 0:
                taken[name].append(times)
    encoding = "training step, autoencoder in the reference's loop"
    rounds = options.autoencoder_rounds
    taken[encoding] = [(ask("theirs", "train, encoding"), ask("ours", "train"))
                       for _ in range(rounds)]  # fmt: skip
    print("| | reference, s | sit, s | ratio | from - to |")
    print("|---|---|---|---|---|")
    for name, times in taken.items():
        if times:
            slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
            ratios = [a / b for a, b in times]
            middle = statistics.median(ratios)
            print(f"| {name} | {slow:.3f} | {fast:.3f} | {middle:.2f} | "
                  f"{min(ratios):.2f} - {max(ratios):.2f} |")  # fmt: skip
    print("In the fourth row both are sit's: guidance throughout, and in half of the range.")


if __name__ == "__main__":
    main()
