"""The official DiT and SiT state dicts: their keys, shapes and the network they describe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from sitcli.errors import SitError, UsageError
from sitcli.model.blocks import BLOCKS, MLPS, NORMS, QK_NORMS, Style
from sitcli.model.config import PRESETS, TransformerConfig
from sitcli.model.embed import position_embedding
from sitcli.model.transformer import tensor_shapes
from sitcli.text import format_shape

PREFIXES = ("module.", "_orig_mod.", "model.")  # from DDP, torch.compile and trainers' wrappers
AUTOENCODER = "autoencoder."  # prefix of an autoencoder's arrays in files that sit export wrote
PROJECTORS = "projectors."  # prefix of REPA's projectors, which only training needs
BLOCK = re.compile(r"blocks\.(\d+)\.")
# The blocks after the one that is projected, in REPA's older files.
LATER_BLOCK = re.compile(r"decoder_blocks\.(\d+)\.")
NO_FIELDS: Mapping[str, Any] = {}
BATCH_NORM = "bn."  # prefix of the statistics by which REPA-E normalises latents
ESSENTIAL = (
    "x_embedder.proj.weight",
    "t_embedder.mlp.0.weight",
    "y_embedder.embedding_table.weight",
    "blocks.0.attn.qkv.weight",
    "final_layer.linear.weight",
)
KEYS = "keys as in the official DiT and SiT: x_embedder, t_embedder, y_embedder, blocks, ..."


def official_keys(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors with wrappers' prefixes removed from their keys, and apart from them REPA's
    projectors and the statistics of latents in REPA-E's networks.

    REPA's older files number the blocks after the projector from 0 again.
    """
    found = dict(state)
    for prefix in PREFIXES * 2:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    first = 1 + max((int(m[1]) for m in map(BLOCK.match, found) if m), default=-1)
    found = {
        LATER_BLOCK.sub(lambda m: f"blocks.{first + int(m[1])}.", key): value
        for key, value in found.items()
    }
    aside = {key: found.pop(key) for key in list(found) if key.startswith((PROJECTORS, BATCH_NORM))}
    return found, aside


def to_float32(states: Iterable[dict[str, Tensor]]) -> list[str]:
    """Convert all floating-point tensors, in place; returns the other types that there were."""
    others = set()
    for state in states:
        for key, value in state.items():
            if value.is_floating_point() and value.dtype != torch.float32:
                others.add(str(value.dtype).removeprefix("torch."))
                state[key] = value.float()
    return sorted(others)


def learns_sigma(state: dict[str, Tensor]) -> bool:
    """Whether the network outputs twice the channels it takes; `config_of` checks shapes later."""
    out, patches = (state.get(key) for key in ("final_layer.linear.bias", "x_embedder.proj.weight"))
    if out is None or patches is None or patches.ndim != 4:
        return False
    return out.numel() == 2 * patches[0].numel()


def config_of(
    path: object,
    state: dict[str, Tensor],
    *,
    heads: int | None,
    model: str | None,
    unseen: Mapping[str, Any] = NO_FIELDS,
) -> TransformerConfig:
    """The configuration of the network with these tensors, after checking every key and shape.

    heads, model: --heads and --model, None if not given; unseen: fields that tensors do not show;
    path: the file that errors name.
    Raises SitError naming the first wrong key and both shapes, UsageError if the number of heads
    is unknown or `model` has another size.
    """
    essential = [_first(state, key) for key in ESSENTIAL]
    for key in essential:
        if key not in state:
            has = f"it begins with '{next(iter(state))}'" if state else "it holds no tensors"
            raise SitError(f"{path} has no '{key}': {has}", f"expected {KEYS}")
    if state["x_embedder.proj.weight"].ndim != 4:
        raise _wrong(path, state, "x_embedder.proj.weight", "width x channels x patch x patch")
    for key in essential[1:]:
        if state[key].ndim != 2:
            raise _wrong(path, state, key, "two dimensions")
    width = state["x_embedder.proj.weight"].shape[0]
    try:
        if "pos_embed" in state and (state["pos_embed"].ndim, state["pos_embed"].shape[-1]) != (
            3,
            width,
        ):
            raise _wrong(path, state, "pos_embed", f"1 x tokens x {width}")
        config = infer_config(state, heads=_heads(state, heads, model), unseen=unseen)
    except (ValueError, KeyError, ZeroDivisionError) as error:
        raise SitError(f"{path} holds no DiT or SiT: {error}", f"expected {KEYS}") from None
    _check_model(path, config, model)
    # A damaged file may claim any depth: check it before a network of that depth is built.
    if config.depth > len(state):
        raise SitError(f"{path} has {len(state)} tensors, too few for {config.depth} blocks")
    check_tensors(path, state, config)
    return config


def check_tensors(path: object, state: dict[str, Tensor], config: TransformerConfig) -> None:
    """Raise SitError naming the first tensor that does not fit the network or is not finite."""
    expected = tensor_shapes(config)
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
            more = len(state.keys() - expected.keys()) - 1
            others = f", and {more} more tensors that" if more else ", which"
            shape = format_shape(state[key].shape)
            raise SitError(
                f"{path} holds '{key}' ({shape}){others} no DiT or SiT has",
                f"expected {KEYS}",
            )


def _wrong(path: object, state: dict[str, Tensor], key: str, expected: str) -> SitError:
    found = format_shape(state[key].shape) or "a number"
    return SitError(f"{path}: '{key}' is {found}, not {expected}", "fetch it again")


def _heads(state: dict[str, Tensor], heads: int | None, model: str | None) -> int:
    if heads is not None:
        return heads
    width, norm = len(state["x_embedder.proj.weight"]), state.get("blocks.0.attn.q_norm.weight")
    if norm is not None and norm.numel() and width % norm.numel() == 0:
        return width // norm.numel()
    size = model.split("-")[1].split("/")[0] if model else None
    if size in PRESETS and PRESETS[size][1] == width:
        return PRESETS[size][2]
    known = {preset[1]: preset[2] for preset in PRESETS.values()}
    if width not in known:
        raise UsageError(
            f"cannot tell the number of attention heads: the weights do not show it, and no preset "
            f"has width {width}",
            "add the number, e.g. --heads 6",
        )
    return known[width]


def _check_model(path: object, config: TransformerConfig, model: str | None) -> None:
    if model is None:
        return
    size, patch = model.split("-", 1)[1].split("/")
    depth, width, _ = PRESETS[size]
    if (depth, width, int(patch)) != (config.depth, config.width, config.patch):
        raise UsageError(
            f"--model {model} has {depth} blocks of width {width} and patch {patch}, but {path} "
            f"has {config.depth} of width {config.width} and patch {config.patch}",
            "name the size that the file holds, or replace --model by --lineage",
        )


def model_name(family: str, config: TransformerConfig) -> str:
    """The model's name: `SiT-XL/2`, or `SiT-12x512/4` (depth x width) for a size without preset."""
    for size, (depth, width, heads) in PRESETS.items():
        if (depth, width, heads) == (config.depth, config.width, config.heads):
            return f"{family}-{size}/{config.patch}"
    return f"{family}-{config.depth}x{config.width}/{config.patch}"


def infer_config(
    state: dict[str, Tensor], *, heads: int, unseen: Mapping[str, Any] = NO_FIELDS
) -> TransformerConfig:
    """The configuration of weights in the official layout, from the shapes of their tensors.

    The number of heads cannot be seen in them; neither can `unseen`, such as rotary embeddings.
    Raises KeyError for a missing tensor, ValueError for blocks of an unknown design or a position
    embedding that fits no grid.
    """
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    out = state["final_layer.linear.weight"].shape[0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    rows, columns = infer_grid(state["pos_embed"])
    return TransformerConfig(
        input_size=rows * patch,
        input_width=None if rows == columns else columns * patch,
        patch=patch,
        channels=channels,
        out_channels=out // patch**2,
        width=width,
        depth=depth,
        heads=heads,
        num_classes=state[_first(state, "y_embedder.embedding_table.weight")].shape[0] - 1,
        own_embedders=_first(state, "t_embedder.") != "t_embedder.",
        **(_infer_block(state, width, heads) | dict(unseen)),
    )


def _first(state: dict[str, Tensor], key: str) -> str:
    """The key itself, or that of the first block's where every block has embedders of its own."""
    own = "t_embedder.0.mlp.0.weight" in state
    return re.sub(r"^([ty]_embedder)\.", r"\1.0.", key) if own else key


def infer_grid(pos_embed: Tensor) -> tuple[int, int]:
    """Rows and columns of the grid whose sin-cos position embedding is `pos_embed` (1, T, d).

    A learned embedding matches no grid; it is taken to be square.
    Raises ValueError for a learned embedding whose T is not a square number.
    """
    _, tokens, width = pos_embed.shape
    for rows in range(1, tokens + 1):
        if tokens % rows == 0:
            grid = rows, tokens // rows
            if torch.allclose(pos_embed.float(), position_embedding(width, *grid), atol=1e-5):
                return grid
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"pos_embed has {tokens} tokens, which fit no known grid")
    return side, side


def _infer_block(state: dict[str, Tensor], width: int, heads: int) -> dict[str, Any]:
    """The fields of the config that say what the blocks are made of: their design and its parts,
    whose parameters have the names and shapes of the first block's.
    """
    prefix = "blocks.0."
    found = {k.removeprefix(prefix): v.shape for k, v in state.items() if k.startswith(prefix)}
    kinds = QK_NORMS if "attn.q_norm.weight" in found else [Style().qk_kind]
    for block, mlp, norm, qk_kind in product(BLOCKS, MLPS, NORMS, kinds):
        style = Style(mlp, norm, kinds is QK_NORMS, qk_kind)
        with torch.device("meta"):
            made = BLOCKS[block].block(width, heads, style)
        if {k: v.shape for k, v in made.state_dict().items()} == found:
            return {"block": block, **style._asdict()}
    raise ValueError(f"the parameters of {prefix[:-1]} fit no known design: {[*found]}")
