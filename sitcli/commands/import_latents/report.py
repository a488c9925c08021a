"""The report of `sit import-latents`."""

from __future__ import annotations

from typing import Any

from sitcli.commands.encode.report import train_command
from sitcli.commands.import_latents.job import Job
from sitcli.events import Result
from sitcli.latents.store import LatentStore
from sitcli.text import count, format_bytes, format_shape


def describe(job: Job) -> str:
    """The source, for people."""
    source = job.source
    classes = count(source.num_classes, "class", "classes") if source.num_classes else "no classes"
    what = "mean and std of the posterior" if source.moments else "latents"
    return (
        f"{source.path}: {source.layout}, {len(source)} images, {classes}, "
        f"{format_shape(source.row_shape)} {what}" + (", scaled" if job.given else "")
    )


def summary_of(job: Job) -> tuple[dict[str, str], dict[str, Any]]:
    """(summary, data) that a plan and a result share."""
    source, spec = job.source, job.spec
    scaling = "each channel to mean 0 and std 1" if job.normalize else str(job.scaling)
    summary = {
        "source": describe(job),
        "labels": source.labels_from,
        "scaling": scaling,
        "autoencoder": f"{spec['name']}, images of {job.image_size} pixels",
    }
    data = {
        "layout": source.layout,
        "images": len(source),
        "num_classes": source.num_classes,
        "labels_from": source.labels_from,
        "row_shape": list(source.row_shape),
        "kind": "moments" if source.moments else "latents",
        "flips": len(source.reads) > 1,
        "scaled_before": job.given is not None,
        "image_size": job.image_size,
        "autoencoder": spec,
        "notes": job.notes,
        "warnings": job.warnings,
    }
    return summary, data


def result_of(job: Job, *, pace: float | None = None) -> Result:
    """The result of a complete store; pace: bytes of it written per second."""
    store = LatentStore.open(job.settings.out)
    summary, data = summary_of(job)
    size = store.path.stat().st_size
    summary["scaling"] = str(store.scaling)
    summary["as trained on"] = (
        f"mean {min(store.mean):.3g} to {max(store.mean):.3g}, standard deviation "
        f"{min(store.std):.3g} to {max(store.std):.3g} over the channels"
    )
    summary["size"] = format_bytes(size)
    if pace:
        summary["pace"] = f"{format_bytes(pace)}/s"
    data |= store.scaling.facts(store.autoencoder) | {
        "mean": store.mean,
        "std": store.std,
        "bytes": size,
        "checksum": store.written_checksum,
        "bytes_per_second": pace,
    }
    return Result(summary=summary, data=data, path=store.path, next=train_command(store.path))
