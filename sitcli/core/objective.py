"""The terms that training adds to the process's own loss, all from one network evaluation.

The network returns more than its output (its `taps`): tokens after some of its blocks, an
auxiliary head's output, a projection of its tokens. The model decides which it has; this module
computes the terms from them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sitcli.core.flow import Flow, Loss

# network(x, t, y, route=..., taps=...) -> output, or (output, what was tapped) where taps are.
Tappable = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Extras:
    """The terms beside the loss, each with its weight; 0 is none.

    sync, sync_blocks: LayerSync between the tokens after an early and after a later block.
    internal: the loss of the auxiliary head's output. repa: alignment with given features.
    """

    sync: float = 0.0
    sync_blocks: tuple[int, int] = (0, 0)
    internal: float = 0.0
    repa: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the terms with a weight."""
        return tuple(name for name in ("sync", "internal", "repa") if getattr(self, name))

    @property
    def taps(self) -> tuple[int | str, ...]:
        """The taps that the network must return."""
        taps: list[int | str] = [*self.sync_blocks] if self.sync else []
        return (*taps, *(["aux"] if self.internal else []), *(["align"] if self.repa else []))


class Tapped:
    """A network as a process calls it, (x, t, y) -> output; `found` holds its last taps."""

    def __init__(self, network: Tappable, *, route: Any, taps: tuple[int | str, ...]) -> None:
        self.network, self.route, self.taps = network, route, taps
        self.found: dict[int | str, Tensor] = {}

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        # Without route and taps the call is that of the papers' network.
        more = {} if self.route is None else {"route": self.route}
        if not self.taps:
            return self.network(x, t, y, **more)
        output, self.found = self.network(x, t, y, taps=self.taps, **more)
        return output


def layer_sync(early: Tensor, late: Tensor) -> Tensor:
    """1 - cos of each token after an early block with itself after a later one, mean, (B,).

    early, late: (B, T, d). The later one is not pulled (Haghighi et al. 2025, LayerSync);
    1 - cos where the paper has -cos.
    """
    return alignment(early, late.detach())


def alignment(projected: Tensor, features: Tensor) -> Tensor:
    """1 - cos of each projected token with its feature, mean over the tokens, (B,).

    projected, features: (B, T, D). Yu et al. 2024 (REPA); 1 - cos where the paper has -cos.
    """
    return (1 - F.cosine_similarity(projected.float(), features.float(), dim=-1)).mean(1)


def to_tokens(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features (B, D, rows, columns) -> (B, T, D) on the network's grid of tokens, averaged or
    repeated where the two grids differ."""
    if tuple(features.shape[2:]) != grid:
        features = F.adaptive_avg_pool2d(features, grid)
    return features.flatten(2).transpose(1, 2)


def training_loss(
    process: Flow,
    network: Tappable,
    x_star: Tensor,
    y: Tensor,
    *,
    t: Tensor,
    eps: Tensor,
    extras: Extras,
    route: Any = None,
    features: Tensor | None = None,
) -> tuple[Loss, dict[str, Tensor]]:
    """The process's loss, and the extra terms by name, each (B,) and without its weight.

    features: (B, T, D), what REPA aligns with.
    """
    tapped = Tapped(network, route=route, taps=extras.taps)
    loss = process.loss(tapped, x_star, y, t=t, eps=eps)
    terms: dict[str, Tensor] = {}
    if extras.sync:
        terms["sync"] = layer_sync(*(tapped.found[block] for block in extras.sync_blocks))
    if extras.internal:
        aux = tapped.found["aux"]
        terms["internal"] = process.loss(lambda x, t, y: aux, x_star, y, t=t, eps=eps).loss
    if extras.repa:
        terms["repa"] = alignment(tapped.found["align"], features)
    return loss, terms


def weighted(loss: Tensor, terms: dict[str, Tensor], extras: Extras) -> Tensor:
    """loss + sum of weight x term, all (B,)."""
    for name, term in terms.items():
        loss = loss + getattr(extras, name) * term
    return loss
