"""DeepSpeed, made boring: the process group, the engine and its optimizer state."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sitcli.errors import SitError
from sitcli.io.launch import quiet_libraries


@dataclass(frozen=True)
class World:
    """This process among all of them, as torchrun's environment says; (0, 1) without it."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> World:
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def slice(self, number: int) -> slice:
        """This rank's share of `number` items, which the world size divides."""
        share = number // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


@contextlib.contextmanager
def process_group(world: World, device: torch.device) -> Iterator[None]:
    """Join the process group; without a launcher, a group of one that needs no port.

    DeepSpeed keeps hold of the first group it sees, so a group of one lasts as long as the process.
    """
    deepspeed = import_deepspeed(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size == 1 and not dist.is_initialized():
        atexit.register(dist.destroy_process_group)
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    # DeepSpeed reads these even where the group exists already.
    for name, value in dict(RANK=0, WORLD_SIZE=1, LOCAL_RANK=device.index or 0).items():
        os.environ.setdefault(name, str(value))
    deepspeed.init_distributed(dist_backend=backend, verbose=False)
    if world.size == 1:
        yield
        return
    try:
        yield
        dist.barrier()  # a rank that leaves early makes the others abort
    finally:
        dist.destroy_process_group()


def import_deepspeed(device: torch.device) -> Any:
    """The deepspeed module, silent, on stderr where it must speak, without its CPU extension."""
    quiet_libraries()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    with contextlib.redirect_stdout(sys.stderr):
        import deepspeed
        from deepspeed.utils import logger
    if os.environ.get("SIT_DEBUG") != "1":
        logger.setLevel(logging.ERROR)
    if device.type == "cpu":
        # Serves inference only; without it no compiler runs and no rank aborts at exit.
        with contextlib.suppress(AttributeError, ImportError):
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def make_engine(
    network: nn.Module,
    *,
    device: torch.device,
    dtype: torch.dtype,
    zero: int,
    micro_batch: int,
    accumulate: int,
    world: World,
    clip: float,
    lr: float,
    beta2: float,
    weight_decay: float,
) -> Any:
    """A DeepSpeed engine over `network` with torch's AdamW; float32 parameters throughout.

    dtype other than float32: matrix products under torch autocast.
    """
    deepspeed = import_deepspeed(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True
    )
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "train_batch_size": micro_batch * accumulate * world.size,
        "zero_optimization": {"stage": zero},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": clip,
        "steps_per_print": 10**9,
    }
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        config["torch_autocast"] = {"enabled": True, "dtype": name}
    with contextlib.redirect_stdout(sys.stderr):
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    return engine


def save_engine(engine: Any, folder: Path) -> None:
    """Write the optimizer's shards into folder/state; every rank must call it.

    Raises OSError if they cannot be written.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            engine.save_checkpoint(str(folder), tag="state", save_latest=False)
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        # torch.save's way to say that its file could not be written to the end.
        raise OSError("the optimizer's state could not be written, the disk may be full") from None
    for script in folder.glob("*.py"):  # DeepSpeed's converters; our safetensors replace them
        script.unlink(missing_ok=True)


def load_engine(engine: Any, folder: Path) -> None:
    """Read weights and optimizer state back from folder/state.

    Raises SitError for another world size or ZeRO stage than the one that saved it.
    """
    from deepspeed.runtime.zero.utils import ZeRORuntimeException

    damage = (RuntimeError, AssertionError, OSError, KeyError, EOFError, ZeRORuntimeException)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            loaded, _ = engine.load_checkpoint(str(folder), tag="state")
    except damage as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SitError(f"cannot go on from {folder}: {line}") from None
    if loaded is None:
        raise SitError(f"cannot go on from {folder}: its state/ folder is missing")


@torch.no_grad()
def whole_weights(engine: Any) -> dict[str, torch.Tensor]:
    """All parameters and buffers as float32 on the CPU; every rank must call it."""
    import deepspeed

    state = {}
    for name, parameter in engine.module.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            state[name] = parameter.detach().float().cpu().clone()
    return state | {name: b.detach().cpu().clone() for name, b in engine.module.named_buffers()}
