"""Moving averages of the weights, sharded over the processes, and what follows from several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


def ema_decay(step: int, *, decay: float, warmup: bool) -> float:
    """The decay of update `step` (from 0): min(decay, (1+step)/(10+step)) while warming up."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class ShardedEma:
    """fp32 average of a module's parameters; each rank keeps and updates one slice of each.

    The slice of rank r is flat[r n : (r+1) n] with n = ceil(numel / world size), which is also how
    ZeRO-3 partitions a parameter, so updating never gathers anything under any ZeRO stage.
    """

    def __init__(self, module: nn.Module, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.module = module
        self.parameters = dict(module.named_parameters())
        self.shards = {
            name: self._slice(p).detach().clone().float() for name, p in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """shard <- decay * shard + (1 - decay) * parameter, in one fused call."""
        live = [self._slice(p).float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.shards.values()), live, 1 - decay)

    @torch.no_grad()
    def gather(self) -> dict[str, Tensor]:
        """The whole average, copied to the CPU of rank 0, with the module's buffers; {} elsewhere.

        Every rank must call it.
        """
        state = {name: self._whole(self.shards[name], p) for name, p in self.parameters.items()}
        if self.rank:
            return {}
        buffers = {name: b.detach().to("cpu", copy=True) for name, b in self.module.named_buffers()}
        return state | buffers

    @property
    def num_bytes(self) -> int:
        """What this rank's share takes."""
        return sum(shard.nbytes for shard in self.shards.values())

    def is_finite(self) -> bool:
        """Whether this rank's share is; the weights that went into it were, then."""
        return all(bool(torch.isfinite(shard).all()) for shard in self.shards.values())

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take this rank's slices of a whole average, of any world size."""
        for name, shard in self.shards.items():
            shard.copy_(self._cut(state[name].to(shard.device, torch.float32)))

    def _slice(self, parameter: nn.Parameter) -> Tensor:
        partition = getattr(parameter, "ds_tensor", None)  # set by ZeRO-3
        return self._cut(parameter.data) if partition is None else partition.data.flatten()

    def _cut(self, whole: Tensor) -> Tensor:
        """This rank's slice of a whole tensor, padded with zeros to the common length."""
        flat = whole.flatten()
        length = -(-flat.numel() // self.world_size)
        piece = flat[self.rank * length : (self.rank + 1) * length]
        missing = length - piece.numel()
        return nn.functional.pad(piece, (0, missing)) if missing else piece

    def _whole(self, shard: Tensor, parameter: nn.Parameter) -> Tensor | None:
        """One parameter's average on the CPU of rank 0; None elsewhere."""
        shape = getattr(parameter, "ds_shape", parameter.shape)
        if self.world_size > 1:
            pieces = [torch.empty_like(shard) for _ in range(self.world_size)]
            dist.gather(shard, None if self.rank else pieces)
            if self.rank:
                return None
            shard = torch.cat(pieces)
        return shard[: shape.numel()].view(shape).to("cpu", copy=True)


# --- averages of a power of time -----------------------------------------------------------------

# The relative widths that are tracked (Karras et al. 2023, section 3.1).
TRACKED_STDS = (0.05, 0.10)
LEAST_STD, MOST_STD = 0.005, 0.28  # beyond, the exponent is in the thousands, or negative


def power_exponent(std: float) -> float:
    """gamma of the average whose weights p(tau) = (gamma+1) tau^gamma / t^(gamma+1) have this std.

    std is relative to t. Karras et al. 2023 ("Analyzing and Improving the Training Dynamics of
    Diffusion Models"), eq. 3 (std = sqrt(gamma+1) / ((gamma+2) sqrt(gamma+3))) solved for gamma:
    its equation's only positive root, by bisection. Raises ValueError outside LEAST_STD..MOST_STD.
    """
    if not LEAST_STD <= std <= MOST_STD:
        raise ValueError(f"a relative width is between {LEAST_STD} and {MOST_STD}, not {std:g}")
    low, high = 0.0, 1.0
    while _relative_std(high) > std:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _relative_std(middle) > std else (low, middle)
    return (low + high) / 2


def _relative_std(gamma: float) -> float:
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


def power_decay(step: int, gamma: float) -> float:
    """The decay of update `step` (from 0): (1 - 1/t)^(gamma+1), t = step + 1 (eq. 2).

    The first update takes the weights as they are.
    """
    return (1 - 1 / (step + 1)) ** (gamma + 1)


class Snapshot(NamedTuple):
    """An average as it stood after `step` updates; std: its relative width."""

    step: int
    std: float


def overlap(a: Snapshot, b: Snapshot) -> float:
    """The integral of the product of two averages' weights over time, in 1/steps.

    Karras et al. 2023, appendix C.
    """
    p, q = power_exponent(a.std), power_exponent(b.std)
    least = math.log(min(a.step, b.step))
    log = (p + q + 1) * least - (p + 1) * math.log(a.step) - (q + 1) * math.log(b.step)
    return (p + 1) * (q + 1) / (p + q + 1) * math.exp(log)


def posthoc_coefficients(snapshots: Sequence[Snapshot], target: Snapshot) -> list[float]:
    """Factors of the snapshots whose sum is closest to the target average.

    Least squares between the weights' functions of time (Karras et al. 2023, appendix C): A c = b
    with the overlaps of the snapshots among each other and with the target. Later snapshots than
    the target are not used.
    """
    use = [snapshot.step <= target.step for snapshot in snapshots]
    used = [snapshot for snapshot, there in zip(snapshots, use, strict=True) if there]
    if not used:
        raise ValueError(f"no snapshot is of step {target.step} or before")
    A = torch.tensor([[overlap(a, b) for b in used] for a in used], dtype=torch.float64)
    b = torch.tensor([overlap(a, target) for a in used], dtype=torch.float64)
    # Profiles of one step have norms of all sizes: the solution is scaled for the rounding.
    scale = A.diagonal().rsqrt()
    solved = torch.linalg.lstsq(scale[:, None] * A * scale, scale * b, driver="gelsd").solution
    found = iter((scale * solved).tolist())
    return [next(found) if there else 0.0 for there in use]


def posthoc_error(
    snapshots: Sequence[Snapshot], coefficients: Sequence[float], target: Snapshot
) -> float:
    """Norm of what the sum misses of the target's weights, relative to theirs: 0 is exact."""
    own = overlap(target, target)
    cross = sum(c * overlap(s, target) for c, s in zip(coefficients, snapshots, strict=True))
    both = sum(
        c * e * overlap(s, r)
        for c, s in zip(coefficients, snapshots, strict=True)
        for e, r in zip(coefficients, snapshots, strict=True)
    )
    return math.sqrt(max(0.0, own - 2 * cross + both) / own)
