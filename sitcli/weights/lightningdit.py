"""LightningDiT's tensors, brought into the order in which our network computes its function."""

from __future__ import annotations

import torch
from torch import Tensor

from sitcli.errors import SitError
from sitcli.model.embed import rotary_embedding
from sitcli.weights.positions import grid_or_none

ROPE = "feat_rope."  # its tables of cosines and sines, which our network computes itself
# Its tables are computed in float32: an angle of at most 1,000 is off by 1,000 x 6e-8.
ANGLE_ERROR = 1e-4
MODULATION = "adaLN_modulation.1."


def rope_heads(state: dict[str, Tensor]) -> int | None:
    """The number of attention heads by the tables of its RoPE, None if there are none."""
    table, patches = state.get(f"{ROPE}freqs_cos"), state.get("x_embedder.proj.weight")
    if table is None or patches is None or table.ndim != 2 or not table.shape[1]:
        return None
    return max(1, patches.shape[0] // table.shape[1])


def from_lightningdit(path: object, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a LightningDiT, with which our network computes the same function.

    Its RoPE turns channel 2i of a head together with 2i + 1, ours channel i with i + D/2: the rows
    of queries and keys are reordered, which leaves their products as they are. A modulation
    without shifts (its wo_shift) gets shifts of zero.
    Raises SitError for a RoPE of other frequencies than ours.
    """
    state = dict(state)
    tables = {key: state.pop(key) for key in list(state) if key.startswith(ROPE)}
    patches = state.get("x_embedder.proj.weight")
    if patches is None:
        return state  # `config_of` raises the error, where it checks the keys
    width = patches.shape[0]
    if tables:
        head_width = _check_tables(path, tables, state)
        if width % head_width == 0:
            state = {key: _unpaired(key, value, width, head_width) for key, value in state.items()}
    for key, value in state.items():
        if key.startswith("blocks.") and MODULATION in key and len(value) == 4 * width:
            scale1, gate1, scale2, gate2 = value.chunk(4)
            shift = torch.zeros_like(scale1)
            state[key] = torch.cat([shift, scale1, gate1, shift, scale2, gate2])
    return state


def _unpaired(key: str, value: Tensor, width: int, head_width: int) -> Tensor:
    """The tensor of this key, with the channels 0, 2, 4, ..., 1, 3, ... of queries' and keys' heads
    in this order.
    """
    order = torch.arange(head_width).view(-1, 2).T.flatten()
    if ".attn.q_norm." in key or ".attn.k_norm." in key:
        return value[order] if len(value) == head_width else value
    if ".attn.qkv." not in key or len(value) != 3 * width:
        return value
    queries_keys, values = value.split([2 * width, width])
    heads = queries_keys.unflatten(0, (-1, head_width))
    return torch.cat([heads[:, order].flatten(0, 1), values])


def _check_tables(path: object, tables: dict[str, Tensor], state: dict[str, Tensor]) -> int:
    """The channels of a head. Raises SitError if the tables are not those of our RoPE."""
    wrong = SitError(
        f"{path}: its RoPE ({', '.join(tables)}) is not LightningDiT's",
        "sit import takes RoPE of frequencies 10000^(-i / (D/4)) along rows and columns",
    )
    cos, sin = (tables.get(f"{ROPE}freqs_{name}") for name in ("cos", "sin"))
    given = state.get("pos_embed")
    grid = None if given is None or given.ndim != 3 else grid_or_none(given)
    if cos is None or sin is None or len(tables) != 2 or cos.ndim != 2 or cos.shape[1] % 4:
        raise wrong
    if grid is None:  # without positions the tables' own grid is square
        grid = (round(len(cos) ** 0.5),) * 2
    rope = rotary_embedding(cos.shape[1], *grid, 0, torch.device("cpu"))
    for found, ours in ((cos, rope.cos), (sin, rope.sin)):
        expected = ours[0, 0].repeat_interleave(2, dim=1)
        if found.shape != expected.shape or bool(
            (found.float() - expected).abs().max() > ANGLE_ERROR
        ):
            raise wrong
    return cos.shape[1]
