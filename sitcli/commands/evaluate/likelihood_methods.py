"""The two ways to a likelihood: exact for a flow, the variational bound for a chain."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sitcli import names
from sitcli.autoencoders.load import is_identity
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow, Ode
from sitcli.core.guidance import GuidedNetwork
from sitcli.core.likelihood import log_likelihood
from sitcli.core.ode import ADAPTIVE, ODE_STEPS
from sitcli.core.transport import ends_of
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import Philox, Stream
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.compatible import difference_from_trained
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.files import hash_json
from sitcli.text import count


@dataclass(frozen=True, kw_only=True)
class Job:
    """A likelihood to measure, with everything opened and checked."""

    checkpoint: Checkpoint
    store: LatentStore | JoinedStores
    items: np.ndarray  # (n,) numbers within the store
    labels: np.ndarray  # (n,)
    label_policy: str
    seed: int
    probes: int | None  # 0 is the exact trace; probes and ode are None for the bound
    ode: Ode | None
    steps: int | None  # of the bound's chain
    device: torch.device

    @property
    def out(self) -> Path:
        """The file to write. Each measurement has its own name, the same one every time."""
        step, mark = self.checkpoint.path, hash_json(self.facts())[:6]
        return step.parent / f"nll-{step.name}-{self.store.path.stem}-{mark}.json"

    @property
    def method(self) -> _Method:
        """How the checkpoint's kind of process is measured."""
        return METHODS[type(self.checkpoint.process)]

    @property
    def of_pixels(self) -> bool:
        """Whether the latents are the picture itself."""
        return is_identity(self.store.autoencoder) and self.store.scaling.is_identity

    @property
    def trained_on(self) -> bool:
        """Whether the store is the one that the run was trained on."""
        return not difference_from_trained(self.store, self.checkpoint.latents)

    @property
    def data(self) -> str:
        """The store, for people."""
        return f"{self.store.path}{' (training images)' if self.trained_on else ''}"

    @property
    def read_as(self) -> str:
        """The form in which the model gets an image, for people."""
        if self.of_pixels:
            return "bytes" if self.ode is None else "bytes, each spread over its grey level"
        return "a sample of the posterior" if self.store.kind == "moments" else "the latent"

    def facts(self) -> dict[str, Any]:
        """Everything the figure depends on, for the file."""
        checkpoint, store = self.checkpoint, self.store
        facts: dict[str, Any] = dict(
            checkpoint=str(checkpoint.path.resolve()),
            step=checkpoint.step,
            model=checkpoint.meta["model"],
            process=checkpoint.meta["process"],
            weights="ema",
            ema=checkpoint.meta.get("ema"),
            store=str(store.path.resolve()),
            store_fingerprint=store.fingerprint,
            training_images=self.trained_on,
            num=len(self.items),
            num_items=store.num_items,
            read_as=self.read_as,
            labels=self.label_policy,
            seed=self.seed,
            precision="fp32",
            method=self.method.name,
        )
        if self.ode is None:
            return facts | dict(steps=self.steps)
        ends = ends_of(checkpoint.process, checkpoint.loss_curve)
        trace = f"Hutchinson, {count(self.probes, 'probe')} of random signs"
        facts |= dict(
            divergence=trace if self.probes else "exact trace",
            solver=self.ode.solver,
            interval=[ends.data, ends.noise],
        )
        if self.ode.adaptive:
            return facts | dict(rtol=self.ode.rtol, atol=self.ode.atol)
        return facts | dict(steps=self.ode.steps)


def _exact(
    job: Job, network: GuidedNetwork, x: Tensor, y: Tensor, items: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    process, ode = job.checkpoint.process, job.ode
    probes = _probes(job, items).to(x.device) if job.probes else None
    ends = ends_of(process, job.checkpoint.loss_curve)
    try:
        solving = log_likelihood(process, network, x, y, probes=probes, ode=ode, ends=ends)
        for step, (t, value) in enumerate(solving, start=1):
            share = (t - ends.data) / (ends.noise - ends.data) if ode.adaptive else step / ode.steps
            yield share, -value
    except ArithmeticError as error:
        raise SitError(str(error), "use a larger --rtol, or --solver rk4") from None


def _probes(job: Job, items: np.ndarray) -> Tensor:
    """Random signs (B, P, C, h, w); probe k of an image is a function of (seed, item, k) alone."""
    random = Philox(job.seed).draws(Stream.PROBES, items)
    signs = [random.integers(2, *job.store.latent_shape) for _ in range(job.probes)]
    return (torch.stack(signs, dim=1) * 2 - 1).float()


def _bound(
    job: Job, network: GuidedNetwork, x: Tensor, y: Tensor, items: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    random = Philox(job.seed).draws(Stream.BOUND, items)

    def randn() -> Tensor:
        return random.normal(*x.shape[1:]).to(x.device)

    process, nats_per_bit = job.checkpoint.process, x[0].numel() * math.log(2)
    bound = process.bound(network, x, y, steps=job.steps, tails=job.of_pixels, randn=randn)
    for done, total, bits in bound:
        yield done / total, (bits * nats_per_bit)[:, None]


def _resolve_exact(s: EvaluateSettings, process: Flow) -> dict[str, Any]:
    solver = s.solver or "rk4"
    if solver not in names.MAP_SOLVERS:
        raise UsageError(
            f"--solver {solver} remembers earlier steps, and only runs from noise to data",
            f"use one of {', '.join(names.MAP_SOLVERS)}",
        )
    tolerances = {name: getattr(s, name) for name in ("rtol", "atol")}
    tolerances = {name: value for name, value in tolerances.items() if value is not None}
    if solver in ADAPTIVE and s.steps is not None:
        raise UsageError(f"{solver} chooses its own steps", "use --rtol and --atol, not --steps")
    if solver not in ADAPTIVE and tolerances:
        adaptive = " or ".join(ADAPTIVE)
        raise UsageError(f"--{next(iter(tolerances))} is for --solver {adaptive}", "use --steps")
    ode = Ode(solver=solver, steps=s.steps or 50, **tolerances)
    return dict(probes=1 if s.probes is None else s.probes, ode=ode, steps=None)


def _resolve_bound(s: EvaluateSettings, process: Diffusion) -> dict[str, Any]:
    given = [name for name in ("probes", "solver", "rtol", "atol") if getattr(s, name) is not None]
    if given:
        raise UsageError(
            f"--{given[0]} is for the ODE of a SiT model, and this is a DiT model",
            f"remove --{given[0]}: the bound of a DiT model takes --steps only",
        )
    length = len(process.chain)
    if s.steps is not None and s.steps > length:
        raise UsageError(
            f"--steps {s.steps}: the model's chain has {length}", f"use at most --steps {length}"
        )
    return dict(probes=None, ode=None, steps=s.steps or length)


def _exact_evaluations(job: Job) -> int | None:
    if job.ode.adaptive:
        return None
    return job.ode.steps * ODE_STEPS[job.ode.solver].evaluations


class _Method(NamedTuple):
    """How a kind of process is measured.

    label: the end of its figures' names; resolve(settings, process) -> fields of the job;
    measure(job, network, x, y, items) yields (share of the work done, nats (B, P)), and the last
    nats are the result; evaluations(job): network evaluations per image, None where the solver
    decides.
    """

    name: str
    label: str
    resolve: Callable[[EvaluateSettings, Any], dict[str, Any]]
    measure: Callable[..., Iterator[tuple[float, Tensor]]]
    evaluations: Callable[[Job], int | None]


METHODS: dict[type, _Method] = {
    Flow: _Method("probability-flow ODE", "", _resolve_exact, _exact, _exact_evaluations),
    Diffusion: _Method(
        "variational bound",
        " (variational bound)",
        _resolve_bound,
        _bound,
        lambda job: job.steps,
    ),
}
