"""A run or a checkpoint described and verified."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sitcli.commands.inspect.checks import Problems, check_arrays, listed
from sitcli.commands.inspect.checksums import verify_beside_steps, verify_step
from sitcli.engine.optimizer_state import MOMENTS, StateFiles
from sitcli.errors import SitError
from sitcli.events import Progress, Result, Table
from sitcli.images.class_names import titles
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import parameter_sizes, tensor_shapes
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.storage.tensors import identity
from sitcli.text import format_bytes, format_shape

SETTINGS_SHOWN = ("model", "steps", "batch_size", "lr", "ema", "zero", "precision", "seed")


def describe_run(run: RunDir) -> Result:
    """The run's checkpoints, settings and size. Raises SitError if config.yaml is unreadable."""
    steps, partial = run.steps(), [path.name for path in run.partial()]
    size = bytes_below(run.path)
    summary = {"kind": "run", "checkpoints": listed(steps) if steps else "none"}
    data: dict[str, Any] = {"kind": "run", "path": str(run.path), "steps": steps}
    if steps:
        newest = describe_checkpoint(open_checkpoint(run.path))
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
        summary["interrupted"] = (
            f"{listed(partial)}: not counted, and removed when training goes on"
        )
    summary["size"] = format_bytes(size)
    data |= {"interrupted": partial, "config": config, "bytes": size}
    data["last_metrics"] = metrics[-1] if metrics else None
    result = Result(summary=summary, data=data, next=f"sit sample {quote(str(run.path))}")
    if steps:
        result.tables.append(_steps_table(run, metrics))
        if changes := open_checkpoint(run.path).history.changes:
            lines = [[str(change.step), change.words] for change in changes]
            table = Table(title="Changes", header=["after step", "from there on"], rows=lines)
            result.tables.append(table)
    else:
        result.next = f"sit train --out {quote(str(run.path))}"
    return result


def _steps_table(run: RunDir, metrics: Sequence[dict[str, Any]]) -> Table:
    losses = {entry["step"]: entry.get("loss") for entry in metrics if "step" in entry}
    lines = []
    for step in run.steps():
        loss = losses.get(step)
        size = format_bytes(bytes_below(run.step_path(step)))
        lines.append([str(step), "-" if loss is None else f"{loss:.5f}", size])
    return Table(title="Checkpoints", header=["step", "loss", "size"], rows=lines)


def _read_config(run: RunDir) -> dict[str, Any]:
    import yaml

    try:
        config = yaml.safe_load(run.config.read_text()) if run.config.exists() else {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        raise SitError(f"{run.path} is damaged: config.yaml is not readable") from None
    # Written in the form that `--config` reads: a section per command.
    return config.get("train", config) or {}


def verify_run(run: RunDir) -> Problems:
    """Read every checkpoint and the log; returns the problems that were found."""
    problems = []
    steps = run.steps()
    for number, step in enumerate(steps, start=1):
        found = yield from verify_checkpoint(open_checkpoint(run.step_path(step)))
        problems += [f"step {step}: {problem}" for problem in found]
        yield Progress(done=number, total=len(steps), unit="checkpoints")
    problems += yield from verify_beside_steps(run)
    lines = run.metrics.read_text().splitlines() if run.metrics.exists() else []
    # A kill can cut the last line short; the next `sit train` removes it.
    damaged = len(lines) - len(run.read_metrics())
    if damaged > 1:
        problems.append(f"{damaged} lines of metrics.jsonl are not JSON")
    return problems


def describe_checkpoint(checkpoint: Checkpoint) -> Result:
    """The network, latents, process and size of a checkpoint."""
    meta, config = checkpoint.meta, checkpoint.config
    process, latents = checkpoint.process, checkpoint.latents
    spec = latents["autoencoder"]
    params = sum(parameter_sizes(config).values())
    size = bytes_below(checkpoint.path)
    num_classes = config.num_classes
    design = "" if config.block == TransformerConfig.block else f"{config.block} "
    summary = {
        "kind": f"checkpoint, format {meta['format_version']}, by sit {meta['sit_version']}",
        "step": str(checkpoint.step),
        "network": f"{config.depth} {design}blocks of width {config.width}, {config.heads} heads, "
        f"patch {config.patch}: {params / 1e6:.4g} M parameters",
        "latents": format_shape(config.latent_shape) + _origin(latents),
        "classes": (listed(titles(latents["class_names"])) or f"{num_classes}, without names")
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
        if checkpoint.weights_warning:
            summary["warning"] = checkpoint.weights_warning
    if "lora" in meta:
        base = RunDir(checkpoint.path.parent).base
        summary["adapters"] = f"rank {meta['lora']['rank']}, added to {base}"
        try:
            same = identity(base) == meta["lora"]["base"]
        except SitError:
            same = False
        if not same:
            summary["warning"] = f"{base} is missing or another: the adapters are nothing without"
    if "init" in meta:
        begun = meta["init"]
        summary["begun from"] = (
            f"{begun['path']}, step {begun['step']}, {begun['weights']} weights, sha256 "
            f"{(begun['sha256'] or 'unknown')[:12]}"
        )
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
    """The store that the latents were read from, for people; '' for imported weights."""
    if latents["store"] is None:
        return ""
    return f" of {latents['store']} ({latents['num_items']} images)"


def verify_checkpoint(checkpoint: Checkpoint) -> Problems:
    """Read all tensors of a checkpoint; returns the problems that were found."""
    problems = []
    expected = tensor_shapes(checkpoint.config)
    kinds = checkpoint.kinds
    for done, which in enumerate(kinds, start=1):
        weights = checkpoint.weights(which)
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        wrong = sorted(k for k in {*shapes, *expected} if shapes.get(k) != expected.get(k))
        if wrong:
            problems.append(f"{which}.safetensors does not fit the network: {listed(wrong)}")
        bad = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
        if bad:
            problems.append(f"{which}.safetensors is not finite: {listed(bad)}")
        yield Progress(done=done, total=len(kinds), unit="files")
    problems += _check_moments(checkpoint)
    problems += yield from verify_step(checkpoint)
    arrays = checkpoint.autoencoder_arrays()
    return problems + check_arrays(checkpoint.latents["autoencoder"], arrays)


def _check_moments(checkpoint: Checkpoint) -> list[str]:
    """Problems with the optimizer's moments that would keep training from going on."""
    state = checkpoint.path / "state"
    if checkpoint.meta["format_version"] < 2 or not checkpoint.trainable or not state.exists():
        return []  # DeepSpeed's own files, which this version does not read, or weights only
    try:
        with contextlib.ExitStack() as stack:
            files = StateFiles(checkpoint.path, stack)
            wrong = [
                name
                for name, size in _trained_sizes(checkpoint).items()
                for moment in MOMENTS
                if not torch.isfinite(files.read(moment, name, 0, size)).all()
            ]
    except SitError as error:
        return [error.message]
    return [f"the optimizer's moments are not finite: {listed(wrong)}"] if wrong else []


def _trained_sizes(checkpoint: Checkpoint) -> dict[str, int]:
    """The number of elements of every parameter that is trained."""
    if "lora" in checkpoint.meta:
        return {n: t.numel() for n, t in checkpoint.tensors("model.safetensors").items()}
    sizes = parameter_sizes(checkpoint.config)
    trained = checkpoint.meta.get("trained")
    return sizes if trained is None else {n: size for n, size in sizes.items() if n in trained}


def bytes_below(path: Path) -> int:
    """The size of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
