"""Files and folders of weights: finding and reading them."""

from __future__ import annotations

import json
import re
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.images.class_names import are_imagenet, imagenet_names
from sitcli.latents.statistics import STATISTICS
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import position_embedding
from sitcli.runs.meta import process_from, written_fields, wrong_in_meta
from sitcli.runs.run_dir import RunDir
from sitcli.storage.tensors import verify_tensors
from sitcli.storage.untrusted import check_archive, named_tensors, read_content, read_metadata
from sitcli.weights.diffusers_dit import EXTRAS, NORM_EPS, read_folder
from sitcli.weights.official import AUTOENCODER

SIDECAR = ".sit.safetensors"  # see sidecar.py
WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


def only_file(path: Path) -> Path:
    """The one file of weights in a folder; the path itself for a file or a diffusers folder.

    Raises SitError if the path does not exist or the folder does not hold exactly one such file,
    UsageError for a run or checkpoint of sit.
    """
    if not path.exists():
        raise SitError(f"there is no {path}", "name a file or folder of weights, or hf:OWNER/NAME")
    if path.name.endswith(SIDECAR):
        raise SitError(
            f"{path} is what lies beside the weights, not the weights",
            f"name {path.name.removesuffix(SIDECAR)}",
        )
    if not path.is_dir() or (path / "model_index.json").exists() or (path / "config.json").exists():
        return path
    if (path / "meta.json").exists() or RunDir(path).steps():
        raise UsageError(
            f"{path} is already a run or checkpoint of sit", f"use it as it is: sit sample {path}"
        )
    beside = (STATISTICS, SIDECAR)
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix in WEIGHT_FILES and not file.name.endswith(beside)
    )
    if len(files) == 1:
        return files[0]
    what = f"{len(files)} files of weights" if files else "no weights"
    raise SitError(f"{path} holds {what}", "name one file, or a folder of diffusers")


def read_source(path: Path) -> Found:
    """Read a file of weights or a diffusers folder, without running any code in it.

    Raises SitError for a file or folder that cannot be read as weights.
    """
    if path.is_dir():
        return _read_diffusers(path)
    if path.suffix == ".safetensors":
        check_bytes(path)
        meta = read_metadata(path).get("sit")
        tensors = named_tensors(read_content(path))
        if meta is None:
            return Found(path=path, states={"ema": tensors}, step=_step_in(path))
        meta = exported_meta(path, meta)
        arrays = {
            key.removeprefix(AUTOENCODER): tensors.pop(key)
            for key in list(tensors)
            if key.startswith(AUTOENCODER)
        }
        states = {meta["exported_weights"]: tensors}
        return Found(path=path, states=states, step=meta["step"], meta=meta, arrays=arrays)
    check_archive(path)
    content = read_content(path)
    parts = {}
    if isinstance(content, dict):
        parts = {which: named_tensors(content.get(which)) for which in ("model", "ema")}
        parts = {which: tensors for which, tensors in parts.items() if tensors}
    args = _arguments(content) if parts else None
    step = content.get("steps") if parts else None
    return Found(
        path=path,
        # A released file holds the average weights alone.
        states=parts or {"ema": named_tensors(content)},
        args=args,
        step=step if isinstance(step, int) and 0 <= step < 10**9 else _step_in(path),
        has_optimizer=bool(parts) and "opt" in content,
    )


def _arguments(content: dict[str, Any]) -> Namespace | None:
    """The trainer's arguments: `args`, or as one the sections of LightningDiT's `config`."""
    args, config = content.get("args"), content.get("config")
    if isinstance(args, Namespace) or not isinstance(config, dict):
        return args if isinstance(args, Namespace) else None
    sections = (config.get(name) for name in ("data", "model", "transport"))
    facts = {k: v for part in sections if isinstance(part, dict) for k, v in part.items()}
    return Namespace(**{k: v for k, v in facts.items() if isinstance(k, str)}) if facts else None


def _read_diffusers(path: Path) -> Found:
    state, facts = read_folder(path)
    heads = facts["config"].get("num_attention_heads")
    extras = path / EXTRAS
    if extras.exists():  # written by sit export
        check_bytes(extras, *sorted((path / "transformer").glob("*.safetensors")))
        meta = exported_meta(extras, read_metadata(extras).get("sit"))
        tensors = named_tensors(read_content(extras))
        # A DiTTransformer2DModel has no place for the heads that training adds.
        config = TransformerConfig(**meta["transformer"]).backbone
        meta["transformer"] = written_fields(config)
        if "pos_embed" in tensors:
            state["pos_embed"] = tensors.pop("pos_embed")
        arrays = {key.removeprefix(AUTOENCODER): value for key, value in tensors.items()}
        states = {meta["exported_weights"]: state}
        return Found(path=path, states=states, step=meta["step"], meta=meta, arrays=arrays)
    scheduler = facts["scheduler"]
    schedules = {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    betas = schedules.get(scheduler.get("beta_schedule", "linear"))
    target = scheduler.get("prediction_type", "epsilon")
    if betas is None or target != "epsilon":
        raise SitError(
            f"{path} has a scheduler with {scheduler.get('beta_schedule')} betas that predicts "
            f"{target}, which sit does not know"
        )
    size, patch = facts["config"].get("sample_size"), facts["config"].get("patch_size")
    proj = state.get("x_embedder.proj.weight")
    if not all(isinstance(n, int) and 0 < n <= 4096 for n in (size, patch)) or size % patch:
        raise SitError(f"{path}: sample_size {size} and patch_size {patch} do not fit together")
    if proj is not None and proj.ndim == 4:
        width = proj.shape[0]
        state["pos_embed"] = position_embedding(width, size // patch, size // patch)
    process = dict(interpolant="ddpm", prediction="noise", loss_weight="none", betas=betas)
    out = facts["config"].get("out_channels") or facts["config"].get("in_channels")
    learned = out == 2 * (facts["config"].get("in_channels") or 0)
    process["variance"] = "learned-range" if learned else "fixed-large"
    own = "t_embedder.0.mlp.0.weight" in state
    labels = facts["index"].get("id2label") or {}
    names_ = [str(labels.get(str(i), "")) for i in range(len(labels))]
    if are_imagenet(names_):
        names_ = imagenet_names()
    return Found(
        path=path,
        states={"ema": state},
        lineage="diffusers",
        heads=heads if isinstance(heads, int) and heads > 0 else None,
        process=process_from(process),
        class_names=names_ if all(names_) else [],
        vae=path / "vae" if (path / "vae").is_dir() else None,
        unseen=_trained_in_diffusers(path, facts["config"]) if own else {},
    )


def _trained_in_diffusers(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """What sets the network of weights that diffusers trained apart from DiT's."""
    eps = config.get("norm_eps", NORM_EPS)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise SitError(f"{path}: its config.json says norm_eps {str(eps)[:40]}", "fetch it again")
    return {"mlp_eps": eps}


def check_bytes(*paths: Path) -> None:
    """Raise SitError if a safetensors file that sit wrote is not as it was."""
    for path in paths:
        if problems := verify_tensors(path).problems:
            raise SitError(f"{path} is damaged: {problems[0]}", "export or fetch it again")


def exported_meta(path: Path, text: str | None) -> dict[str, Any]:
    """The meta.json that sit export put into a file. Raises SitError if it is damaged."""
    try:
        meta = json.loads(text or "")
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict) or meta.get("exported_weights") not in ("model", "ema"):
        raise SitError(f"{path} is damaged: its description is missing", "export it again")
    if wrong := wrong_in_meta(meta):
        raise SitError(f"{path} is damaged: {wrong}", "export it again")
    return meta


def _step_in(path: Path) -> int:
    """400000 for 0400000.pt, as the official trainers name a checkpoint; 0 for any other name."""
    return int(path.stem) if re.fullmatch(r"\d{7}", path.stem) else 0


@dataclass(kw_only=True)
class Found:
    """The contents of a file or folder of weights.

    states: 'ema' and 'model' -> the tensors; args: the trainer's arguments; lineage, heads,
    process, class_names, vae: known for diffusers folders alone; unseen: fields of the network that
    its tensors do not show; meta, arrays: the checkpoint's
    meta.json and the autoencoder's arrays, which sit export put beside the weights.
    """

    path: Path
    states: dict[str, dict[str, Tensor]]
    args: Namespace | None = None
    step: int = 0
    has_optimizer: bool = False
    lineage: str | None = None
    heads: int | None = None
    process: Any = None
    class_names: list[str] = field(default_factory=list)
    vae: Path | None = None
    unseen: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] | None = None
    arrays: dict[str, Tensor] = field(default_factory=dict)
