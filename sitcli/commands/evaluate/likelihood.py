"""``sit evaluate --nll``: how likely a model holds images to be.

A continuous model's exact log-likelihood along its probability flow; a discrete model's variational
bound. Which of the two is a row of METHODS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sitcli import __version__
from sitcli.autoencoders.base import to_signed, to_uint8
from sitcli.commands.evaluate.likelihood_methods import METHODS, Job
from sitcli.commands.evaluate.options import refuse_options
from sitcli.commands.newest import newest_run
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.likelihood import GREY_BITS, bits_per_dim, dequantise
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage, Table
from sitcli.latents.joined import JoinedStores, open_stores
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import resolve_device, tune_cpu
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.seeds import generator
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.compatible import OWN, check_null_class, check_same_latents, known_labels
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.files import write_json
from sitcli.storage.locks import check_writable
from sitcli.text import count

FORMAT_VERSION = 1
NUM = 64


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


def _resolve(settings: EvaluateSettings) -> Job:
    refuse_options(settings)
    checkpoint = open_checkpoint(settings.samples[0] if settings.samples else newest_run())
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
    task = Job(
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


def _batches(task: Job, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(numbers within the store, labels) of at most `size` images at a time."""
    for start in range(0, len(task.items), size):
        yield task.items[start : start + size], task.labels[start : start + size]


def _data(task: Job, items: np.ndarray) -> Tensor:
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


def _figures(task: Job, nats: Tensor) -> list[dict[str, Any]]:
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


def _report(task: Job, nats: Tensor, evaluations: float) -> Result:
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


def _summary(task: Job, facts: dict[str, Any]) -> dict[str, str]:
    if task.ode is None:
        method = f"{count(task.steps, 'step')} of the chain: an upper bound"
        width = "" if task.of_pixels else ", in bins 2/255 wide"
    else:
        method = f"{task.ode.solver}"
        method += "" if task.ode.adaptive else f", {count(task.ode.steps, 'step')}"
        method, width = f"{method}; {facts['divergence']}", ""
    error = "standard error over the images" + (", the probes' within it" if task.probes else "")
    return {
        "method": f"{task.method.name}, {method}",
        "images": f"{task.read_as}{width}; labels {task.label_policy}",
        "±": error,
    }


def _table(task: Job, figures: list[dict[str, Any]], evaluations: float) -> Table:
    data = f"{task.store.path.name}{', training images' if task.trained_on else ''}"
    rows = []
    for figure in figures:
        value = f"{figure['value']:.5g} ± {figure['std_error']:.2g}"
        rows.append([figure["metric"], value, f"{figure['num']:,}", f"{evaluations:g}", data])
    header = ["negative log-likelihood", "value", "N", "evaluations an image", "data"]
    return Table(title="", header=header, rows=rows)
