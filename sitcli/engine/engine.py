"""A DeepSpeed engine around a network, its gradient norm, weights and memory."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sitcli.engine.optimizer_state import MOMENTS, pieces_of
from sitcli.engine.scaler import install_loss_scaler, loss_scale
from sitcli.machine.quiet import quiet_libraries
from sitcli.machine.world import World


def join_group(world: World, device: torch.device) -> None:
    """Give DeepSpeed the group of all ranks; without a launcher, a group of one without a port.

    DeepSpeed keeps the first group it sees, so a group of one lasts as long as the process.
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


def import_deepspeed(device: torch.device) -> Any:
    """Import deepspeed, silenced, with its output on stderr and without its CPU extension."""
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
    config: dict[str, Any],
    *,
    device: torch.device,
    lr: float,
    beta2: float,
    weight_decay: float,
) -> Any:
    """A DeepSpeed engine over `network` with torch's AdamW; float32 parameters throughout.

    Parameters that require no gradient are not trained.

    config: from `engine_config`. Under a dtype other than float32 matrix products run under
    torch autocast.
    """
    deepspeed = import_deepspeed(device)
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True
    )
    config = {"steps_per_print": 10**9, **config}
    with contextlib.redirect_stdout(sys.stderr):
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    install_loss_scaler(engine)
    if engine.zero_optimization_stage() == 0 and engine.world_size == 1:
        # It would copy all gradients into one tensor and back, to sum them over one process.
        engine.enable_backward_allreduce = False
    return engine


def compiles_stage_3(device: torch.device) -> bool:
    """Whether torch.compile gives the weights under ZeRO stage 3 their gradients.

    Stage 3 replaces torch's linear function by one that adds the bias in place. Compiled by
    torch 2.11, that one gives the weights gradients of 0, without a word.
    """
    import_deepspeed(device)
    from deepspeed.runtime.zero.linear import zero3_linear_wrap

    weight = torch.ones(1, 1, requires_grad=True)
    compiled = torch.compile(zero3_linear_wrap, backend="eager")
    compiled(torch.ones(1, 1, 1), weight, torch.zeros(1)).sum().backward()
    return weight.grad.item() == 1


@contextlib.contextmanager
def own_linear_function() -> Iterator[None]:
    """Give torch its linear function back at the end: DeepSpeed's stage 3 leaves its own there."""
    before = nn.functional.linear
    try:
        yield
    finally:
        nn.functional.linear = before


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """The 2-norm of the gradients that the next step takes, before they are clipped.

    Call it between backward and step. It is None except under stage 0: the other stages give the
    norm after the step (`engine.get_global_grad_norm()`).
    """
    if engine.zero_optimization_stage() != 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm / (loss_scale(engine) or 1.0)


@torch.no_grad()
def whole_weights(engine: Any, *, keep: bool, trained: bool = False) -> dict[str, torch.Tensor]:
    """All parameters and buffers as float32 copies on the CPU if `keep`, else {}.

    trained: the parameters that are trained alone. Every rank must call it.
    """
    import deepspeed

    state = {}
    for name, parameter in engine.module.named_parameters():
        if trained and not parameter.requires_grad:
            continue
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            if keep:
                state[name] = parameter.detach().float().to("cpu", copy=True)
    buffers = engine.module.named_buffers() if keep and not trained else ()
    return state | {name: b.detach().to("cpu", copy=True) for name, b in buffers}


def held_bytes(engine: Any) -> dict[str, int]:
    """The bytes this rank keeps between steps, of the model's parameters and of the optimizer.

    optimizer: AdamW's two moments, and ZeRO's own float32 copy of the weights.
    """
    model, optimizer = {}, {}
    for parameter in engine.module.parameters():
        _count(model, parameter.data)
        _count(model, getattr(parameter, "ds_tensor", None))
    for piece in pieces_of(engine):
        if piece.flat.untyped_storage().data_ptr() not in model:
            _count(optimizer, piece.flat)
        for moment in MOMENTS:
            _count(optimizer, engine.basic_optimizer.state[piece.flat].get(moment))
    return {"model": sum(model.values()), "optimizer": sum(optimizer.values())}


def _count(storages: dict[int, int], tensor: torch.Tensor | None) -> None:
    """The bytes of the tensors' storages; tensors that share one storage count once."""
    if tensor is not None and tensor.numel():
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
