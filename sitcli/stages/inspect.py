"""``sit inspect``: what an artefact is, whether it is whole, and what is in it."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch

from sitcli.core.wt import DEFAULT_ETA, WT, wt_of
from sitcli.errors import SitError, UsageError
from sitcli.events import Event, Progress, Result, Stage, Table, Warn
from sitcli.io import rows
from sitcli.io.autoencoder import decode_latents, from_spec, hash_arrays
from sitcli.io.checkpoint import FORMAT as CHECKPOINT_FORMAT
from sitcli.io.checkpoint import STEP_NAME, Checkpoint, RunDir, open_checkpoint
from sitcli.io.hub import local_path
from sitcli.io.latents import FORMAT as STORE_FORMAT
from sitcli.io.latents import LatentStore, ReadBack, encode_command
from sitcli.io.launch import resolve_device, resolve_precision
from sitcli.io.optimizer_state import MOMENTS, StateFiles
from sitcli.io.pictures import save_grid, save_loss_and_wt
from sitcli.io.samples import FILE as SAMPLES_FILE
from sitcli.io.samples import FORMAT as SAMPLES_FORMAT
from sitcli.io.samples import SampleSet
from sitcli.model.transformer import Transformer, TransformerConfig
from sitcli.settings import InspectSettings
from sitcli.text import first_line, format_bytes, format_shape

EXPECTED = (
    "sit inspect reads a latent store (*.h5), a run (runs/NAME), one of its steps (step-0010000) "
    "or a sample set (samples/NAME)"
)
READ_BYTES = 32_000_000
KEPT = ("latents", "noise")  # what a sample set may hold beside the images
PREVIEW_ROWS, PREVIEW_COLUMNS = 8, 8
PLOT_TIMES = [k / 200 for k in range(1, 200)]  # open at both ends, where some w_t are infinite
TABLE_TIMES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
SETTINGS_SHOWN = ("model", "steps", "batch_size", "lr", "ema", "zero", "precision", "seed")

Artefact = LatentStore | SampleSet | RunDir | Checkpoint
Problems = Generator[Event, None, list[str]]


def inspect(settings: InspectSettings) -> Stage:
    """Describe the artefact at `settings.path`; verify it, draw a preview or a plot if asked to.

    Raises SitError for what is not an artefact of ours, cannot be read, or fails --verify.
    """
    if settings.preview is None and settings.vae is not None:
        raise UsageError("--vae is for --preview", "leave it out, or add --preview grid.png")
    artefact = _open(settings.path)
    describe, verify, draw = FUNCTIONS[type(artefact)]
    if settings.preview is not None and draw is None:
        raise UsageError(
            f"{settings.path} holds weights, no pictures to preview", f"sit sample {settings.path}"
        )
    try:
        plotted = _checkpoint_to_plot(settings, artefact)
        result = describe(artefact)
        problems = (yield from verify(artefact)) if settings.verify else []
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(settings.path, error) from error
    if problems:
        raise SitError(f"{settings.path} is damaged: {'; '.join(problems)}")
    # What the others say in passing is this command's result: it belongs on stdout.
    facts = [[name, value] for name, value in result.summary.items()]
    result.tables.insert(0, Table(title=str(settings.path), header=["", ""], rows=facts))
    result.summary = {}
    result.data["verified"] = settings.verify
    if settings.verify:
        result.summary["verified"] = "everything was read back and is sound"
    if settings.preview is not None:
        _preview(settings, *draw(artefact, settings))
        result.path = settings.preview
        result.data["preview"] = str(settings.preview)
    if plotted is not None:
        if plotted.loss_curve is None:
            yield Warn(f"{plotted.path} has no measured loss: the plot lacks L_t and kl-eta")
        _plot(settings, plotted, result)
    return result


def _open(path: Path) -> Artefact:
    path = local_path(path)
    if not path.exists():
        raise SitError(f"there is no {path}", EXPECTED)
    try:
        return _open_folder(path) if path.is_dir() else _open_file(path)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, error) from error


def _open_file(path: Path) -> Artefact:
    if not h5py.is_hdf5(path):
        raise SitError(f"{path} is not a file of sit's", EXPECTED)
    kind = rows.Rows(path).attrs.get("format")
    if kind == STORE_FORMAT:
        return LatentStore.open(path, allow_incomplete=True)
    if kind == SAMPLES_FORMAT:
        return SampleSet.open(path)
    raise SitError(f"{path} is an HDF5 file, but not one that sit wrote", EXPECTED)


def _open_folder(path: Path) -> Artefact:
    if (path / SAMPLES_FILE).exists():
        return SampleSet.open(path)
    if (path / "model.safetensors").exists() or (path / "ema.safetensors").exists():
        if not (path / "meta.json").exists():
            raise SitError(f"{path} is a checkpoint whose saving was interrupted: no meta.json")
        return open_checkpoint(path)
    run = RunDir(path)
    if run.config.exists() or run.steps():
        return run
    meta = path / "meta.json"
    if meta.exists() and json.loads(meta.read_text()).get("format") == CHECKPOINT_FORMAT:
        return open_checkpoint(path)
    raise SitError(f"{path} is not a folder of sit's", EXPECTED)


def _damaged(path: Path, error: Exception) -> SitError:
    what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else str(error).split("\n")[0]
    return SitError(f"{path} is damaged: {what}")


def _describe_store(store: LatentStore) -> Result:
    attrs, spec = store.attrs, store.autoencoder
    num_rows, broken = store.rows.num_rows, store.broken()
    missing = store.num_missing()
    counts = _counts(store.labels, store.num_classes)
    size = store.path.stat().st_size
    images = f"{store.num_items}" if not missing else f"{store.num_items} of {num_rows} encoded"
    images += ", and their mirror images" if store.has_flips else ""
    images += f"; {len(broken)} broken: {_some([name for name, _ in broken])}" if broken else ""
    parts = "mean and std" if store.kind == "moments" else "deterministic"
    statistics = f"mean {_some(store.mean, '.3g')}, std {_some(store.std, '.3g')}"
    summary = {
        "kind": f"latent store, format {attrs['format_version']}, by sit {attrs['sit_version']}",
        "complete": "yes" if store.complete else "no",
        "images": images,
        "classes": _describe_classes(store.class_names, counts),
        "latents": f"{format_shape(store.latent_shape)} float16, {parts}",
        "scaled by": f"{_some(np.ravel(store.scaling), '.5g')}: "
        + (statistics if store.complete else "statistics follow when it is complete"),
        "autoencoder": f"{spec['name']} ({spec['class']}, {spec['hash'][:12]})",
        "pictures": f"{store.image_size} x {store.image_size} pixels, crop {store.crop}",
        "source": f"{store.source} ({attrs['source_fingerprint'][:12]})",
        "encoded in": f"{attrs['precision']}, batches of {attrs['batch_size']}",
        "size": format_bytes(size),
    }
    if store.complete:
        summary["checksum"] = attrs["checksum"]
    data = {
        "kind": "latent store",
        "path": str(store.path),
        **{name: attrs[name] for name in ("format_version", "sit_version", "complete")},
        "num_items": store.num_items,
        "num_rows": num_rows,
        "num_missing": missing,
        "broken": [{"name": name, "reason": reason} for name, reason in broken],
        "num_classes": store.num_classes,
        "class_names": store.class_names,
        "class_counts": counts.tolist(),
        "latent_shape": list(store.latent_shape),
        "latent_kind": store.kind,
        **{name: attrs[name] for name in ("flips", "image_size", "crop", "scaling", "mean", "std")},
        "autoencoder": spec,
        **{name: attrs[name] for name in ("source", "source_fingerprint", "fingerprint")},
        **{name: attrs[name] for name in ("batch_size", "precision", "checksum")},
        "bytes": size,
    }
    following = f"sit train --latents {quote(str(store.path))}"
    if not store.complete:
        following = encode_command(attrs, store.path)
    return Result(summary=summary, data=data, next=following)


def _counts(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class; labels that are none of them, or of no classes at all, are left out."""
    most = num_classes or 1
    return np.bincount(labels[(labels >= 0) & (labels < most)], minlength=num_classes)


def _verify_store(store: LatentStore) -> Problems:
    problems = _check_flags(store.rows.written, complete=store.complete)
    reading = ReadBack(store)
    for done in reading:
        yield Progress(done=done, total=store.rows.num_rows)
    if reading.damaged:
        damaged = store.rows.texts("paths", sorted(reading.damaged))
        problems.append(f"{len(damaged)} images have other latents than were written: ")
        problems[-1] += _some(damaged)
    if not np.isfinite([reading.mean, reading.std]).all():
        problems.append("some latents are not finite")
    problems += _check_labels(store.labels, store.num_classes)
    problems += _check_arrays(store.autoencoder, store.autoencoder_arrays)
    if store.complete and reading.checksum != store.attrs["checksum"]:
        problems.append("the latents or labels do not have the checksum they were completed with")
    return problems


def _draw_store(
    store: LatentStore, settings: InspectSettings
) -> tuple[np.ndarray, int, list[str] | None]:
    chosen, columns, labels = _choose(store.labels, store.class_names)
    device = resolve_device(settings.device)
    autoencoder = from_spec(
        store.autoencoder,
        store.autoencoder_arrays,
        override=settings.vae,
        device=device,
        dtype=resolve_precision("auto", device),
    )
    images = decode_latents(autoencoder, store.batch(chosen), store.scaling)
    return images.numpy(), columns, labels


def _describe_samples(samples: SampleSet) -> Result:
    attrs, meta = samples.rows.attrs, samples.meta
    done = int(samples.done.sum())
    pictures, shape = "latents alone", None
    if samples.images is not None:
        shape = list(samples.images.shape[1:])
        pictures = f"{shape[1]} x {shape[0]} pixels"
    names = list(meta.get("class_names") or [])
    counts = _counts(samples.labels[samples.done], len(names))
    size = _bytes_below(samples.directory if _owns_folder(samples) else samples.path)
    kept = "".join(f", {name} kept" for name in KEPT if name in samples.rows.names)
    summary = {
        "kind": f"sample set, format {attrs['format_version']}, by sit {attrs['sit_version']}",
        "complete": "yes" if samples.complete else "no",
        "images": (f"{done}" if samples.complete else f"{done} of {samples.num} drawn")
        + f", {pictures}{kept}",
        "classes": _describe_classes(names, counts)
        if names or not samples.labels.any()
        else f"numbers up to {samples.labels.max()}, without names",
    }
    # What the sampler recorded, as it recorded it: one short value a line.
    for name, value in meta.items():
        if isinstance(value, (str, int, float)) and value != "":
            summary.setdefault(name.replace("_", " "), str(value))
    summary["size"] = format_bytes(size)
    data = {
        "kind": "sample set",
        "path": str(samples.path),
        **{name: attrs[name] for name in ("format_version", "sit_version", "complete")},
        "num": samples.num,
        "num_done": done,
        "image_shape": shape,
        **{name: name in samples.rows.names for name in KEPT},
        "class_counts": counts.tolist(),
        "meta": meta,
        "bytes": size,
    }
    target = samples.directory if _owns_folder(samples) else samples.path
    following = f"sit evaluate {quote(str(target))}" if samples.images is not None else ""
    if not samples.complete:
        following = "the `sit sample` command that began it"
    return Result(summary=summary, data=data, next=following)


def _verify_samples(samples: SampleSet) -> Problems:
    written = samples.rows.written
    problems = _check_flags(written, complete=samples.complete)
    blank = 0
    for start, stop in _pieces(samples.images) if samples.images is not None else ():
        one_colour = np.ptp(samples.images[start:stop], axis=(1, 2)).max(axis=-1) == 0
        blank += int((one_colour & (written[start:stop] == rows.DONE)).sum())
        yield Progress(done=stop, total=samples.num, unit="images")
    if blank:
        yield Warn(f"{blank} images are of one colour")
    for name in sorted(set(KEPT) & set(samples.rows.names)):
        if not np.isfinite(samples.rows.array(name)[samples.done]).all():
            problems.append(f"some {name} {'is' if name == 'noise' else 'are'} not finite")
    num_classes = len(samples.meta.get("class_names") or []) or 1
    problems += _check_labels(samples.labels, num_classes)
    if samples.complete:
        meta = samples.beside("meta.json")
        try:
            if json.loads(meta.read_text()) != samples.meta:
                problems.append(f"{meta.name} differs from what samples.h5 says")
        except FileNotFoundError:
            problems.append(f"{meta.name} is missing")
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{meta.name} cannot be read: {first_line(error)}")
    return problems


def _draw_samples(
    samples: SampleSet, settings: InspectSettings
) -> tuple[np.ndarray, int, list[str] | None]:
    if samples.images is None:
        raise UsageError(f"{samples.path} holds latents only, no pictures", "leave out --preview")
    done = np.flatnonzero(samples.done)
    names = list(samples.meta.get("class_names") or [])
    chosen, columns, labels = _choose(samples.labels[done], names)
    return np.array(samples.images[done[chosen]]), columns, labels


def _owns_folder(samples: SampleSet) -> bool:
    return samples.path.name == SAMPLES_FILE


def _describe_run(run: RunDir) -> Result:
    steps, partial = run.steps(), [path.name for path in run.partial()]
    size = _bytes_below(run.path)
    summary = {"kind": "run", "checkpoints": _some(steps) if steps else "none"}
    data: dict[str, Any] = {"kind": "run", "path": str(run.path), "steps": steps}
    if steps:
        newest = _describe_checkpoint(open_checkpoint(run.path))
        summary |= {k: v for k, v in newest.summary.items() if k not in ("kind", "size")}
        data["newest"] = newest.data
    config = _read_config(run)
    shown = [f"{k} {config[k]}" for k in SETTINGS_SHOWN if config.get(k) is not None]
    if shown:
        summary["settings"] = ", ".join(shown)
    metrics = run.read_metrics()
    if metrics:
        shown = {k: v for k, v in metrics[-1].items() if k != "time"}
        pairs = [(k, v) for k, v in shown.items() if isinstance(v, (int, float))]
        summary["last logged"] = ", ".join(f"{k.replace('_', ' ')} {v:.6g}" for k, v in pairs)
    if partial:
        summary["interrupted"] = f"{_some(partial)}: not counted, and removed when training goes on"
    summary["size"] = format_bytes(size)
    data |= {"interrupted": partial, "config": config, "bytes": size}
    data["last_metrics"] = metrics[-1] if metrics else None
    result = Result(summary=summary, data=data, next=f"sit sample {quote(str(run.path))}")
    if steps:
        result.tables.append(_steps_table(run, metrics))
    else:
        result.next = f"sit train --out {quote(str(run.path))}"
    return result


def _steps_table(run: RunDir, metrics: Sequence[dict[str, Any]]) -> Table:
    losses = {entry["step"]: entry.get("loss") for entry in metrics if "step" in entry}
    lines = []
    for step in run.steps():
        loss = losses.get(step)
        size = format_bytes(_bytes_below(run.step_path(step)))
        lines.append([str(step), "-" if loss is None else f"{loss:.5f}", size])
    return Table(title="Checkpoints", header=["step", "loss", "size"], rows=lines)


def _read_config(run: RunDir) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(run.config.read_text()) if run.config.exists() else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        raise SitError(f"{run.path} is damaged: config.yaml is not readable") from None
    # Written as `--config` reads it: a section per command.
    return config.get("train", config) or {}


def _verify_run(run: RunDir) -> Problems:
    problems = []
    steps = run.steps()
    for number, step in enumerate(steps, start=1):
        found = yield from _verify_checkpoint(open_checkpoint(run.step_path(step)))
        problems += [f"step {step}: {problem}" for problem in found]
        yield Progress(done=number, total=len(steps), unit="checkpoints")
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    # A kill can cut the last line short; the next run forgets it.
    damaged = len(lines) - len(run.read_metrics())
    if damaged > 1:
        problems.append(f"{damaged} lines of metrics.jsonl are not JSON")
    return problems


def _describe_checkpoint(checkpoint: Checkpoint) -> Result:
    meta, config = checkpoint.meta, checkpoint.config
    process, latents = checkpoint.process, checkpoint.latents
    spec = latents["autoencoder"]
    with torch.device("meta"):
        params = sum(p.numel() for p in Transformer(config).parameters())
    size = _bytes_below(checkpoint.path)
    num_classes = config.num_classes
    design = "" if config.block == TransformerConfig.block else f"{config.block} "
    summary = {
        "kind": f"checkpoint, format {meta['format_version']}, by sit {meta['sit_version']}",
        "step": str(checkpoint.step),
        "network": f"{config.depth} {design}blocks of width {config.width}, {config.heads} heads, "
        f"patch {config.patch}: {params / 1e6:.4g} M parameters",
        "latents": format_shape(config.latent_shape) + _origin(latents),
        "classes": (_some(latents["class_names"]) or f"{num_classes}, without names")
        if num_classes
        else "none",
        "process": process.describe(),
        "autoencoder": f"{spec['name']} ({spec['class']}, {(spec['hash'] or 'unseen')[:12]})",
        "size": format_bytes(size),
    }
    if config.beyond or config.aux_block:
        head = [f"a second head after block {config.aux_block}"] if config.aux_block else []
        summary["beyond the papers"] = ", ".join([*config.beyond, *head])
    if "power_ema" in meta:
        made = meta["power_ema"]
        summary["average"] = f"power function, std {made['std']:g}, of {made['run']}"
    if "lineage" in meta:
        summary["imported"] = f"{meta['lineage']}, from {meta['weights_source']['path']}"
    data = {
        "kind": "checkpoint",
        "path": str(checkpoint.path),
        "step": checkpoint.step,
        "params": params,
        "files": {p.name: p.lstat().st_size for p in sorted(checkpoint.path.glob("*.*"))},
        "meta": meta,
        "bytes": size,
    }
    return Result(summary=summary, data=data, next=f"sit sample {quote(str(checkpoint.path))}")


def _origin(latents: dict[str, Any]) -> str:
    """The store the latents were read from; imported weights know none."""
    if latents["store"] is None:
        return ""
    return f" of {latents['store']} ({latents['num_items']} images)"


def _verify_checkpoint(checkpoint: Checkpoint) -> Problems:
    problems = []
    with torch.device("meta"):
        expected = {k: v.shape for k, v in Transformer(checkpoint.config).state_dict().items()}
    kinds = checkpoint.kinds
    for done, which in enumerate(kinds, start=1):
        weights = checkpoint.weights(which)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        wrong = sorted(k for k in {*shapes, *expected} if shapes.get(k) != expected.get(k))
        if wrong:
            problems.append(f"{which}.safetensors does not fit the network: {_some(wrong)}")
        bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
        if bad:
            problems.append(f"{which}.safetensors is not finite: {_some(bad)}")
        yield Progress(done=done, total=len(kinds), unit="files")
    problems += _check_moments(checkpoint)
    arrays = checkpoint.autoencoder_arrays()
    return problems + _check_arrays(checkpoint.latents["autoencoder"], arrays)


def _check_moments(checkpoint: Checkpoint) -> list[str]:
    """What keeps training from going on with the optimizer's moments."""
    with torch.device("meta"):
        network = Transformer(checkpoint.config)
    state = checkpoint.path / "state"
    if checkpoint.meta["format_version"] < 2 or not checkpoint.trainable or not state.exists():
        return []  # DeepSpeed's own files, which this version does not read; or weights alone
    try:
        with contextlib.ExitStack() as stack:
            files = StateFiles(checkpoint.path, stack)
            wrong = [
                name
                for name, parameter in network.named_parameters()
                for moment in MOMENTS
                if not torch.isfinite(files.read(moment, name, 0, parameter.numel())).all()
            ]
    except SitError as error:
        return [error.message]
    return [f"the optimizer's moments are not finite: {_some(wrong)}"] if wrong else []


FUNCTIONS: dict[type, tuple[Callable, Callable, Callable | None]] = {
    LatentStore: (_describe_store, _verify_store, _draw_store),
    SampleSet: (_describe_samples, _verify_samples, _draw_samples),
    RunDir: (_describe_run, _verify_run, None),
    Checkpoint: (_describe_checkpoint, _verify_checkpoint, None),
}


def _preview(
    settings: InspectSettings, images: np.ndarray, columns: int, labels: list[str] | None
) -> None:
    try:
        save_grid(settings.preview, images, columns=columns, row_labels=labels)
    except OSError as error:
        raise SitError(f"cannot write {settings.preview}: {error.strerror or error}") from None


class Curves(NamedTuple):
    """The velocity loss and every w_t of a checkpoint, as numbers.

    loss, means, counts and kl_eta_end are empty or None where no loss was measured. means: of the
    equal bins of t that training measured, None where it never drew a time; loss: as `LossCurve`
    reads them at t; kl_eta_end: kl-eta at t = 1.
    """

    t: list[float]
    loss: list[float]
    wt: dict[str, list[float]]
    means: list[float | None]
    counts: list[float]
    kl_eta_end: float | None


def curves_of(checkpoint: Checkpoint, times: Sequence[float], *, eta: float) -> Curves:
    """L_t and w_t (SiT Table 2) at times in (0, 1). ValueError unless eta is positive."""
    process, curve = checkpoint.process, checkpoint.loss_curve
    t = torch.tensor(times, dtype=torch.float64)

    def w(name: str, t: torch.Tensor) -> list[float]:
        w_t = wt_of(name, eta=eta, loss_curve=curve)
        return w_t(t, process.path(t, t)).tolist()

    wt = {name: w(name, t) for name in WT if curve is not None or name != "kl-eta"}
    if curve is None:
        return Curves(times, [], wt, [], [], None)
    bins = checkpoint.meta["loss_by_t"]
    pairs = list(zip(bins["sums"], bins["counts"], strict=True))
    return Curves(
        t=list(times),
        loss=curve(t).tolist(),
        wt=wt,
        means=[total / count if count else None for total, count in pairs],
        counts=[count for _, count in pairs],
        kl_eta_end=w("kl-eta", torch.ones(1, dtype=torch.float64))[0],
    )


def _checkpoint_to_plot(settings: InspectSettings, artefact: Artefact) -> Checkpoint | None:
    """What --plot draws. UsageError for what has no loss or w_t, and for an --eta without use."""
    if not settings.plot:
        if settings.eta is not None:
            raise UsageError("--eta is of the plot's kl-eta", "add --plot")
        return None
    if not isinstance(artefact, (RunDir, Checkpoint)):
        raise UsageError(
            f"{settings.path} is no run or step: it has no loss over t to plot",
            "sit inspect runs/NAME --plot",
        )
    checkpoint = open_checkpoint(artefact.path)
    curve = checkpoint.loss_curve
    if settings.eta is not None:
        if not 0 < settings.eta < math.inf:
            raise UsageError(
                f"--eta {settings.eta:g}: eta must be positive and finite", "--eta 0.1"
            )
        if curve is None:
            raise UsageError(f"--eta: {checkpoint.path} has no measured loss for kl-eta", "omit it")
    return checkpoint


def _plot(settings: InspectSettings, checkpoint: Checkpoint, result: Result) -> None:
    eta = DEFAULT_ETA if settings.eta is None else settings.eta
    curves = curves_of(checkpoint, PLOT_TIMES, eta=eta)
    process, folder = checkpoint.process, checkpoint.path.resolve()
    picture = checkpoint.path.parent / f"w_t-{checkpoint.path.name}.png"
    name = folder.parent.name if STEP_NAME.fullmatch(folder.name) else folder.name
    facts = {
        "step": checkpoint.step,
        "interpolant": process.interpolant,
        "prediction": process.prediction,
    }
    title = f"{name}, step {checkpoint.step}: {facts['interpolant']} interpolant, "
    title += f"{process.prediction} prediction"
    save_loss_and_wt(picture, title=title, eta=eta, **curves._asdict())
    result.tables.append(_curves_table(curves_of(checkpoint, TABLE_TIMES, eta=eta), eta))
    result.path = picture
    result.data["plot"] = str(picture)
    result.data["curves"] = facts | {"eta": eta if curves.loss else None} | curves._asdict()


def _curves_table(curves: Curves, eta: float) -> Table:
    columns = {"t": curves.t} | ({"L_t": curves.loss} if curves.loss else {}) | curves.wt
    title = "Velocity loss L_t and " if curves.loss else ""
    title += "w_t over t (t = 0 is data)"
    title += f"; kl-eta at eta {eta:g}" if curves.loss else ""
    lines = [[f"{value:.4g}" for value in line] for line in zip(*columns.values(), strict=True)]
    return Table(title=title, header=list(columns), rows=lines)


def _choose(labels: np.ndarray, names: list[str]) -> tuple[np.ndarray, int, list[str] | None]:
    """Which items make up the preview: (indices, columns, labels of the rows).

    A row per class, spread over the classes, where each has at least two items; otherwise items
    spread over all, without labels.
    """
    if not len(labels):
        raise SitError("there is nothing to preview yet: no image is finished")
    classes = np.unique(labels)
    classes = classes[_spread(len(classes), PREVIEW_ROWS)]
    members = [np.flatnonzero(labels == label) for label in classes]
    columns = min(PREVIEW_COLUMNS, *map(len, members), len(labels))
    if names and columns > 1:
        chosen = [m[_spread(len(m), columns)] for m in members]
        return np.concatenate(chosen), columns, [names[label] for label in classes]
    chosen = _spread(len(labels), PREVIEW_ROWS * PREVIEW_COLUMNS)
    return chosen, min(PREVIEW_COLUMNS, math.isqrt(len(chosen) - 1) + 1), None


def _spread(total: int, count: int) -> np.ndarray:
    """`count` numbers of range(total), evenly spread; all of them if there are no more."""
    return np.arange(min(total, count)) * total // min(total, count)


def _pieces(array: np.ndarray) -> list[tuple[int, int]]:
    """Row ranges of about READ_BYTES each."""
    step = max(1, READ_BYTES // max(1, array[:1].nbytes))
    return [(start, min(len(array), start + step)) for start in range(0, len(array), step)]


def _check_flags(written: np.ndarray, *, complete: bool) -> list[str]:
    problems = []
    if not np.isin(written, (rows.MISSING, rows.DONE, rows.BROKEN)).all():
        problems.append("the written flags hold values that sit never writes")
    if complete and (written == rows.MISSING).any():
        missing = int((written == rows.MISSING).sum())
        problems.append(f"it is marked complete, but {missing} rows were not written")
    return problems


def _check_arrays(spec: dict[str, Any], arrays: dict[str, np.ndarray]) -> list[str]:
    if spec["kind"] == "patch-pca" and hash_arrays(arrays) != spec["hash"]:
        return ["the autoencoder's basis does not have the hash of its spec"]
    return []


def _check_labels(labels: np.ndarray, num_classes: int) -> list[str]:
    if len(labels) and not 0 <= labels.min() <= labels.max() < max(1, num_classes):
        return [f"labels run from {labels.min()} to {labels.max()}, of {num_classes} classes"]
    return []


def _describe_classes(names: Sequence[str], counts: np.ndarray) -> str:
    if not len(names):
        return "none (unconditional)"
    low, high = counts.min(), counts.max()
    each = f"{low} to {high}" if low < high else f"{low}"
    return f"{len(names)} of {each} images: {_some(names)}"


def _some(values: Sequence[Any], form: str = "") -> str:
    """The first few and the last: 'a, b, c, ... z'."""
    texts = [format(value, form) for value in values]
    return ", ".join(texts if len(texts) <= 8 else [*texts[:6], f"... {texts[-1]}"])


def _bytes_below(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
