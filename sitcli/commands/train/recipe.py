"""Training options beyond the papers: their defaults for a network, parsed and checked."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from sitcli.commands.parsing import parse_shift
from sitcli.core.objective import Extras
from sitcli.core.times import PLAIN, TIME_DISTRIBUTIONS, Times
from sitcli.errors import UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.settings.train import TrainSettings

SYNC_SHARES = 8 / 28, 16 / 28  # LayerSync's blocks in SiT-XL


class Routing(NamedTuple):
    """TREAD's routing: `share` of the tokens skip the blocks start .. stop - 1 (from 0)."""

    share: float
    start: int
    stop: int

    def kept(self, tokens: int) -> int:
        """How many of an image's `tokens` skip no block, at least one."""
        return max(1, tokens - round(self.share * tokens))


def resolve_recipe(
    settings: TrainSettings, store: LatentStore | JoinedStores, depth: int
) -> TrainSettings:
    """The settings with all that depends on the network's depth and the store filled in.

    Raises UsageError for bad values, and for options that have no effect without another.
    """
    s = settings
    with_moments = [name for name, row in TIME_DISTRIBUTIONS.items() if row.has_moments]
    moments = f"--t-dist {' or '.join(with_moments)}"
    for option, of, used in (
        ("t_mean", moments, s.t_dist in with_moments),
        ("t_std", moments, s.t_dist in with_moments),
        ("t_dist_until", moments, s.t_dist != PLAIN.distribution),
        ("sync_blocks", "--layer-sync", s.layer_sync > 0),
        ("aux_block", "--internal-guidance", s.internal_guidance > 0),
        ("tread_blocks", "--tread", s.tread > 0),
    ):
        if getattr(s, option) is not None and not used:
            flag = option.replace("_", "-")
            raise UsageError(
                f"--{flag} has no effect without {of}", f"remove --{flag}, or add {of}"
            )
    if s.qk_kind != TrainSettings.qk_kind and not s.qk_norm:
        raise UsageError("--qk-kind has no effect without --qk-norm", "add --qk-norm")
    filled: dict[str, Any] = {}
    if s.t_dist in with_moments:
        filled["t_mean"] = s.t_mean if s.t_mean is not None else Times.mean
        filled["t_std"] = s.t_std if s.t_std is not None else Times.std
    shift = parse_shift(s.t_shift, store.latent_shape)
    filled["t_shift"] = None if shift == 1 else f"{shift:.6g}"
    if s.layer_sync:
        pair = _pair("sync-blocks", s.sync_blocks or _sync_blocks(depth), depth)
        filled["sync_blocks"] = "{},{}".format(*pair)
    if s.internal_guidance:
        block = s.aux_block or max(1, min(8, depth // 3))
        if not 0 < block < depth:
            raise UsageError(
                f"--aux-block {block}: the network has {depth} blocks", f"use 1 to {depth - 1}"
            )
        filled["aux_block"] = block
    if s.tread:
        default = f"2,{depth - 4}" if depth >= 8 else f"1,{depth - 1}"
        pair = _pair("tread-blocks", s.tread_blocks or default, depth)
        filled["tread_blocks"] = "{},{}".format(*pair)
    if s.repa is not None:
        weight, block = parse_repa(s.repa, depth)
        if store.align_width is None:
            raise UsageError(
                f"--repa: {store.path} holds no features to align with",
                "encode the images again with --align-features dinov2",
            )
        filled["repa"] = f"{weight:g},{block}"
    return dataclasses.replace(s, **filled)


def _sync_blocks(depth: int) -> str:
    early, late = (max(1, round(share * depth)) for share in SYNC_SHARES)
    return f"{early},{max(late, early + 1)}"


def _pair(flag: str, text: str, depth: int) -> tuple[int, int]:
    """'2,8' -> (2, 8). Raises UsageError unless 0 < first < second <= depth."""
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    pair = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < pair[0] < pair[1] <= depth:
        raise UsageError(
            f"--{flag} {text}: not two blocks of {depth}, the first before the second",
            f"e.g. --{flag} {_sync_blocks(depth)}" if depth > 1 else f"remove --{flag}",
        )
    return pair


def parse_repa(text: str, depth: int) -> tuple[float, int]:
    """'0.5,8' -> (0.5, 8), the weight and the block. Raises UsageError for anything else."""
    try:
        weight, block = text.split(",")
        parsed = float(weight), int(block)
    except ValueError:
        parsed = math.nan, 0
    if not (0 < parsed[0] < math.inf and 0 < parsed[1] < depth):
        raise UsageError(
            f"--repa {text}: LAMBDA is above 0, and BLOCK one of the first {depth - 1} blocks",
            f"e.g. --repa 0.5,{max(1, min(8, depth // 3))}",
        )
    return parsed


def network_parts(settings: TrainSettings, store: LatentStore | JoinedStores) -> dict[str, Any]:
    """Fields of TransformerConfig beyond the papers, from resolved settings."""
    parts: dict[str, Any] = {
        name: getattr(settings, name) for name in ("mlp", "norm", "rope", "qk_norm", "qk_kind")
    }
    if settings.internal_guidance:
        parts["aux_block"] = settings.aux_block
    if settings.repa is not None:
        parts["align_block"] = int(settings.repa.split(",")[1])
        parts["align_width"] = store.align_width
    return parts


def make_extras(settings: TrainSettings) -> Extras:
    """The terms beside the main loss, from resolved settings."""
    s = settings
    return Extras(
        sync=s.layer_sync,
        sync_blocks=_numbers(s.sync_blocks) if s.layer_sync else (0, 0),
        internal=s.internal_guidance,
        repa=float(s.repa.split(",")[0]) if s.repa is not None else 0.0,
    )


def make_routing(settings: TrainSettings) -> Routing | None:
    """TREAD's routing, from resolved settings; None without --tread."""
    if not settings.tread:
        return None
    return Routing(settings.tread, *_numbers(settings.tread_blocks))


def make_times(settings: TrainSettings, step: int) -> Times:
    """How step `step` (from 0) draws its times."""
    s = settings
    shift = float(s.t_shift or 1)
    if s.t_dist == PLAIN.distribution or (s.t_dist_until is not None and step >= s.t_dist_until):
        return dataclasses.replace(PLAIN, shift=shift)
    moments = dict(mean=s.t_mean, std=s.t_std) if s.t_mean is not None else {}
    return Times(distribution=s.t_dist, shift=shift, **moments)


def _numbers(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first), int(second)


class Schedule(NamedTuple):
    """A schedule of the learning rate.

    factor(left): the factor on the learning rate, where left is the share of the steps after the
    warm-up that is still to come; whole_run: whether it depends on the number of all steps.
    """

    factor: Callable[[float], float]
    whole_run: bool = True


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(lambda left: 1.0, whole_run=False),
    "cosine": Schedule(lambda left: 0.5 * (1 - math.cos(math.pi * left))),
    "linear": Schedule(lambda left: left),
}


def learning_rate(settings: TrainSettings, step: int, *, since: int = 0) -> float:
    """The learning rate of update `step` (from 0): linear warm-up, then the schedule.

    since: the step from which both count.
    """
    step, steps = step - since, settings.steps - since
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    left = 1 - (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.lr * SCHEDULES[settings.schedule].factor(left)
