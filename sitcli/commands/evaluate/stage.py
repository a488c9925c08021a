"""``sit evaluate``: how far samples are from real images.

Every figure comes with that of real images: as many of the reference's, against its others.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from sitcli.commands.evaluate.job import (
    Job,
    device_for,
    load_extractors,
    metrics_path,
    named_sets,
    prepare,
    widths_of,
)
from sitcli.commands.evaluate.record import (
    features_record,
    figure_record,
    interval_of,
    write_metrics,
)
from sitcli.commands.evaluate.reference import by_layer_name, measure_reference
from sitcli.commands.evaluate.report import report_of, warnings_for
from sitcli.commands.evaluate.sides import describe_images
from sitcli.events import Event, Note, Progress, Result, Stage, Warn
from sitcli.features.collect import Count, collect
from sitcli.images.sets import ImageSet
from sitcli.machine.devices import tune_cpu
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.ranks import all_agree, on_rank_0, process_group, watching_peers
from sitcli.machine.world import planned_size, world_for
from sitcli.metrics.metric import Evidence
from sitcli.metrics.table import METRICS
from sitcli.settings.evaluate import EvaluateSettings


def evaluate(settings: EvaluateSettings) -> Stage:
    """Compare sample sets with a reference and write metrics.json beside each.

    Each process extracts its share of the features; rank 0 computes the figures.
    Raises UsageError for metrics that the features cannot give, SitError for images that cannot be
    read or compared.
    """
    quiet_libraries()
    world = world_for(gpus=settings.gpus, procs=settings.procs)
    with process_group(world):
        # Another sample set may be completed while we look: one rank decides for all.
        paths = on_rank_0(world, lambda: named_sets(settings))
        job = all_agree(world, lambda: prepare(settings, paths))
        for samples in job.sets:
            yield Note(f"samples: {describe_images(samples, samples.num)}")
        if job.reference is not None:
            yield Note(f"reference: {job.reference.text}")
        for text in warnings_for(job):
            yield Warn(text)
        device = all_agree(world, lambda: device_for(settings))
        tune_cpu(device)
        extractors = all_agree(world, lambda: load_extractors(job, device))
        widths = all_agree(world, lambda: widths_of(job, extractors))
        with watching_peers(world) as check_peers:
            shared = dict(
                summed=[job.layers[METRICS[m].layer] for m in job.metrics if METRICS[m].frechet],
                extractors=extractors,
                world=world,
                check_peers=check_peers,
                batch_size=settings.batch_size,
            )
            real, count = yield from measure_reference(job, settings, widths, world, shared)
            fakes = []
            for samples in job.sets:
                parts = np.zeros(samples.num, np.uint8)
                indices = np.arange(samples.num)
                fake = yield from collect(samples, indices, parts, widths, count=count, **shared)
                fakes.append(fake)
    if world.rank:
        return Result()
    results = []
    for samples, fake in zip(job.sets, fakes, strict=True):
        evidence = Evidence(
            fake=by_layer_name(job, fake),
            real=by_layer_name(job, real.collected),
            targets=real.targets(job, samples.num),
            stand_ins=real.stand_ins(samples.num),
            logits=extractors[job.layers["pool"].features].logits,
            seed=settings.seed,
            random_order=samples.random_order,
            splits=settings.isc_splits,
        )
        figures = yield from _figures(job, settings, samples, evidence, count)
        write_metrics(samples, figures)
        results.append(figures)
    return report_of(job, settings, results)


def _figures(
    job: Job, settings: EvaluateSettings, samples: ImageSet, evidence: Evidence, count: Count
) -> Generator[Event, None, list[dict[str, Any]]]:
    """Every figure of one sample set, as an entry of metrics.json."""
    figures = []
    for metric in job.metrics:
        yield Progress(done=count.total, total=count.total, text=f"computing {metric}")
        for measured in METRICS[metric].measure(evidence):
            interval = yield from interval_of(measured, settings, count)
            figures.append(figure_record(job, samples, metric, measured, interval))
    return figures


def plan(settings: EvaluateSettings) -> Result:
    """What `evaluate` would do, for --dry-run; opens what it would read, writes nothing."""
    job = prepare(settings, named_sets(settings))
    device_for(settings)
    reference = job.reference
    num_reference = len(reference.indices) if reference is not None else 0
    num = sum(samples.num for samples in job.sets)
    outs = [metrics_path(samples) for samples in job.sets]
    processes = planned_size(gpus=settings.gpus, procs=settings.procs)
    summary = {
        "metrics": ", ".join(job.metrics),
        "samples": "; ".join(describe_images(samples, samples.num) for samples in job.sets),
        "reference": reference.text if reference is not None else "none",
        "features": ", ".join(job.tags()),
        "extractor": f"{num + num_reference:,} images at most; kept features are used again",
        "processes": str(processes),
        "would write": f"{', '.join(map(str, outs))}, and features in "
        + ", ".join(str(samples.stats_folder) for samples in job.sets),
    }
    data = {
        "dry_run": True,
        "metrics": list(job.metrics),
        "samples": [{"path": str(s.path), "num": s.num} for s in job.sets],
        "reference": reference and {"path": str(reference.path), "num": num_reference},
        "features": [features_record(layer.features) for layer in job.layers.values()],
        "processes": processes,
        "out": [str(out) for out in outs],
    }
    return Result(summary=summary, data=data)
