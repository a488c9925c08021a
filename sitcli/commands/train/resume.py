"""A run that goes on: its settings as config.yaml and its newest checkpoint keep them, compared
with each other and with what the user said."""

from __future__ import annotations

import dataclasses
import json
import zlib
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from sitcli.commands.train.init import OF_NETWORK
from sitcli.commands.train.recipe import SCHEDULES
from sitcli.commands.train.run_settings import (
    KEPT_ON_RESUME,
    MAY_CHANGE,
    UNNAMED,
    as_plain,
    unnamed,
)
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.model.config import PRESETS, TransformerConfig, parse_model
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.compatible import check_same_latents, difference_from_trained, has_grown
from sitcli.runs.history import DATA, Change, History
from sitcli.runs.run_dir import RunDir
from sitcli.settings.files import parse_yaml, typed
from sitcli.settings.option import Said
from sitcli.settings.train import TrainSettings
from sitcli.storage.files import write_text

DEFAULTS = as_plain(TrainSettings())
# The settings of which a field of the process or the network is made, where they are named
# otherwise.
SETTING_OF = {
    "direction": "direction_loss",
    "aux_block": "internal_guidance",
    "align_block": "repa",
    "align_width": "repa",
}
CHECKSUM = "# crc32 of the lines above, for sit inspect --verify: "


def said_by_default(settings: TrainSettings) -> Said:
    """The options that were said, each with how to take it back: those not at their default.

    For callers in Python; the command line knows what was typed.
    """
    given = as_plain(settings)
    return {
        name: f"remove --{name.replace('_', '-')}"
        for name, value in given.items()
        if value != DEFAULTS[name]
    }


def write_config(
    path: Path, settings: TrainSettings, *, init: dict[str, Any] | None = None
) -> None:
    """config.yaml, in the form --config takes, and as comments where the run begins from and the
    checksum; init: as meta.json has it."""
    text = yaml.safe_dump({"train": as_plain(settings)}, sort_keys=False)
    if init is not None:
        source = json.dumps(f"{init['path']}, {init['weights']} weights")
        text = f"# begun from {source}, sha256 {init['sha256'] or 'unknown'}\n{text}"
    write_text(path, f"{text}{CHECKSUM}{zlib.crc32(text.encode()):08x}\n")


def config_as_written(path: Path) -> bool | None:
    """Whether config.yaml is what `write_config` wrote; None if it has no checksum.

    Raises SitError if it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    text, mark, value = content.rpartition(CHECKSUM.encode())
    if not mark:
        return None
    return value == f"{zlib.crc32(text):08x}\n".encode()


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run. Raises SitError if the file cannot be read or is damaged."""
    try:
        section = parse_yaml(path.read_text(encoding="utf-8"))["train"]
        return typed(TrainSettings, dict(section))
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        # A value of the wrong kind is named; what else YAML says takes several lines.
        why = str(error) if type(error) is ValueError else "it does not hold the settings of a run"
        raise SitError(f"{path} is damaged: {why}", "restore it, or name another --out") from None


def stores_of_run(run: RunDir) -> list[Path]:
    """The stores that the run was trained on, as far as they are still there; else none."""
    newest = run.newest()
    if newest is not None:
        latents = open_checkpoint(newest).latents
        stores = latents.get("stores") or [latents["store"]]
    elif run.config.exists():
        stores = read_config(run.config).get("latents") or []
    else:
        return []
    paths = [Path(store) for store in stores if store]
    return paths if all(path.exists() for path in paths) else []


def kept_settings(settings: TrainSettings) -> dict[str, Any]:
    """The resolved settings that a checkpoint's meta.json keeps: those that decide what is learned,
    and the number of steps."""
    left_out = unnamed(settings.schedule) - {"steps"}
    return {name: value for name, value in as_plain(settings).items() if name not in left_out}


def unsaid_as_begun(base: dict[str, Any], settings: TrainSettings, said: Said) -> TrainSettings:
    """The settings with all that decides what is learned or is kept as in `base`, if it was not
    said."""
    free = set(UNNAMED) - {"steps", *MAY_CHANGE} - KEPT_ON_RESUME
    return dataclasses.replace(
        settings, **{name: base[name] for name in base.keys() - said.keys() - free}
    )


def settings_of_run(run: RunDir, resume: Checkpoint | None) -> dict[str, Any]:
    """All settings of a run that has a checkpoint or a config.yaml.

    Raises UsageError if config.yaml contradicts the checkpoint, SitError if it is missing and the
    checkpoint, of an older version, does not keep the settings.
    """
    recorded = _recorded(resume) if resume else {}
    if run.config.exists():
        config = read_config(run.config)
        if resume:
            written = bool(config_as_written(run.config))
            for name, ours, theirs in contradictions(resume, config, changed=written):
                other = "name another --out"
                if name in MAY_CHANGE:
                    other = f"say --{name.replace('_', '-')} to change it from here on"
                raise UsageError(
                    f"{run.config} says {name} {_text(theirs)}, but {resume.path.name} was trained "
                    f"with {_text(ours)}",
                    f"write {name}: {_text(ours)} into {run.config}, or {other}",
                )
        # A run of an older version has the defaults of the options that came later.
        return DEFAULTS | recorded | config
    if resume and "settings" not in resume.meta:
        example = {"lr": 0.0001} | _known(resume)
        line = json.dumps({"train": example}).replace('"', "")
        raise SitError(
            f"{run.config} is missing, and {resume.path.name}, by an older version, does not keep "
            "all settings of the training",
            f"restore it, or write the settings that were not the defaults: echo {quote(line)} > "
            f"{quote(str(run.config))}",
        )
    return DEFAULTS | recorded


def contradictions(
    resume: Checkpoint, config: dict[str, Any], *, changed: bool
) -> list[tuple[str, Any, Any]]:
    """(name, value of the checkpoint, value of config.yaml) of the settings in which the two must
    not differ and do.

    changed: whether the run may have changed what may change since, without a checkpoint.
    """
    recorded = resume.meta.get("settings", {})
    free = {"steps", *(MAY_CHANGE if changed else ())}
    full = DEFAULTS | config
    differing = [
        (name, value, full[name])
        for name, value in recorded.items()
        if name in full and name not in free and full[name] != value
    ]
    precision = resume.meta.get("precision")
    free_precision = "precision" in free or config.get("precision", "auto") == "auto"
    if precision and not free_precision and config["precision"] != precision:
        differing.append(("precision", precision, config["precision"]))
    return differing


def _recorded(resume: Checkpoint) -> dict[str, Any]:
    """The settings that a checkpoint keeps; an older one keeps the process and the network."""
    kept = resume.meta.get("settings")
    if kept is not None:
        return {name: value for name, value in kept.items() if name in DEFAULTS}
    process, config = resume.process, resume.config
    facts = dict(
        prediction=process.prediction,
        loss_weight=process.loss_weight,
        direction_loss=process.direction,
        **{name: getattr(config, name) for name in OF_NETWORK},
        **_known(resume),
    )
    if isinstance(process, Diffusion):
        facts |= dict(betas=process.betas, variance=process.variance)
    else:
        facts |= dict(interpolant=process.interpolant)
    _, size, patch = parse_model(resume.meta["model"])
    usual = dict(zip(("depth", "width", "heads"), PRESETS[size], strict=True), patch=patch)
    return facts | {
        name: getattr(config, name)
        for name, value in usual.items()
        if getattr(config, name) != value
    }


def _known(resume: Checkpoint) -> dict[str, Any]:
    """What an older version's checkpoint keeps of the settings beside process and network."""
    meta = resume.meta
    facts = {name: meta[name] for name in ("model", "seed", "ema", "label_dropout") if name in meta}
    if "t_shift" in meta:
        facts["t_shift"] = f"{meta['t_shift']:.6g}"
    if resume.step and "images_seen" in meta:
        facts["batch_size"] = meta["images_seen"] // resume.step
    return facts


def check_same(run: RunDir, base: dict[str, Any], settings: TrainSettings, said: Said) -> None:
    """Raise UsageError for the first setting that would change network, process or streams.

    base: the run's settings, see `settings_of_run`; settings: resolved; said: the options to
    compare, each with how to take it back, "" if it is only in the run's name.
    """
    new = as_plain(settings)
    for key, value in new.items():
        if key not in said or base[key] == value:
            continue
        flag = key.replace("_", "-")
        if not said[key] and key not in unnamed(new["schedule"]):
            # The run's name follows from its settings: it was told to change this one since, or
            # config.yaml was changed.
            action = f"write {key}: {_text(value)} into {run.config}"
            if config_as_written(run.config) and key in MAY_CHANGE:
                action = f"go on with what it has now: sit train --out {quote(str(run.path))}"
            raise UsageError(
                f"{run.config} says {key} {_text(base[key])}, but the run's name is that of {key} "
                f"{_text(value)}",
                f"{action}, or name another --out",
            )
        if key in MAY_CHANGE or key in UNNAMED:
            continue
        old = base[key]
        how = f"--{flag} {old}, not {value}"
        if isinstance(value, bool) or old is None:
            how = f"--{flag}"
        word = "without" if old is None or old is False else "with"
        raise UsageError(
            f"{run.path} was trained {word} {how}",
            f"begin another run from its weights: sit train --init {quote(str(run.path))} ..., or "
            f"{said[key]}",
        )


def history_of(
    resume: Checkpoint | None,
    base: dict[str, Any],
    settings: TrainSettings,
    store: LatentStore | JoinedStores,
) -> History:
    """The history of a run that goes on from `resume`, with the change that comes now, if any.

    base: the run's settings, see `settings_of_run`; settings: those that hold from now on.
    """
    if resume is None:
        return History()
    new, meta = as_plain(settings), resume.meta
    recorded = base | _recorded(resume)
    recorded["precision"] = meta.get("precision", new["precision"])
    compared = set(MAY_CHANGE)
    # More steps are more of the same, unless the learning rate is a function of them.
    if any(SCHEDULES[each["schedule"]].whole_run for each in (recorded, new)):
        compared.add("steps")
    changed = {
        name: (recorded[name], new[name])
        for name in new
        if name in compared and recorded[name] != new[name]
    }
    if difference_from_trained(store, resume.latents):
        changed[DATA] = (resume.latents["num_items"], store.num_items)
    changes = resume.history.changes
    if changed:
        changes = (*changes, Change(resume.step, resume.images_seen, changed))
    return History(changes)


def check_latents(
    run: RunDir, resume: Checkpoint, store: LatentStore | JoinedStores, *, said: bool
) -> None:
    """Raise UsageError if the run cannot go on with this store, which is not the one it had.

    said: whether the user named the store; without it a run takes no other one, but its own if
    images were added to it. Raises SitError for latents of another space.
    """
    difference = difference_from_trained(store, resume.latents)
    if not difference:
        return
    before = resume.latents.get("stores", [resume.latents["store"]])
    here = [str(path.resolve()) for path in store.paths]
    if not has_grown(store, resume.latents) and (before == here or not said):
        flags = " ".join(f"--latents {quote(path)}" for path in before)
        raise UsageError(
            f"{run.path} was trained on other latents than {', '.join(map(str, store.paths))} "
            f"holds now: those are {difference}",
            f"{'restore them' if before == here else f'use {flags}'}, or begin another run from "
            f"its weights: sit train --init {quote(str(run.path))} ...",
        )
    check_same_latents(store, resume)
    for what, theirs, ours in (
        ("classes", resume.latents["class_names"], store.class_names),
        ("kind of latents", resume.latents["kind"], store.kind),
    ):
        if theirs == ours:
            continue
        raise UsageError(
            f"{', '.join(map(str, store.paths))} has not the {what} of {run.path}"
            f"{_between(theirs, ours)}",
            f"begin another run from its weights: sit train --init {quote(str(run.path))} ...",
        )


def _between(theirs: Any, ours: Any) -> str:
    """What is more and what is less in one list of classes than in another."""
    if not isinstance(theirs, list):
        return ""
    more, less = (sorted(set(a) - set(b)) for a, b in ((ours, theirs), (theirs, ours)))
    parts = [
        f"{len(names)} {word} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
        for word, names in (("more", more), ("less", less))
        if names
    ]
    return f": {' and '.join(parts)}" if parts else ": they are in another order"


def check_same_model(
    run: RunDir, resume: Checkpoint, config: TransformerConfig, process: Flow
) -> None:
    """Raise UsageError if the checkpoint's process or network is not what the settings describe.

    Every field counts. What the user said was compared before: a difference that is left is one
    between config.yaml and the checkpoint.
    """
    if type(process) is not type(resume.process):
        theirs, ours = resume.meta["process"]["interpolant"], process.interpolant
        raise _other_model(run, resume, "interpolant", theirs, ours)
    for ours, theirs in ((process, resume.process), (config, resume.config)):
        for field in dataclasses.fields(ours):
            new, old = (getattr(each, field.name) for each in (ours, theirs))
            if (list(new) if isinstance(new, tuple) else new) != old:
                raise _other_model(run, resume, SETTING_OF.get(field.name, field.name), old, new)


def _other_model(run: RunDir, resume: Checkpoint, name: str, old: Any, new: Any) -> UsageError:
    action = "name another --out"
    if name in DEFAULTS:
        action = f"correct {name} in {run.config}, or {action}"
    return UsageError(
        f"{run.config} means {name} {_text(new)}, but {resume.path.name} was trained with "
        f"{_text(old)}",
        action,
    )


def _text(value: Any) -> str:
    """A value as config.yaml has it."""
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
