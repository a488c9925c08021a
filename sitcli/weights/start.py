"""Weights of one network as the start of another: which are kept, resampled, or new."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sitcli.core.prediction import PREDICTIONS
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import TimestepEmbedder, frequencies, position_embedding
from sitcli.model.transformer import Transformer, tensor_shapes
from sitcli.text import count, format_shape
from sitcli.weights.positions import equal_to_rounding

KEPT, RESAMPLED, NEW, LEFT_OUT = "kept", "resampled", "new", "left out"
LABELS, POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"
HEADS = ("final_layer.linear.", "aux_final_layer.linear.")
TIMES = "t_embedder.mlp.0.weight"
# What must agree: of a network of another shape nothing would be left.
SHAPE = ("width", "depth", "heads", "block", "mlp")


class Fate(NamedTuple):
    """What becomes of a part of the source, or where one of the new network comes from."""

    what: str  # KEPT, RESAMPLED, NEW or LEFT_OUT
    part: str
    remark: str = ""


@dataclass(frozen=True)
class Start:
    """A start for a network: its tensors, as far as they come from the source.

    values: name -> a function of the network's own initial tensor; a tensor that is not there
    stays as it was initialised. new: the names of the tensors that are not the source's own.
    fates: all of it, for people and for the record.
    """

    values: Mapping[str, Callable[[Tensor], Tensor]]
    new: frozenset[str]
    fates: Sequence[Fate]

    def of(self, network: Transformer) -> dict[str, Tensor]:
        """The state dict that `network`, freshly initialised, begins from."""
        return {
            name: self.values[name](tensor) if name in self.values else tensor
            for name, tensor in network.state_dict().items()
        }


def start_from(
    weights: dict[str, Tensor],
    source: TransformerConfig,
    config: TransformerConfig,
    *,
    source_classes: Sequence[str],
    classes: Sequence[str],
) -> Start:
    """The start of a network of `config` from the `weights` of one of `source`.

    The two agree in SHAPE. source_classes, classes: the names of their classes, [] if unknown.
    Labels keep the rows of the classes that both have by name; two networks of equally many
    classes, of which one has no names, keep all rows in their order.
    """
    shapes = tensor_shapes(config)
    values: dict[str, Callable[[Tensor], Tensor]] = {}
    fates, kept = [], 0
    for name, shape in shapes.items():
        given = weights.get(name)
        if name == POSITIONS:
            value, fate = _positions(given, source, config)
        elif name == LABELS:
            value, fate = _labels(given, source, config, source_classes, classes)
        elif given is None:
            value, fate = None, Fate(NEW, name)
        elif given.shape == shape:
            value, fate = _same(given), Fate(KEPT, name)
        elif name.startswith(HEADS) and source.patch == config.patch:
            value, fate = _head(name, given, source, config)
        else:
            before, now = format_shape(given.shape), format_shape(shape)
            value, fate = None, Fate(NEW, name, f"{now}, was {before}")
        if value is not None:
            values[name] = value
        if fate.what == KEPT and not fate.remark:
            kept += 1
        else:
            fates.append(fate)
    new = frozenset(fate.part for fate in fates if fate.what != KEPT)
    left = [Fate(LEFT_OUT, name) for name in weights if name not in shapes]
    fates += left + _parts(source, config)
    return Start(values, new, [Fate(KEPT, count(kept, "tensor")), *_grouped(fates)])


def _same(tensor: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda fresh: tensor.to(fresh.dtype)


def _positions(
    given: Tensor | None, source: TransformerConfig, config: TransformerConfig
) -> tuple[Callable[[Tensor], Tensor], Fate]:
    """Fixed positions are computed for the new grid; others are resampled to it."""
    old, new = source.grid, config.grid
    if given is not None and old == new:
        return _same(given), Fate(KEPT, POSITIONS)
    computed = position_embedding(config.width, *new)
    words = f"{format_shape(new)} tokens, were {format_shape(old)}"
    standard = given is None or equal_to_rounding(given, position_embedding(source.width, *old))
    if standard:
        return _same(computed), Fate(RESAMPLED, POSITIONS, f"{words}: computed")
    grid = given.reshape(1, *old, -1).permute(0, 3, 1, 2).float()
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    flat = resized.permute(0, 2, 3, 1).reshape(1, math.prod(new), -1)
    return _same(flat), Fate(RESAMPLED, POSITIONS, f"{words}: learned, interpolated bicubically")


def _labels(
    given: Tensor | None,
    source: TransformerConfig,
    config: TransformerConfig,
    source_classes: Sequence[str],
    classes: Sequence[str],
) -> tuple[Callable[[Tensor], Tensor] | None, Fate]:
    """The rows of the classes that both have; the null class keeps its row."""
    if given is None:
        return None, Fate(NEW, LABELS)
    number = {name: i for i, name in enumerate(source_classes)}
    rows = {i: number[name] for i, name in enumerate(classes) if name in number}
    unnamed = not source_classes or not classes
    if unnamed and source.num_classes == config.num_classes:
        rows = {i: i for i in range(config.num_classes)}
    table = {**rows, config.null_class: source.null_class}
    into, from_ = list(table), list(table.values())
    if into == from_ and len(into) == config.num_classes + 1 == len(given):
        why = "of classes without names, in their order" if unnamed and rows else ""
        return _same(given), Fate(KEPT, LABELS, why)

    def value(fresh: Tensor) -> Tensor:
        made = fresh.clone()
        made[into] = given[from_].to(fresh.dtype)
        return made

    new = config.num_classes - len(rows)
    words = f"{new} of {count(config.num_classes, 'class', 'classes')} begin anew"
    if rows:
        words += f", {len(rows)} keep the rows of their names"
    if not config.num_classes:
        words = "the null class alone"
    return value, Fate(NEW if new else KEPT, LABELS, words)


def _head(
    name: str, given: Tensor, source: TransformerConfig, config: TransformerConfig
) -> tuple[Callable[[Tensor], Tensor] | None, Fate]:
    """An output layer for more or fewer channels: the first `channels` are the prediction.

    A token's outputs are ordered (p, q, channel).
    """
    both = min(source.channels, config.channels)
    if source.channels != config.channels:
        words = f"{config.channels} channels, were {source.channels}"
        return None, Fate(NEW, name, words)
    more = config.out_channels > source.out_channels
    words = "the learned sigma begins as 0" if more else "without the learned sigma"

    def value(fresh: Tensor) -> Tensor:
        made = fresh.clone().unflatten(0, (-1, config.out_channels))
        made[:, :both] = given.unflatten(0, (-1, source.out_channels))[:, :both].to(fresh.dtype)
        return made.flatten(0, 1)

    return value, Fate(RESAMPLED, name, words)


def _parts(source: TransformerConfig, config: TransformerConfig) -> list[Fate]:
    """Parts of a network without weights of their own, in which the two differ."""
    fates = []
    if source.norm != config.norm:
        fates.append(Fate(NEW, f"{config.norm} norms", f"were {source.norm} norms"))
    if source.mlp_eps != config.mlp_eps:
        fates.append(Fate(NEW, f"eps {config.mlp_eps:g}", f"was {source.mlp_eps:g}"))
    if source.rope != config.rope:
        fates.append(Fate(NEW if config.rope else LEFT_OUT, "RoPE"))
    return fates


def _grouped(fates: Sequence[Fate]) -> list[Fate]:
    """One line for the tensors of one part that share their fate: `blocks.*.attn.q_norm.weight`."""
    groups: dict[Fate, int] = {}
    for fate in fates:
        words = fate.part.split(".")
        part = ".".join("*" if word.isdigit() and words[0] == "blocks" else word for word in words)
        key = Fate(fate.what, part, fate.remark)
        groups[key] = groups.get(key, 0) + 1
    order = [KEPT, RESAMPLED, NEW, LEFT_OUT]
    return sorted(groups, key=lambda fate: order.index(fate.what))


def turn_time(weights: dict[str, Tensor], prediction: str) -> dict[str, Tensor]:
    """The weights of a network N as those of one that takes 1 - t in the place of t.

    It computes N(x, 1 - t, y), and for a prediction that turns with time the negative of it. The
    times enter as cos(omega t) and sin(omega t), and those of 1 - t are a rotation of these, which
    the layer behind them takes up: exact up to the rounding of float32.
    """
    turned = dict(weights)
    omega = frequencies(TimestepEmbedder.frequency_dim).double()
    cos, sin = omega.cos(), omega.sin()
    a, b = weights[TIMES].double().chunk(2, dim=1)
    # a cos(w(1-t)) + b sin(w(1-t)) = (a cos w + b sin w) cos(wt) + (a sin w - b cos w) sin(wt)
    turned[TIMES] = torch.cat([a * cos + b * sin, a * sin - b * cos], dim=1).float()
    if PREDICTIONS[prediction].turns_with_time:
        turned |= {name: -t for name, t in weights.items() if name.startswith(HEADS)}
    return turned
