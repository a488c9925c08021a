"""``sit evaluate --nll``: how likely a model holds images to be.

For a continuous model it is the exact log-likelihood along its probability flow, for a discrete one
the variational bound: a row of METHODS each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
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
from sitcli.events import Note, Progress, Result, Stage, Table, Warn
from sitcli.latents.joined import JoinedStores, open_stores
from sitcli.latents.store import LatentStore
from sitcli.machine.devices import resolve_device, tune_cpu
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.seeds import NEW, Philox, Stream
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.compatible import OWN_LABELS, check_null_class, check_same_latents, known_labels
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.files import write_json
from sitcli.storage.locks import check_writable
from sitcli.text import count

FORMAT_VERSION = 1
NUM = 64


def likelihood(settings: EvaluateSettings) -> Stage:
    """Measure a run's newest step, or a step, and write nll-STEP-STORE-HASH.json into the run.

    The average weights are measured, each image under its own label. All is computed in float32
    without autocast: the divergence is a sum of small derivatives, and the rounding of every layer
    to bf16 would be as large.

    Raises UsageError for options, and SitError for a store, that do not fit the model.
    """
    quiet_libraries()
    job = _resolve(settings)
    if settings.samples is None:
        yield Note(f"checkpoint: {job.checkpoint.path} (the newest)")
    yield Note(f"data: {job.data}")
    if job.checkpoint.weights_warning:
        yield Warn(job.checkpoint.weights_warning)
    tune_cpu(job.device)
    network = GuidedNetwork(
        job.checkpoint.network("ema", job.device),
        Guidance(null_class=job.checkpoint.config.null_class),
    )
    total, done, text = len(job.items), 0, ""
    parts: list[Tensor] = []
    yield Progress(done=0, total=total)
    for items, labels in _batches(job, settings.batch_size):
        x = _data(job, items).to(job.device)
        y = torch.from_numpy(labels).to(job.device)
        for share, latest in job.method.measure(job, network, x, y, items):
            nats = latest
            yield Progress(done=done + int(len(items) * share), total=total, text=text)
        if not bool(torch.isfinite(nats).all()):
            raise SitError("the likelihood is not a finite number", "use more --steps")
        parts.append(nats.cpu().double())
        done += len(items)
        text = f"{float(bits_per_dim(torch.cat(parts).mean(), x[0].numel())):.4g} bits/dim"
    return _report(job, torch.cat(parts), network.evaluations / total)


def plan(settings: EvaluateSettings) -> Result:
    """What `likelihood` would do, for --dry-run; writes nothing."""
    from sitcli.model.flops import total_cost

    job = _resolve(settings)
    evaluations = job.method.evaluations(job)
    macs = total_cost(job.checkpoint.config).macs
    summary = {
        "checkpoint": str(job.checkpoint.path),
        "data": f"{job.data}, {count(len(job.items), 'image')}",
        "method": job.method.name,
        "evaluations": f"{evaluations} an image" if evaluations else "as dopri5 needs",
        "cost": f"{macs / 1e9:.3g} GMACs an evaluation"
        + ("" if job.ode is None else ", before the backward passes"),
        "would write": str(job.out),
    }
    data = dict(job.facts(), dry_run=True, evaluations=evaluations, out=str(job.out))
    return Result(summary=summary, data=data, next="the same command without --dry-run")


def _resolve(settings: EvaluateSettings) -> Job:
    refuse_options(settings)
    checkpoint = open_checkpoint(settings.samples[0] if settings.samples else newest_run())
    method = METHODS[type(checkpoint.process)].resolve(settings, checkpoint.process)
    store = _open_store(settings, checkpoint)
    if settings.num is not None and settings.num > store.num_items:
        raise UsageError(
            f"--num {settings.num}: {store.path} has {store.num_items:,} images",
            f"use at most --num {store.num_items}",
        )
    num = min(settings.num or NUM, store.num_items)
    if num < 2:
        raise SitError(f"{store.path} holds {num} image, and an error bar needs at least 2")
    items = np.arange(num) * store.num_items // num
    labels, policy = known_labels(store.labels[items], store.class_names, checkpoint)
    if policy != OWN_LABELS:
        check_null_class(checkpoint, policy, "use a --reference with the run's classes")
    job = Job(
        checkpoint=checkpoint,
        store=store,
        items=items,
        labels=labels,
        label_policy=policy,
        seed=settings.seed,
        device=resolve_device(settings.device),
        **method,
    )
    check_writable(job.out)
    return job


def _open_store(settings: EvaluateSettings, checkpoint: Checkpoint) -> LatentStore | JoinedStores:
    latents = checkpoint.latents
    paths = [Path(path) for path in latents.get("stores", [latents["store"]])]
    if settings.reference is None and "lineage" in checkpoint.meta:
        raise UsageError(
            f"{checkpoint.path} holds imported weights, which name no latent store",
            "add --reference STORE.h5",
        )
    for path in paths:
        if settings.reference is None and not path.exists():
            raise SitError(
                f"the latent store this run was trained on, {path}, is not there any more",
                "add --reference with its new path, or with another store",
            )
    store = open_stores([settings.reference] if settings.reference else paths)
    check_same_latents(store, checkpoint)
    return store


def _batches(job: Job, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (numbers within the store, labels) of at most `size` images at a time."""
    for start in range(0, len(job.items), size):
        yield job.items[start : start + size], job.labels[start : start + size]


def _data(job: Job, items: np.ndarray) -> Tensor:
    """The data to measure, (B, C, h, w) float32; each is a function of (seed, item) alone."""
    store, shape, streams = job.store, job.store.latent_shape, Philox(job.seed)
    if not job.of_pixels:
        noise = None
        if store.kind == "moments":
            noise = streams.draws(Stream.LIKELIHOOD_POSTERIOR, items).normal(*shape)
        return store.batch(items, noise=noise)
    images = to_uint8(store.batch(items))  # exactly the images' bytes: float16 holds them all
    if job.ode is None:
        return to_signed(images.numpy())
    uniform = streams.draws(Stream.DEQUANTISATION, items).uniform(*shape)
    return dequantise(images.permute(0, 3, 1, 2), uniform)


def _figures(job: Job, nats: Tensor) -> list[dict[str, Any]]:
    """The figures, each with its standard error, of negative log-likelihoods nats (n, P).

    The error is that of the mean over the images. It includes the randomness of the probes and of
    the dequantisation, since both add to the differences between images.
    """
    size, image = math.prod(job.store.latent_shape), nats.mean(1)
    bits = bits_per_dim(image, size)
    rows = [("nats/image", image)]
    if job.ode is None:  # measured in bytes, or in bins as wide, already
        rows.append(("bits/dim", bits))
    else:
        rows.append(("bits/dim of the latent", bits))
        if job.of_pixels:
            rows.append(("bits/dim of the pixels", bits + GREY_BITS))
    return [
        dict(
            metric=name + job.method.label,
            value=float(values.mean()),
            std_error=float(values.std()) / math.sqrt(len(values)),
            num=len(values),
        )
        for name, values in rows
    ]


def _report(job: Job, nats: Tensor, evaluations: float) -> Result:
    figures, facts = _figures(job, nats), job.facts()
    facts |= dict(evaluations_per_image=evaluations)
    if job.ode is not None:
        passes = job.probes or math.prod(job.store.latent_shape)
        facts |= dict(backward_passes_per_evaluation=passes)
    if nats.shape[1] > 1:
        # The part of the error of nats/image that more probes could still remove.
        share = nats.var(1).mean() / nats.shape[1] / len(nats)
        facts |= dict(std_error_of_probes=float(share.sqrt()))
    document = {"format_version": FORMAT_VERSION, "sit_version": __version__, **facts}
    document |= dict(streams=NEW, figures=figures)
    document |= dict(items=job.items.tolist(), nats=nats.mean(1).tolist())
    try:
        write_json(job.out, document)
    except OSError as error:
        raise SitError(f"cannot write {job.out}: {error.strerror}") from None
    return Result(
        summary=_summary(job, facts),
        tables=[_table(job, figures, evaluations)],
        data=dict(facts, figures=figures),
        path=job.out,
    )


def _summary(job: Job, facts: dict[str, Any]) -> dict[str, str]:
    if job.ode is None:
        method = f"{count(job.steps, 'step')} of the chain: an upper bound"
        width = "" if job.of_pixels else ", in bins 2/255 wide"
    else:
        method = f"{job.ode.solver}"
        method += "" if job.ode.adaptive else f", {count(job.ode.steps, 'step')}"
        method, width = f"{method}; {facts['divergence']}", ""
    error = "standard error over the images" + (", the probes' within it" if job.probes else "")
    return {
        "method": f"{job.method.name}, {method}",
        "images": f"{job.read_as}{width}; labels {job.label_policy}",
        "±": error,
    }


def _table(job: Job, figures: list[dict[str, Any]], evaluations: float) -> Table:
    data = f"{job.store.path.name}{', training images' if job.trained_on else ''}"
    rows = []
    for figure in figures:
        value = f"{figure['value']:.5g} ± {figure['std_error']:.2g}"
        rows.append([figure["metric"], value, f"{figure['num']:,}", f"{evaluations:g}", data])
    header = ["negative log-likelihood", "value", "N", "evaluations an image", "data"]
    return Table(title="", header=header, rows=rows)
