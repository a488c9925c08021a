"""``sit evaluate --nll``: how likely a model holds images to be.

A continuous model's exact log-likelihood along its probability flow; a discrete model's variational
bound. Which of the two is a row of METHODS.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sitcli import __version__, names
from sitcli.core.ddpm import Diffusion
from sitcli.core.flow import Flow, Ode
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.likelihood import GREY_BITS, bits_per_dim, dequantise, log_likelihood
from sitcli.core.solvers import ODE_STEPS
from sitcli.core.transport import ends_of
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage, Table
from sitcli.io import find
from sitcli.io.autoencoder import to_signed, to_uint8
from sitcli.io.checkpoint import Checkpoint, open_checkpoint
from sitcli.io.files import hash_json, write_json
from sitcli.io.latents import JoinedStores, LatentStore, open_stores
from sitcli.io.launch import generator, quiet_libraries, resolve_device, tune_cpu
from sitcli.io.rows import check_writable
from sitcli.settings import EvaluateSettings
from sitcli.text import count, format_shape

FORMAT_VERSION = 1
NUM = 64
# Options of --nll that --history has too.
HISTORY_TOO = ("num", "solver", "steps", "rtol", "atol")
OWN = "their own"


def likelihood(settings: EvaluateSettings) -> Stage:
    """Measure a run's newest step, or a step, and write nll-STEP-STORE-HASH.json into the run.

    In float32 without autocast: the divergence is a sum of small derivatives, and the rounding of
    every layer to bf16 would be as large. The average weights, each image under its own label.

    Raises UsageError for options that do not fit the model, SitError for a store that does not.
    """
    quiet_libraries()
    task = _resolve(settings)
    if settings.samples is None:
        yield Note(f"checkpoint: {task.checkpoint.path} (the newest)")
    yield Note(f"data: {task.data}")
    tune_cpu(task.device)
    network = GuidedNetwork(
        task.checkpoint.network("ema", task.device),
        Guidance(null_class=task.checkpoint.config.null_class),
    )
    total, done, text = len(task.items), 0, ""
    parts: list[Tensor] = []
    yield Progress(done=0, total=total)
    for items, labels in _batches(task, settings.batch_size):
        x = _data(task, items).to(task.device)
        y = torch.from_numpy(labels).to(task.device)
        for share, latest in task.method.measure(task, network, x, y, items):
            nats = latest
            yield Progress(done=done + int(len(items) * share), total=total, text=text)
        if not bool(torch.isfinite(nats).all()):
            raise SitError("the likelihood is not a finite number", "use more --steps")
        parts.append(nats.cpu().double())
        done += len(items)
        text = f"{float(bits_per_dim(torch.cat(parts).mean(), x[0].numel())):.4g} bits/dim"
    return _report(task, torch.cat(parts), network.evaluations / total)


def plan(settings: EvaluateSettings) -> Result:
    """What `likelihood` would do; writes nothing."""
    from sitcli.model.flops import total_cost

    task = _resolve(settings)
    evaluations = task.method.evaluations(task)
    macs = total_cost(task.checkpoint.config).macs
    summary = {
        "checkpoint": str(task.checkpoint.path),
        "data": f"{task.data}, {count(len(task.items), 'image')}",
        "method": task.method.name,
        "evaluations": f"{evaluations} an image" if evaluations else "as dopri5 needs",
        "cost": f"{macs / 1e9:.3g} GMACs an evaluation"
        + ("" if task.ode is None else ", before the backward passes"),
        "would write": str(task.out),
    }
    data = dict(task.facts(), dry_run=True, evaluations=evaluations, out=str(task.out))
    return Result(summary=summary, data=data, next="the same command without --dry-run")


def refuse_options(settings: EvaluateSettings) -> None:
    """UsageError for an option that does nothing in the mode that was asked for.

    The modes: metrics of samples, --history of a run's checkpoints, --nll of a model.
    """
    fields = dataclasses.fields(settings)
    given = [f for f in fields if getattr(settings, f.name) != f.default]
    groups = {f.name: f.metadata["group"] for f in given}
    flags = {f.name: "--" + f.name.replace("_", "-") for f in given}
    if not settings.nll:
        for name, group in groups.items():
            if group == "Likelihood" and not (settings.history and name in HISTORY_TOO):
                raise UsageError(
                    f"{flags[name]} is an option of --nll", "leave it out, or add --nll"
                )
        if settings.history and settings.samples:
            raise UsageError(
                "--history draws its own samples of a run", "leave out the sample sets"
            )
        return
    for name, group in groups.items():
        if group == "Metrics" or name == "history":
            raise UsageError(
                f"{flags[name]} measures samples, and --nll a model", "type a command for each"
            )
        if name == "reference_num":
            raise UsageError(
                "--reference-num is for samples", "--num says how many images --nll takes"
            )
        if group == "Features":
            raise UsageError(
                f"{flags[name]} is for samples: --nll extracts no features", "leave it out"
            )
        if name in ("gpus", "procs"):
            raise UsageError(f"{flags[name]}: --nll runs in one process", "leave it out")
    if settings.samples and len(settings.samples) > 1:
        raise UsageError("--nll takes one run or step", "type a command for each")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is to be measured, all of it opened and checked."""

    checkpoint: Checkpoint
    store: LatentStore | JoinedStores
    items: np.ndarray  # (n,) numbers within the store
    labels: np.ndarray  # (n,)
    label_policy: str
    seed: int
    probes: int | None  # 0 is the exact trace; None, as ode is, for the bound
    ode: Ode | None
    steps: int | None  # of the bound's chain
    device: torch.device

    @property
    def out(self) -> Path:
        """The same measurement's file; another one's has another name."""
        step, mark = self.checkpoint.path, hash_json(self.facts())[:6]
        return step.parent / f"nll-{step.name}-{self.store.path.stem}-{mark}.json"

    @property
    def method(self) -> _Method:
        return METHODS[type(self.checkpoint.process)]

    @property
    def of_pixels(self) -> bool:
        """Whether the latents are the picture itself."""
        return self.store.autoencoder["kind"] == "pixels" and self.store.scaling == 1

    @property
    def trained_on(self) -> bool:
        return self.store.fingerprint == self.checkpoint.latents["fingerprint"]

    @property
    def data(self) -> str:
        return f"{self.store.path}{' (training images)' if self.trained_on else ''}"

    @property
    def read_as(self) -> str:
        """What an image is to the model."""
        if self.of_pixels:
            return "bytes" if self.ode is None else "bytes, each spread over its grey level"
        return "a sample of the posterior" if self.store.kind == "moments" else "the latent"

    def facts(self) -> dict[str, Any]:
        """All that the figure depends on."""
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
        t_data, t_noise, _ = ends_of(checkpoint.process)
        trace = f"Hutchinson, {count(self.probes, 'probe')} of random signs"
        facts |= dict(
            divergence=trace if self.probes else "exact trace",
            solver=self.ode.solver,
            interval=[t_data, t_noise],
        )
        if self.ode.solver == "dopri5":
            return facts | dict(rtol=self.ode.rtol, atol=self.ode.atol)
        return facts | dict(steps=self.ode.steps)


def _resolve(settings: EvaluateSettings) -> _Task:
    refuse_options(settings)
    checkpoint = open_checkpoint(settings.samples[0] if settings.samples else find.newest_run())
    method = METHODS[type(checkpoint.process)].resolve(settings, checkpoint.process)
    store = _open_store(settings, checkpoint)
    if settings.num is not None and settings.num > store.num_items:
        raise UsageError(
            f"--num {settings.num}: {store.path} has {store.num_items:,} images",
            f"at most --num {store.num_items}",
        )
    num = min(settings.num or NUM, store.num_items)
    if num < 2:
        raise SitError(f"{store.path} holds {num} image, and an error bar needs at least 2")
    items = np.arange(num) * store.num_items // num
    labels, policy = known_labels(store.labels[items], store.class_names, checkpoint)
    if policy != OWN:
        check_null_class(checkpoint, policy, "give a --reference with the run's classes")
    task = _Task(
        checkpoint=checkpoint,
        store=store,
        items=items,
        labels=labels,
        label_policy=policy,
        seed=settings.seed,
        device=resolve_device(settings.device),
        **method,
    )
    check_writable(task.out)
    return task


def _open_store(settings: EvaluateSettings, checkpoint: Checkpoint) -> LatentStore | JoinedStores:
    latents = checkpoint.latents
    paths = [Path(path) for path in latents.get("stores", [latents["store"]])]
    if settings.reference is None and "lineage" in checkpoint.meta:
        raise UsageError(
            f"{checkpoint.path} is of imported weights, which know no latents",
            "give a latent store: --reference STORE.h5",
        )
    for path in paths:
        if settings.reference is None and not path.exists():
            raise SitError(
                f"the latent store this run was trained on, {path}, is not there any more",
                "give it, or another one, with --reference",
            )
    store = open_stores([settings.reference] if settings.reference else paths)
    check_same_latents(store, checkpoint)
    return store


def check_same_latents(store: LatentStore | JoinedStores, checkpoint: Checkpoint) -> None:
    """SitError unless the store's latents are of the kind that the run was trained on."""
    latents, config = checkpoint.latents, checkpoint.config
    shape = config.latent_shape
    if store.latent_shape != shape:
        what = f"latents {format_shape(store.latent_shape)}, and the run's {format_shape(shape)}"
    elif latents["autoencoder"]["hash"] not in (None, store.autoencoder["hash"]):
        what = f"latents of another autoencoder, {store.autoencoder['name']}"
    elif store.scaling != latents["scaling"]:
        what = f"latents scaled by {store.scaling}, and the run's by {latents['scaling']}"
    else:
        return
    like = f"--vae {latents['autoencoder']['name']} does it"
    if latents["store"] is not None:
        like = f"{latents['store']} was encoded"
    raise SitError(f"{store.path} holds {what}", f"encode the images as {like}")


def known_labels(
    labels: np.ndarray, class_names: list[str], checkpoint: Checkpoint
) -> tuple[np.ndarray, str]:
    """The run's class numbers for images of these labels (n,) and classes, and where they are from.

    The second is OWN if every class is one of the run's, by name; else the numbers are the null
    class, and it says why.
    """
    num_classes, known = checkpoint.config.num_classes, checkpoint.latents["class_names"]
    if num_classes == 0:
        return np.zeros(len(labels), np.int64), "none, as the model has none"
    if class_names and set(class_names) <= set(known):
        return np.array([known.index(name) for name in class_names])[labels], OWN
    # A run that does not know its classes' names has them in order.
    if len(class_names) == num_classes and not known:
        return np.array(labels), OWN
    why = "the images' are not the run's" if class_names else "the images have none"
    return np.full(len(labels), checkpoint.config.null_class), f"the null class, as {why}"


def check_null_class(checkpoint: Checkpoint, policy: str, hint: str) -> None:
    """UsageError if the null class, which `policy` says is used, was never trained."""
    if checkpoint.config.num_classes and checkpoint.meta.get("label_dropout") == 0:
        raise UsageError(f"labels: {policy}, which --label-dropout 0 never trained", hint)


def _batches(task: _Task, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers within the store, labels) of at most `size` images at a time."""
    for start in range(0, len(task.items), size):
        yield task.items[start : start + size], task.labels[start : start + size]


def _data(task: _Task, items: np.ndarray) -> Tensor:
    """(B, C, h, w) float32, what the likelihood is asked of; a function of (seed, item) alone."""
    store, shape = task.store, task.store.latent_shape

    def drawn(draw: Callable, what: str) -> Tensor:
        random = [generator(task.seed, what, int(item)) for item in items]
        return torch.stack([draw(shape, generator=r) for r in random])

    if not task.of_pixels:
        noise = drawn(torch.randn, "posterior") if store.kind == "moments" else None
        return store.batch(items, noise=noise)
    images = to_uint8(store.batch(items))  # the very bytes: float16 did not lose them
    if task.ode is None:
        return to_signed(images.numpy())
    return dequantise(images.permute(0, 3, 1, 2), drawn(torch.rand, "dequantise"))


def _exact(
    task: _Task, network: GuidedNetwork, x: Tensor, y: Tensor, items: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    process, ode = task.checkpoint.process, task.ode
    probes = _probes(task, items).to(x.device) if task.probes else None
    begin, end, _ = ends_of(process)
    try:
        solving = log_likelihood(process, network, x, y, probes=probes, ode=ode)
        for step, (t, value) in enumerate(solving, start=1):
            share = (t - begin) / (end - begin) if ode.solver == "dopri5" else step / ode.steps
            yield share, -value
    except ArithmeticError as error:
        raise SitError(str(error), "use a larger --rtol, or --solver rk4") from None


def _probes(task: _Task, items: np.ndarray) -> Tensor:
    """Random signs (B, P, C, h, w); probe k of an image is a function of (seed, item, k) alone."""
    shape = task.store.latent_shape
    signs = [
        torch.randint(0, 2, shape, generator=generator(task.seed, "probe", int(item), k))
        for item in items
        for k in range(task.probes)
    ]
    return (torch.stack(signs) * 2 - 1).float().view(len(items), task.probes, *shape)


def _bound(
    task: _Task, network: GuidedNetwork, x: Tensor, y: Tensor, items: np.ndarray
) -> Iterator[tuple[float, Tensor]]:
    random = [generator(task.seed, "bound", int(item)) for item in items]

    def randn() -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=r) for r in random]).to(x.device)

    process, nats_per_bit = task.checkpoint.process, x[0].numel() * math.log(2)
    bound = process.bound(network, x, y, steps=task.steps, tails=task.of_pixels, randn=randn)
    for done, total, bits in bound:
        yield done / total, (bits * nats_per_bit)[:, None]


def _resolve_exact(s: EvaluateSettings, process: Flow) -> dict[str, Any]:
    solver = s.solver or "rk4"
    if solver not in names.MAP_SOLVERS:
        raise UsageError(
            f"--solver {solver} remembers earlier steps, and runs from noise to data alone",
            f"one of {', '.join(names.MAP_SOLVERS)}",
        )
    tolerances = {name: getattr(s, name) for name in ("rtol", "atol")}
    tolerances = {name: value for name, value in tolerances.items() if value is not None}
    if solver == "dopri5" and s.steps is not None:
        raise UsageError("dopri5 chooses its own steps", "use --rtol and --atol, not --steps")
    if solver != "dopri5" and tolerances:
        raise UsageError(f"--{next(iter(tolerances))} is for --solver dopri5", "use --steps")
    ode = Ode(solver=solver, steps=s.steps or 50, **tolerances)
    return dict(probes=1 if s.probes is None else s.probes, ode=ode, steps=None)


def _resolve_bound(s: EvaluateSettings, process: Diffusion) -> dict[str, Any]:
    given = [name for name in ("probes", "solver", "rtol", "atol") if getattr(s, name) is not None]
    if given:
        raise UsageError(
            f"--{given[0]} is for the ODE of a SiT model, and this is a DiT model",
            "its bound takes --steps alone",
        )
    length = len(process.chain)
    if s.steps is not None and s.steps > length:
        raise UsageError(f"--steps {s.steps}: the model's chain has {length}", "at most that")
    return dict(probes=None, ode=None, steps=s.steps or length)


def _exact_evaluations(task: _Task) -> int | None:
    if task.ode.solver == "dopri5":
        return None
    return task.ode.steps * ODE_STEPS[task.ode.solver].evaluations


class _Method(NamedTuple):
    """How a kind of process is measured.

    label: what its figures' names end with; resolve(settings, process) -> fields of the task;
    measure(task, network, x, y, items) yields (share of the work done, nats (B, P)), of which the
    last counts; evaluations(task): an image's, None where the solver decides.
    """

    name: str
    label: str
    resolve: Callable[[EvaluateSettings, Any], dict[str, Any]]
    measure: Callable[..., Iterator[tuple[float, Tensor]]]
    evaluations: Callable[[_Task], int | None]


METHODS: dict[type, _Method] = {
    Flow: _Method("probability-flow ODE", "", _resolve_exact, _exact, _exact_evaluations),
    Diffusion: _Method(
        "variational bound",
        " (variational bound)",
        _resolve_bound,
        _bound,
        lambda task: task.steps,
    ),
}


def _figures(task: _Task, nats: Tensor) -> list[dict[str, Any]]:
    """nats (n, P), negative log-likelihoods, -> figures, each with its standard error.

    The error is that of the mean over the images; the chance of the probes and of the
    dequantisation is part of how the images differ, and thus inside it.
    """
    size, image = math.prod(task.store.latent_shape), nats.mean(1)
    bits = bits_per_dim(image, size)
    rows = [("nats/image", image)]
    if task.ode is None:  # of bytes, or of bins as wide, already
        rows.append(("bits/dim", bits))
    else:
        rows.append(("bits/dim of the latent", bits))
        if task.of_pixels:
            rows.append(("bits/dim of the pixels", bits + GREY_BITS))
    return [
        dict(
            metric=name + task.method.label,
            value=float(values.mean()),
            std_error=float(values.std()) / math.sqrt(len(values)),
            num=len(values),
        )
        for name, values in rows
    ]


def _report(task: _Task, nats: Tensor, evaluations: float) -> Result:
    figures, facts = _figures(task, nats), task.facts()
    facts |= dict(evaluations_per_image=evaluations)
    if task.ode is not None:
        passes = task.probes or math.prod(task.store.latent_shape)
        facts |= dict(backward_passes_per_evaluation=passes)
    if nats.shape[1] > 1:
        # What more probes could still take away of the error of nats/image.
        share = nats.var(1).mean() / nats.shape[1] / len(nats)
        facts |= dict(std_error_of_probes=float(share.sqrt()))
    document = {"format_version": FORMAT_VERSION, "sit_version": __version__, **facts}
    document |= dict(figures=figures, items=task.items.tolist(), nats=nats.mean(1).tolist())
    try:
        write_json(task.out, document)
    except OSError as error:
        raise SitError(f"cannot write {task.out}: {error.strerror}") from None
    return Result(
        summary=_summary(task, facts),
        tables=[_table(task, figures, evaluations)],
        data=dict(facts, figures=figures),
        path=task.out,
    )


def _summary(task: _Task, facts: dict[str, Any]) -> dict[str, str]:
    if task.ode is None:
        method = f"{count(task.steps, 'step')} of the chain: an upper bound"
        width = "" if task.of_pixels else ", in bins 2/255 wide"
    else:
        method = f"{task.ode.solver}"
        method += "" if task.ode.solver == "dopri5" else f", {count(task.ode.steps, 'step')}"
        method, width = f"{method}; {facts['divergence']}", ""
    error = "standard error over the images" + (", the probes' within it" if task.probes else "")
    return {
        "method": f"{task.method.name}, {method}",
        "images": f"{task.read_as}{width}; labels {task.label_policy}",
        "±": error,
    }


def _table(task: _Task, figures: list[dict[str, Any]], evaluations: float) -> Table:
    data = f"{task.store.path.name}{', training images' if task.trained_on else ''}"
    rows = []
    for figure in figures:
        value = f"{figure['value']:.5g} ± {figure['std_error']:.2g}"
        rows.append([figure["metric"], value, f"{figure['num']:,}", f"{evaluations:g}", data])
    header = ["negative log-likelihood", "value", "N", "evaluations an image", "data"]
    return Table(title="", header=header, rows=rows)
