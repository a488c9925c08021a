"""Diffusers folders with a DiTTransformer2DModel, read and written under the official keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.model.config import TransformerConfig
from sitcli.storage.tensors import write_tensors
from sitcli.storage.untrusted import named_tensors, read_content

# The names that the tables of the delivered pipeline.py hold.
PIPELINE_PATHS = ("linear", "gvp", "vp")
PIPELINE_PREDICTIONS = ("velocity", "score", "noise", "data")
PIPELINE_VARIANCES = ("learned-range", "fixed-small", "fixed-large")
EXTRAS = "sit.safetensors"  # the tensors diffusers has no place for, and the whole meta.json
# What a config.json must say, where it says it: the tensors do not show it.
SAID = {"activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero"}
NORM_EPS = 1e-5  # diffusers' default of the norm before the MLP
# Official key -> diffusers' key. Keys in a block begin with `blocks.i.` or `transformer_blocks.i.`.
OUTER = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
IN_BLOCK = {
    "adaLN_modulation.1": "norm1.linear",
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
}
QKV = ("attn1.to_q", "attn1.to_k", "attn1.to_v")
# diffusers has embedders of time and label in every block. Those of a converted DiT are copies of
# one, which the official layout has; trained in diffusers they go apart.
COPIED = {
    "t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    "t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    "t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    "t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    "y_embedder.embedding_table.weight": "norm1.emb.class_embedder.embedding_table.weight",
}


def to_diffusers(state: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """The tensors of a DiTTransformer2DModel with `depth` blocks, from those under official keys.

    pos_embed is left out: diffusers recomputes it.
    """
    found = {}
    for kind in ("weight", "bias"):
        for ours, theirs in OUTER.items():
            found[f"{theirs}.{kind}"] = state[f"{ours}.{kind}"]
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            for ours, theirs in IN_BLOCK.items():
                found[f"{block}.{theirs}.{kind}"] = state[f"blocks.{i}.{ours}.{kind}"]
            parts = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(QKV, parts, strict=True):
                found[f"{block}.{name}.{kind}"] = part
    for i in range(depth):
        for ours, theirs in COPIED.items():
            embedder, _, inner = ours.partition(".")
            own = state.get(f"{embedder}.{i}.{inner}")
            found[f"transformer_blocks.{i}.{theirs}"] = state[ours] if own is None else own
    return found


def from_diffusers(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_diffusers`; embedders that differ from block to block are numbered.

    Raises SitError naming the first tensor that is missing, unknown or of a wrong shape or value.
    """
    rest = dict(state)
    rest.pop("pos_embed.pos_embed", None)

    def take(key: str) -> Tensor:
        if key not in rest:
            raise SitError(
                f"{path} has no '{key}'", "expected a DiTTransformer2DModel of diffusers"
            )
        return rest.pop(key)

    numbers = {key.split(".")[1] for key in state if key.startswith("transformer_blocks.")}
    depth = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    found = {}
    for kind in ("weight", "bias"):
        for ours, theirs in OUTER.items():
            found[f"{ours}.{kind}"] = take(f"{theirs}.{kind}")
        for i in range(depth):
            block = f"transformer_blocks.{i}"
            for ours, theirs in IN_BLOCK.items():
                found[f"blocks.{i}.{ours}.{kind}"] = take(f"{block}.{theirs}.{kind}")
            parts = [take(f"{block}.{name}.{kind}") for name in QKV]
            if len({part.shape for part in parts}) > 1:
                raise SitError(f"{path}: the shapes of {block}'s q, k and v differ")
            found[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
    copies = {
        ours: [take(f"transformer_blocks.{i}.{theirs}") for i in range(depth)]
        for ours, theirs in COPIED.items()
    }
    own = any(not torch.equal(copy, all_[0]) for all_ in copies.values() for copy in all_)
    for ours, all_ in copies.items():
        embedder, _, inner = ours.partition(".")
        for i, copy in enumerate(all_ if own else all_[:1]):
            found[f"{embedder}.{i}.{inner}" if own else ours] = copy
    if rest:
        raise SitError(f"{path} holds '{next(iter(rest))}', which no DiT has")
    return found


def read_folder(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a pipeline's or model's folder, under official keys, and its JSON files.

    The files are named config, index and scheduler; a missing index or scheduler is {}.
    Raises SitError for a folder without a DiTTransformer2DModel.
    """
    inner = path / "transformer" if (path / "transformer").is_dir() else path
    facts = {"config": _read_json(inner / "config.json")}
    kind = facts["config"].get("_class_name")
    if kind not in ("DiTTransformer2DModel", "Transformer2DModel"):
        raise SitError(
            f"{inner / 'config.json'} describes a {kind}, not a DiTTransformer2DModel",
            "sit import takes DiT and SiT weights",
        )
    for name, known in SAID.items():
        if (said := facts["config"].get(name, known)) != known:
            raise SitError(
                f"{inner / 'config.json'} says {name} {said}, and a DiT has {known}",
                "sit import takes DiT and SiT weights",
            )
    for name, file in (
        ("index", path / "model_index.json"),
        ("scheduler", path / "scheduler" / "scheduler_config.json"),
    ):
        facts[name] = _read_json(file) if file.exists() else {}
    names = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    file = next((inner / name for name in names if (inner / name).exists()), None)
    if file is None:
        raise SitError(f"{inner} holds no {names[0]}", "fetch it again")
    return from_diffusers(file, named_tensors(read_content(file))), facts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise SitError(f"cannot read {path}: {error}") from None
    if not isinstance(value, dict):
        raise SitError(f"{path} is damaged: it does not hold a JSON object")
    return value


def write_folder(
    path: Path,
    state: dict[str, Tensor],
    config: TransformerConfig,
    *,
    facts: dict[str, Any],
    vae: Path | None,
    class_names: list[str],
    extras: dict[str, Tensor],
    meta: str,
) -> None:
    """Write a diffusers pipeline into the empty folder `path`.

    facts: the arguments of pipeline.py (see `SitPipeline`). vae: the folder of a diffusers
    autoencoder, which is copied. extras, meta: tensors and JSON text that only sit reads back.
    Raises OSError if the folder cannot be written.
    """
    import diffusers

    with torch.device("meta"):
        network = diffusers.DiTTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=config.channels,
            out_channels=config.out_channels,
            num_layers=config.depth,
            sample_size=config.input_size,
            patch_size=config.patch,
            num_embeds_ada_norm=config.num_classes,
            norm_eps=config.mlp_eps,
        )
    (path / "transformer").mkdir()
    network.save_config(path / "transformer")
    tensors = to_diffusers(state, config.depth)
    file = path / "transformer" / "diffusion_pytorch_model.safetensors"
    write_tensors(file, {k: t.clone() for k, t in tensors.items()}, metadata={"format": "pt"})
    component = [None, None]
    if vae is not None:
        component = ["diffusers", _read_json(vae / "config.json")["_class_name"]]
        (path / "vae").mkdir()
        for source in (vae / "config.json", *vae.glob("diffusion_pytorch_model.*")):
            shutil.copyfile(source, path / "vae" / source.name)
    shutil.copyfile(pipeline_source(), path / "pipeline.py")
    write_tensors(path / EXTRAS, extras, metadata={"sit": meta})
    index = {
        "_class_name": ["pipeline", "SitPipeline"],
        "_diffusers_version": diffusers.__version__,
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": component,
        "sit": facts,
    }
    if class_names:
        index["id2label"] = {str(i): name for i, name in enumerate(class_names)}
    (path / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def pipeline_source() -> Path:
    """The path of the pipeline.py to deliver; sit itself never imports that file."""
    return Path(__file__).with_name("pipeline.py")
