"""``sit import``: turns published weights into a run that every other command reads."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress, Result, Stage, Warn
from sitcli.images.class_names import names_of_weights, titles
from sitcli.latents.scaling import Scaling
from sitcli.latents.statistics import STATISTICS, read_statistics
from sitcli.machine.quiet import quiet_libraries
from sitcli.model.config import TransformerConfig, parse_model
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.meta import checkpoint_meta, unseen_latent_facts
from sitcli.runs.run_dir import RunDir, step_name
from sitcli.settings.weights import ImportSettings
from sitcli.storage.files import hash_file, make_folder
from sitcli.storage.hub import local_path
from sitcli.storage.tensors import write_tensors
from sitcli.weights.foreign import check_foreign
from sitcli.weights.latent_space import (
    autoencoder_of,
    is_sd_vae,
    own_statistics,
)
from sitcli.weights.lightningdit import rope_heads
from sitcli.weights.lineages import LINEAGES, Clues, Lineage, recognise
from sitcli.weights.official import (
    BATCH_NORM,
    check_tensors,
    config_of,
    learns_sigma,
    model_name,
    official_keys,
    to_float32,
)
from sitcli.weights.positions import image_size_of, settle_positions
from sitcli.weights.read import Found, only_file, read_source
from sitcli.weights.sidecar import with_sidecar
from sitcli.weights.stated import (
    Evidence,
    check_args,
    stated,
    stated_image_size,
    stated_label_dropout,
)

ASIDE = "set-aside.safetensors"


def import_weights(settings: ImportSettings) -> Stage:
    """Read a file or folder of weights and write OUT_DIR with one checkpoint of them.

    Raises UsageError if it cannot tell whose weights they are, SitError for a file that is damaged
    or holds something else. OUT_DIR is not written then.
    """
    quiet_libraries()
    job = _prepare(settings)
    for text in job.notes:
        yield Note(text)
    for text in job.warnings:
        yield Warn(text)
    yield Progress(done=0, total=len(job.states), unit="files")
    return _result(job, Checkpoint(_write(job), job.meta))


def plan(settings: ImportSettings) -> Result:
    """What `import_weights` would do, for --dry-run; reads the weights, writes nothing."""
    quiet_libraries()
    job = _prepare(settings)
    step = job.run.step_path(job.step)
    result = _result(job, Checkpoint(step, job.meta))
    result.summary["would write"] = str(step)
    result.data["dry_run"] = True
    result.path, result.next = None, "the same command without --dry-run"
    return result


def described(weights: Path, *, model: str | None) -> _Job:
    """The weights that `sit import` would write for this file or folder, and their meta.json.

    model: as --model.

    Raises SitError or UsageError as `import_weights` does.
    """
    quiet_libraries()
    return _described(ImportSettings(weights=weights, out_dir=Path(), model=model), RunDir(Path()))


def _prepare(settings: ImportSettings) -> _Job:
    return _described(settings, _empty_run(settings))


def _described(settings: ImportSettings, run: RunDir) -> _Job:
    found = read_source(only_file(local_path(settings.weights)))
    if settings.ignore_args:
        _drop_args(found)
    given = [flag for flag in _given(settings) if flag != "--class-names"]
    found, note = (found, "") if given or found.meta or found.args else with_sidecar(found)
    job = _Job(run=run, found=found, notes=[note] if note else [])
    if found.meta is not None:
        return _as_exported(job, settings)
    for which, state in found.states.items():
        job.states[which], aside = official_keys(state)
        job.aside |= aside
    job.statistics = {k: job.aside.pop(k) for k in list(job.aside) if k.startswith(BATCH_NORM)}
    if job.aside:
        job.notes.append(f"set aside in {ASIDE}: {len(job.aside)} tensors of REPA's projectors")
    if found.has_optimizer:
        job.notes.append("the optimizer's state is not imported: sit does not train it further")
    if others := to_float32(job.states.values()):
        job.notes.append(f"converted from {', '.join(others)} to float32")
    first = next(iter(job.states.values()))
    check_foreign(found.path, first)
    lineage, why = recognise(
        Clues(
            name=found.path.name,
            keys=[*first, *job.aside, *job.statistics],
            args=found.args,
            learned_sigma=learns_sigma(first),
        ),
        lineage=settings.lineage or found.lineage,
        why="--lineage" if settings.lineage else "its folder",
        model=settings.model,
    )
    row = LINEAGES[lineage]
    patches = first.get("x_embedder.proj.weight")
    spec, job.arrays = autoencoder_of(
        found.path,
        settings.vae or (found.vae and str(found.vae)),
        channels=patches.shape[1] if patches is not None and patches.ndim == 4 else 4,
        usual=row.vaes,
    )
    config = _config(job, lineage, spec, settings)
    job.step = found.step
    job.summary = {"lineage": f"{row.title} ({why})"}
    job.meta = _meta(job, lineage, config, spec, settings)
    return job


def _config(
    job: _Job, lineage: str, spec: dict[str, Any], settings: ImportSettings
) -> TransformerConfig:
    """The network's configuration, after checking the tensors, the positions and the arguments."""
    found = job.found
    heads = settings.heads or found.heads or stated(found.args, "num_heads", int)
    for which, given in job.states.items():
        state = job.states[which] = LINEAGES[lineage].translate(found.path, given)
        turned = rope_heads(given) if state.keys() != given.keys() else None
        image_size = image_size_of(state, spec["downsample"])
        notes, warnings = settle_positions(
            found.path,
            state,
            image_size=settings.image_size,
            stated=stated_image_size(found.args),
            downsample=spec["downsample"],
        )
        job.notes += [note for note in notes if note not in job.notes]
        job.warnings += [text for text in warnings if text not in job.warnings]
        config = config_of(
            found.path,
            state,
            heads=heads or turned,
            model=settings.model,
            unseen=found.unseen | ({"rope": True} if turned else {}),
        )
        check_args(
            found.path,
            found.args,
            Evidence(
                config=config,
                lineage=lineage,
                keys=list(state),
                image_size=image_size,
                options=_given(settings),
                sd_vae=is_sd_vae(spec),
            ),
        )
    return config


def _drop_args(found: Found) -> None:
    if found.args is None:
        raise UsageError(
            f"--ignore-args has no effect: {found.path} holds no arguments of a trainer",
            "remove --ignore-args",
        )
    found.args = None


def _empty_run(settings: ImportSettings) -> RunDir:
    """The run directory to write. Raises UsageError if it is in use, or for a wrong --model."""
    run = RunDir(settings.out_dir)
    if run.config.exists() or run.steps():
        raise UsageError(f"{run.path} is a run already", "name another OUT_DIR")
    if run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise UsageError(f"{run.path} exists already", "name another OUT_DIR")
    if settings.model is not None:
        try:
            parse_model(settings.model)
        except ValueError as error:
            raise UsageError(f"--model: {error}", "e.g. --model SiT-XL/2") from None
    return run


def _meta(
    job: _Job,
    lineage: str,
    config: TransformerConfig,
    spec: dict[str, Any],
    settings: ImportSettings,
) -> dict[str, Any]:
    row, found = LINEAGES[lineage], job.found
    process = row.process(config, found.args, settings.interpolant, settings.prediction)
    return checkpoint_meta(
        config,
        found.process or process,
        time_convention=row.time_convention,
        model=model_name(row.family, config),
        ema=0.9999 if "ema" in job.states and row.has_ema else None,
        label_dropout=stated_label_dropout(found.args) if config.num_classes else None,
        guided_channels=row.guided_channels,
        lineage=lineage,
        weights_source=_source(found),
        loss_by_t=dict(sums=[], counts=[]),  # nobody measured it
        latents=unseen_latent_facts(
            config,
            spec,
            _class_names(job, found.class_names, config.num_classes, settings),
            scaling=_scaling(job, row, settings.latent_stats, spec["latent_channels"]),
        ),
    )


def _given(settings: ImportSettings) -> dict[str, Any]:
    """The options about the weights that were given, by flag."""
    names_ = ("model", "lineage", "heads", "interpolant", "prediction", "image_size", "vae")
    names_ += ("latent_stats", "class_names")
    values = {f"--{name.replace('_', '-')}": getattr(settings, name) for name in names_}
    return {flag: value for flag, value in values.items() if value is not None}


def _as_exported(job: _Job, settings: ImportSettings) -> _Job:
    """The job of a file that sit export wrote, which holds all facts itself.

    Raises UsageError for options that would contradict it.
    """
    for flag in _given(settings):
        if flag != "--class-names":
            raise UsageError(
                f"{flag} has no effect: {job.found.path} was exported by sit and holds all facts",
                f"remove {flag}",
            )
    found = job.found
    meta = dict(found.meta)
    which = meta.pop("exported_weights")
    for key in ("format", "format_version", "sit_version", "step", "metrics", "checksum"):
        meta.pop(key, None)
    check_tensors(found.path, found.states[which], TransformerConfig(**meta["transformer"]))
    job.states, job.step, job.arrays = dict(found.states), found.step, found.arrays
    meta.setdefault("lineage", "sit")
    if settings.class_names is not None:
        num_classes = meta["transformer"]["num_classes"]
        meta["latents"]["class_names"] = _class_names(job, [], num_classes, settings)
    job.meta = meta | {"weights_source": _source(found)}
    job.summary = {"lineage": f"{meta['lineage']}, exported by sit"}
    return job


def _source(found: Found) -> dict[str, Any]:
    path = found.path
    return {
        "path": str(path.resolve()),
        "sha256": hash_file(path) if path.is_file() else None,
    }


def _scaling(job: _Job, row: Lineage, said: Path | None, channels: int) -> Scaling | None:
    """How the latents are normalised by their statistics, None for the autoencoder's own way.

    said: --latent-stats. Without it: the network's own statistics, or those beside the weights
    where the row's latents are normalised.
    """
    args, beside = job.found.args, job.found.path.parent / STATISTICS
    multiplier = stated(args, "latent_multiplier", float)
    if said is None and job.statistics:
        job.notes.append("latents are normalised by the network's own statistics, bn.running_*")
        job.warnings.append(
            f"{job.found.path} was trained together with its autoencoder: pictures need that one, "
            "sit sample --vae"
        )
        return own_statistics(job.found.path, job.statistics, channels)
    if said is None and row.normalised and stated(args, "latent_norm", bool) is not False:
        if beside.is_file():
            job.notes.append(f"latents are normalised by {beside}")
            said = beside
        else:
            job.warnings.append(
                f"{row.title} normalises its latents by {STATISTICS}, which is not beside "
                f"{job.found.path}: without it pictures are wrong; name it with --latent-stats"
            )
    if said is not None:
        return read_statistics(said, channels, multiplier=multiplier or 1.0)
    return Scaling(multiplier) if multiplier else None


def _class_names(job: _Job, given: list[str], number: int, settings: ImportSettings) -> list[str]:
    names, note = names_of_weights(job.found.path, settings.class_names, given, number)
    job.notes += [note] if note else []
    return names


def _write(job: _Job) -> Path:
    """Write the run with its one checkpoint, and remove all of it if it cannot be written."""
    there = job.run.path.exists()
    make_folder(job.run.path)
    try:
        folder = job.run.begin_save(job.step)
        for which, state in job.states.items():
            write_tensors(folder / f"{which}.safetensors", state)
        if job.aside:
            write_tensors(folder / ASIDE, job.aside)
        if job.arrays:
            write_tensors(folder / "autoencoder.safetensors", job.arrays)
        return job.run.commit_save(job.step, job.meta)
    except OSError as error:
        raise SitError(f"cannot write {job.run.path}: {error.strerror or error}") from None
    finally:
        if not job.run.steps():
            shutil.rmtree(job.run.saving_path(job.step), ignore_errors=True)
            if not there:
                shutil.rmtree(job.run.path, ignore_errors=True)


def _result(job: _Job, checkpoint: Checkpoint) -> Result:
    meta, config = job.meta, checkpoint.config
    state = next(iter(job.states.values()))
    parts = f", with {', '.join(config.beyond)}" if config.beyond else ""
    params = sum(value.numel() for key, value in state.items() if key != "pos_embed")
    height, width = checkpoint.image_size
    spec, names_ = meta["latents"]["autoencoder"], meta["latents"]["class_names"]
    times = "t = 0 is the data" if meta["time_convention"] == "paper" else "t = 0 is the noise"
    summary = job.summary | {
        "network": f"{meta['model']}: {config.depth} blocks of width {config.width}, "
        f"{config.heads} heads, patch {config.patch}, {params / 1e6:.4g} M parameters{parts}",
        "output": f"{config.out_channels} channels for {config.channels}"
        + (", learned sigma" if config.out_channels == 2 * config.channels else ""),
        "process": checkpoint.process.describe(),
        "its time": times,
        "classes": str(config.num_classes or "none")
        + (f": {', '.join(shown)}, ..." if (shown := titles(names_[:3])) else ""),
        "images": f"{width} x {height} of {spec['name']}, scaling {checkpoint.scaling}",
        "guidance": f"on {meta.get('guided_channels', 'all')} channels, unless --cfg-channels "
        "says otherwise",
        "weights": " and ".join(job.states),
    }
    data = dict(meta, notes=job.notes, warnings=job.warnings, step=job.step)
    words = f"sit sample {job.run.path}"
    if config.num_classes:
        words += " --cfg-scale 1.5"
    path = job.run.path / step_name(job.step)
    return Result(summary=summary, data=data, path=path, next=words)


@dataclass(kw_only=True)
class _Job:
    """A run to write, with everything checked."""

    run: RunDir
    found: Found
    states: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    aside: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    arrays: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: dict[str, str] = field(default_factory=dict)
