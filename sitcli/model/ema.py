"""Moving averages of the weights, sharded over the processes."""

from __future__ import annotations

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
    A parameter that is not trained is its own average, and takes no memory.
    """

    def __init__(self, module: nn.Module, *, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.module = module
        self.parameters = dict(module.named_parameters())
        self.shards = {
            name: self._slice(p).detach().clone().float()
            for name, p in self.parameters.items()
            if p.requires_grad
        }

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """shard <- decay * shard + (1 - decay) * parameter, in one fused call."""
        live = [self._slice(self.parameters[name]).float() for name in self.shards]
        torch._foreach_lerp_(list(self.shards.values()), live, 1 - decay)

    @torch.no_grad()
    def gather(self, *, trained: bool = False) -> dict[str, Tensor]:
        """The whole average, copied to the CPU of rank 0, with the module's buffers; {} elsewhere.

        trained: of the parameters that are trained alone, without buffers. Every rank must call it.
        """
        state = {
            name: self._whole(self._share(name), parameter)
            for name, parameter in self.parameters.items()
            if name in self.shards or not trained
        }
        if self.rank:
            return {}
        if trained:
            return state
        buffers = {name: b.detach().to("cpu", copy=True) for name, b in self.module.named_buffers()}
        return state | buffers

    @property
    def num_bytes(self) -> int:
        """The bytes of this rank's share."""
        return sum(shard.nbytes for shard in self.shards.values())

    def is_finite(self) -> bool:
        """Whether this rank's share is finite, which implies that the averaged weights were."""
        return all(bool(torch.isfinite(shard).all()) for shard in self.shards.values())

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take this rank's slices of a whole average, of any world size."""
        for name, shard in self.shards.items():
            shard.copy_(self._cut(state[name].to(shard.device, torch.float32)))

    def _share(self, name: str) -> Tensor:
        """This rank's slice of a parameter's average."""
        if name in self.shards:
            return self.shards[name]
        return self._slice(self.parameters[name]).detach().float()

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
