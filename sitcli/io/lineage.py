"""Whose weights they are, and what follows: process, time, guided channels, and a shape to check.

The official DiT and SiT, and what descends from them, store the same tensors under the same keys
and shapes; what they are trained to output is written nowhere among them. To add a lineage, add a
row to LINEAGES and its name to `names.Lineage`.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sitcli import names
from sitcli.core.ddpm import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.io.checkpoint import PAPER, REVERSED
from sitcli.model.transformer import PRESETS, Transformer, TransformerConfig, infer_config
from sitcli.text import format_shape

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP, torch.compile and trainers' wrappers
AUTOENCODER = "autoencoder."  # of an autoencoder's own arrays, in files that sit export wrote
PROJECTORS = "projectors."  # REPA's, which only training needs
ESSENTIAL = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "final_layer.linear.weight",
)
PATHS = {"linear": "linear", "gvp": "gvp", "cosine": "gvp", "vp": "vp"}
KEYS = "keys as in the official DiT and SiT: x_embedder, t_embedder, y_embedder, blocks, ..."


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """title: for people; family: SiT or DiT; time_convention: see `checkpoint_meta`;
    guided_channels: what its published figures guide."""

    title: str
    family: str
    time_convention: str
    guided_channels: names.GuidedChannels


LINEAGES: dict[str, Lineage] = {
    "official-sit": Lineage(
        title="the official SiT", family="SiT", time_convention=REVERSED, guided_channels="3"
    ),
    "official-dit": Lineage(
        title="the official DiT or fast-DiT",
        family="DiT",
        time_convention=PAPER,
        guided_channels="3",
    ),
    "repa": Lineage(title="REPA", family="SiT", time_convention=PAPER, guided_channels="all"),
    "diffusers": Lineage(
        title="diffusers' DiT", family="DiT", time_convention=PAPER, guided_channels="all"
    ),
}


def recognise(
    *,
    name: str,
    lineage: str | None,
    why: str,
    model: str | None,
    keys: Iterable[str],
    args: Namespace | None,
    learned_sigma: bool,
) -> tuple[str, str]:
    """The row of LINEAGES that weights are of, and what says so.

    name: the file's; lineage: what was said, and why; model: what the user said; keys: the
    tensors'; args: the trainer's.
    Raises UsageError if nothing tells, or the user and the file contradict each other.
    """
    family = model.split("-")[0] if model else None
    if lineage is not None:
        return _agreed(lineage, why, family, name)
    if any(key.startswith(PROJECTORS) for key in keys):
        return _agreed("repa", "it has REPA's projectors", family, name)
    if args is not None and (hasattr(args, "proj_coeff") or hasattr(args, "enc_type")):
        return _agreed("repa", "its trainer's arguments are REPA's", family, name)
    if args is not None and hasattr(args, "path_type"):
        return _agreed("official-sit", "its trainer's arguments are SiT's", family, name)
    if args is not None and (hasattr(args, "global_batch_size") or hasattr(args, "num_classes")):
        return _agreed("official-dit", "its trainer's arguments are DiT's", family, name)
    match = re.match(r"(sit|dit)[-_]", name, re.IGNORECASE)
    said = match and match[1].lower()
    if family is not None and said is None and family == "SiT" and not learned_sigma:
        raise UsageError(
            f"{name}: SiT weights without learned sigma may be the official SiT's or REPA's, whose "
            "times run in opposite directions",
            "--lineage official-sit, or --lineage repa",
        )
    if family is not None:
        return f"official-{family.lower()}", "--model"
    if said is not None:
        return f"official-{said}", "the file's name"
    raise UsageError(
        f"{name}: DiT's and SiT's weights look alike, and nothing tells which these are",
        "say so: --model SiT-XL/2, --model DiT-XL/2, or --lineage repa",
    )


def _agreed(lineage: str, why: str, family: str | None, name: str) -> tuple[str, str]:
    if family not in (None, LINEAGES[lineage].family):
        raise UsageError(
            f"--model is a {family}, and {name} is {LINEAGES[lineage].title}: {why}",
            "leave out --model, or say --lineage if you know better",
        )
    return lineage, why


def process_of(
    lineage: str,
    *,
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """The process that such weights are of; interpolant and prediction override the trainer's.

    Raises UsageError for options that do not fit, SitError for arguments sit does not know.
    """
    if LINEAGES[lineage].family == "DiT":
        if interpolant or prediction:
            option = "--interpolant" if interpolant else "--prediction"
            raise UsageError(f"{option} is for SiT weights, and these are DiT's", "leave it out")
        learned = config.out_channels == 2 * config.channels
        # What the official create_diffusion takes without learned sigma.
        return Diffusion(variance="learned-range" if learned else "fixed-large")
    path = str(getattr(args, "path_type", "linear")).lower()
    target = str(getattr(args, "prediction", "velocity"))
    weight = str(getattr(args, "loss_weight", None) or "none")
    target = "velocity" if target == "v" else target
    if path not in PATHS or target not in names.PREDICTIONS or weight not in names.LOSS_WEIGHTS:
        raise SitError(
            f"the trainer's arguments say path {path}, prediction {target}, loss weight {weight}, "
            "which sit does not know",
            "--interpolant and --prediction override them",
        )
    return Flow(
        interpolant=interpolant or PATHS[path],
        prediction=prediction or target,
        loss_weight=weight,
    )


def official_keys(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors under the official keys, wrappers' prefixes taken off, and those set aside."""
    found = dict(state)
    for prefix in PREFIXES * 2:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    aside = {key: found.pop(key) for key in list(found) if key.startswith(PROJECTORS)}
    return found, aside


def config_of(
    path: object, state: dict[str, Tensor], *, heads: int | None, model: str | None
) -> TransformerConfig:
    """The network these tensors are of, each key and shape checked.

    Raises SitError naming the first wrong key and both shapes, UsageError for heads that nobody
    knows or a `model` of another size.
    """
    for key in ESSENTIAL:
        if key not in state:
            has = f"it begins with '{next(iter(state))}'" if state else "it holds no tensors"
            raise SitError(f"{path} has no '{key}': {has}", f"expected {KEYS}")
    if state["x_embedder.proj.weight"].ndim != 4:
        raise _wrong(path, state, "x_embedder.proj.weight", "width x channels x patch x patch")
    for key in ESSENTIAL[1:]:
        if state[key].ndim != 2:
            raise _wrong(path, state, key, "two dimensions")
    width = state["x_embedder.proj.weight"].shape[0]
    try:
        if "pos_embed" in state and (state["pos_embed"].ndim, state["pos_embed"].shape[-1]) != (
            3,
            width,
        ):
            raise _wrong(path, state, "pos_embed", f"1 x tokens x {width}")
        config = infer_config(state, heads=_heads(width, heads, model))
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise SitError(f"{path} holds no DiT or SiT: {error}", f"expected {KEYS}") from None
    _check_model(path, config, model)
    # A false depth or width would make a network of any size.
    if config.depth > len(state):
        raise SitError(f"{path} has {len(state)} tensors, too few for {config.depth} blocks")
    check_tensors(path, state, config)
    return config


def check_tensors(path: object, state: dict[str, Tensor], config: TransformerConfig) -> None:
    """SitError naming the first key or shape that is not the network's, or value not finite."""
    with torch.device("meta"):
        expected = {k: v.shape for k, v in Transformer(config).state_dict().items()}
    for key, shape in expected.items():
        if key not in state:
            raise SitError(f"{path} has no '{key}' ({format_shape(shape)})", "fetch it again")
        if state[key].shape != shape:
            raise _wrong(path, state, key, format_shape(shape))
        if not state[key].is_floating_point():
            raise SitError(f"{path}: '{key}' is {state[key].dtype}, not floating point")
        if not bool(torch.isfinite(state[key]).all()):
            raise SitError(f"{path}: '{key}' is not finite", "fetch it again")
    for key in state:
        if key not in expected:
            raise SitError(
                f"{path} holds '{key}' ({format_shape(state[key].shape)}), which no DiT or SiT has",
                f"expected {KEYS}",
            )


def _wrong(path: object, state: dict[str, Tensor], key: str, expected: str) -> SitError:
    found = format_shape(state[key].shape) or "a number"
    return SitError(f"{path}: '{key}' is {found}, not {expected}", "fetch it again")


def _heads(width: int, heads: int | None, model: str | None) -> int:
    if heads is not None:
        return heads
    size = model.split("-")[1].split("/")[0] if model else None
    if size in PRESETS and PRESETS[size][1] == width:
        return PRESETS[size][2]
    known = {preset[1]: preset[2] for preset in PRESETS.values()}
    if width not in known:
        raise UsageError(
            f"a network of width {width} is no preset: its attention heads leave no trace in the "
            "weights",
            "say how many: --heads 6",
        )
    return known[width]


def _check_model(path: object, config: TransformerConfig, model: str | None) -> None:
    if model is None:
        return
    size, patch = model.split("-", 1)[1].split("/")
    depth, width, _ = PRESETS[size]
    if (depth, width, int(patch)) != (config.depth, config.width, config.patch):
        raise UsageError(
            f"--model {model} has {depth} blocks of width {width} and patch {patch}, and {path} "
            f"{config.depth} of {config.width} and patch {config.patch}",
            "leave out --model's size: it is inferred",
        )


def model_name(family: str, config: TransformerConfig) -> str:
    """`SiT-XL/2`, or `SiT-12x512/4` for a size that is no preset."""
    for size, (depth, width, heads) in PRESETS.items():
        if (depth, width, heads) == (config.depth, config.width, config.heads):
            return f"{family}-{size}/{config.patch}"
    return f"{family}-{config.depth}x{config.width}/{config.patch}"
