"""The records of a run in training: log lines, the summary, the loss curve, grids of samples."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sitcli.autoencoders.base import Autoencoder, decode_latents
from sitcli.autoencoders.load import from_spec
from sitcli.commands.train.board import Board
from sitcli.commands.train.job import Job
from sitcli.commands.train.meter import Meter, Stopwatch
from sitcli.commands.train.recipe import learning_rate
from sitcli.commands.train.run_settings import as_plain
from sitcli.commands.train.saving import Saver
from sitcli.core.flow import Ode
from sitcli.engine.engine import held_bytes
from sitcli.engine.scaler import loss_scale
from sitcli.errors import SitError
from sitcli.events import Event, Note, Warn
from sitcli.images.class_names import titles
from sitcli.images.curves import save_curve
from sitcli.images.grid import save_grid
from sitcli.machine.devices import autocast, matmul_rate, peak_memory
from sitcli.machine.ranks import gathered
from sitcli.machine.world import World
from sitcli.model.compile import compile_count
from sitcli.model.ema import ShardedEma
from sitcli.model.lora import whole
from sitcli.runs.checkpoint import build_network
from sitcli.text import count, format_bytes, spread

GRID_IMAGES, GRID_STEPS = 16, 20


class Logbook:
    """Measures steps on all ranks, and writes log lines and pictures on rank 0.

    summary, data: the report at the end of the run, for people and as JSON.
    """

    def __init__(
        self,
        job: Job,
        world: World,
        engine: Any,
        *,
        ema: ShardedEma,
        tracks: dict[float, ShardedEma],
        meter: Meter,
        watch: Stopwatch,
    ) -> None:
        self.job, self.world, self.engine = job, world, engine
        self.ema, self.tracks, self.meter, self.watch = ema, tracks, meter, watch
        self.board: Board | None = None
        self.norm: Tensor | None = None  # of the gradients of the last step that is logged
        # Graphs that this process had compiled before the first step, and those after it.
        self.graphs = [compile_count()] if job.compiled else []
        self.summary: dict[str, str] = {}
        self.data: dict[str, Any] = {}
        self._timed = (0, 0.0)  # steps of this process since the last log line, their seconds
        self._peak = 0.0  # operations a second of a plain matrix product here
        self._grids = True
        self._autoencoder: Autoencoder | None = None

    def open(self, step: int) -> None:
        """Cut off what an earlier process logged after `step`, and open the boards (rank 0)."""
        run, s = self.job.run, self.job.settings
        run.cut_metrics(step)
        self.board = Board(
            run.path, first_step=step + 1, wandb=s.wandb, name=run.path.name, config=as_plain(s)
        )

    def close(self) -> None:
        """Flush what is buffered."""
        if self.board is not None:
            self.board.close()

    def news(self) -> Iterator[Event]:
        """Yield the notes that the board has collected since the last call."""
        while self.board is not None and self.board.notes:
            yield Note(self.board.notes.pop(0))

    def timed(self, seconds: float) -> None:
        """Count one more step, which took `seconds`."""
        steps, before = self._timed
        self._timed = (steps + 1, before + seconds)

    def log(self, step: int, state: dict[str, Any], saver: Saver) -> str:
        """Write the log line of `step` from the meter's `state`; returns a short form for people.

        Every rank must call it.
        """
        steps = self.meter.steps
        entry = self._entry(step, state, saver)
        self.meter.reset()
        self._timed = (0, 0.0)
        if self.world.rank == 0:
            self.job.run.log_metrics(entry)
            self.board.log(step, entry)
        if step == self.job.settings.steps:
            self._summarise(entry, steps, saver)
        images, mfu = entry["images_per_second"], entry["mfu"]
        parts = [f"loss {entry['loss']:.4g}", f"{images:.4g} images/s", f"MFU {mfu:.0%}"]
        if self.world.size > 1:
            parts.append(spread(entry["rank_seconds"]))
        return ", ".join(parts)

    def _entry(self, step: int, state: dict[str, Any], saver: Saver) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        job, s, steps = self.job, self.job.settings, self.meter.steps
        # The best so far: on a busy machine a single measurement says little.
        self._peak = max(self._peak, matmul_rate(job.device, job.dtype))
        rate = self._timed[0] / self._timed[1]
        seconds = gathered(self.world, self.watch.read())
        entry: dict[str, Any] = dict(
            step=step,
            time=time.time(),
            loss=state["loss_sum"] / steps,
            lr=learning_rate(s, step - 1, since=job.history.schedule_from),
            epoch=job.order.epochs(job.images_at(step)),
            images_per_second=rate * s.batch_size,
            mfu=rate * job.step_flops / (self._peak * self.world.size),
            peak_memory_bytes=peak_memory(job.device),
            data_seconds=max(data for data, _ in seconds),
            rank_seconds=[data + forward for data, forward in seconds],
        )
        for name, value in state["term_sums"].items():
            entry[f"loss_{name}"] = value / steps
        norm = self.engine.get_global_grad_norm() if self.norm is None else self.norm
        if norm is not None and math.isfinite(norm):
            entry["grad_norm"] = float(norm)
        if (scale := loss_scale(self.engine)) is not None:
            entry["loss_scale"] = scale
        if job.compiled:
            entry["recompiles"] = compile_count() - self.graphs[1]
        if saver.costs:
            entry["save_stall_seconds"], entry["save_seconds"] = saver.costs[-1]
        return entry

    def _summarise(self, entry: dict[str, Any], steps: int, saver: Saver) -> None:
        """Fill summary and data at the end of the run; every rank must call it."""
        held = held_bytes(self.engine) | {
            "ema": self.ema.num_bytes + sum(track.num_bytes for track in self.tracks.values())
        }
        of_ranks = gathered(self.world, held)
        fullest = {kind: max(one[kind] for one in of_ranks) for kind in held}
        self.data = {"bytes_per_rank": fullest, "processes": self.world.size}
        self.summary = {
            "loss": f"{entry['loss']:.4g} over the last {count(steps, 'step')}",
            "speed": f"{entry['images_per_second']:.4g} images/s, {entry['mfu']:.0%} of this "
            "machine's measured matrix-product rate",
            "peak memory": f"{entry['peak_memory_bytes'] / 1e9:.2f} GB",
            "kept per process": ", ".join(f"{k} {format_bytes(n)}" for k, n in fullest.items()),
        }
        if costs := saver.costs:
            stall, seconds = (sum(each) / len(costs) for each in zip(*costs, strict=True))
            self.summary["saving"] = (
                f"stops training for {stall:.2g} s a checkpoint, then {seconds:.2g} s beside it"
            )
        if self.world.size > 1:
            self.summary["ranks"] = spread(entry["rank_seconds"])
        if self.job.compiled:
            graphs = count(self.graphs[1] - self.graphs[0], "graph")
            self.summary["compiled"] = f"{graphs}, {entry['recompiles']} recompiled"

    def draw_curve(self) -> None:
        """Write loss.png over all steps, and flush the board (rank 0)."""
        entries = self.job.run.read_metrics()
        if len(entries) > 1:
            steps, losses = zip(*((e["step"], e["loss"]) for e in entries), strict=True)
            marks, file = self.job.history.marks, self.job.run.path / "loss.png"
            save_curve(file, steps, losses, label="loss", marks=marks)
        self.board.flush()

    def draw_grid(self, step: int) -> Iterator[Event]:
        """Write a grid of samples of the average weights, from the same noise every time.

        Every rank must call it.
        """
        average = self.ema.gather()  # every rank takes part
        if self.world.rank == 0 and self._grids:
            try:
                self._sample_grid(step, average)
            except SitError as error:
                self._grids = False  # once is enough
                yield Warn(f"no sample grids: {error.message}")
        dist.barrier()

    @torch.no_grad()
    def _sample_grid(self, step: int, average: dict[str, Tensor]) -> None:
        job = self.job
        if self._autoencoder is None:
            self._autoencoder = from_spec(
                job.store.autoencoder,
                job.store.autoencoder_arrays,
                device=job.device,
                dtype=job.dtype,
            )
        network = build_network(job.config, whole(average), job.device)
        classes = np.unique(job.store.labels)[: GRID_IMAGES // 2]  # those that have images
        columns = GRID_IMAGES // len(classes)
        y = torch.from_numpy(classes).repeat_interleave(columns)
        noise = job.streams.grid(len(y)).normal(*job.store.latent_shape)
        sampler = Ode(
            solver="heun",
            steps=GRID_STEPS,
            shift=float(job.settings.t_shift or 1),
            interval=job.process.ode_interval(self.meter.loss_curve),
        )
        with autocast(job.device, job.dtype):
            steps = job.process.sample(network, noise.to(job.device), y.to(job.device), sampler)
            *_, (_, x) = steps
        images = decode_latents(self._autoencoder, x, job.store.scaling)
        path = job.run.path / "samples" / f"{job.run.step_path(step).name}.png"
        names = titles(job.store.class_names)
        labels = [names[c] for c in classes] if names else []
        save_grid(path, images.numpy(), columns=columns, row_labels=labels)
        self.board.picture(step, "samples", path)
