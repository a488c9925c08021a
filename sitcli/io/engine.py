"""DeepSpeed, made boring: its process group, its configuration, the engine and its weights."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from sitcli.errors import UsageError
from sitcli.io.launch import quiet_libraries
from sitcli.io.optimizer_state import MOMENTS, pieces_of
from sitcli.io.processes import World
from sitcli.io.scaler import install_loss_scaler, loss_scale


def join_group(world: World, device: torch.device) -> None:
    """Give DeepSpeed the group of all ranks; without a launcher, a group of one that needs no port.

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


# The least stage that can.
OFFLOADS = {"none": 0, "optimizer": 1, "params": 3}


def default_stage(offload: str, world: World, file: dict[str, Any]) -> int:
    """The ZeRO stage where no option says one: the DeepSpeed file's, else the least that shards.

    One process has nobody to share with: there it would only copy gradients about.
    """
    section = file.get("zero_optimization")
    stage = section.get("stage") if isinstance(section, dict) else None
    if stage in (0, 1, 2, 3):
        return stage
    return max(OFFLOADS[offload], 0 if world.size == 1 else 1)


def engine_config(
    *,
    dtype: torch.dtype,
    zero: int,
    offload: str,
    micro_batch: int,
    accumulate: int,
    world: World,
    clip: float,
) -> dict[str, Any]:
    """DeepSpeed's configuration for our options. UsageError for an offload the stage has not."""
    stage: dict[str, Any] = {"stage": zero}
    if zero < (needed := OFFLOADS[offload]):
        raise UsageError(
            f"--offload {offload} needs --zero {needed}, not --zero {zero}",
            f"--zero {needed}, or --offload none",
        )
    if offload != "none":
        stage["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        if offload == "params":
            stage["offload_param"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulate,
        "train_batch_size": micro_batch * accumulate * world.size,
        "zero_optimization": stage,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would be compiled on the spot
        "gradient_clipping": clip,
    }
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        # Gradients are summed over ranks and micro-batches in float32: twice the traffic, and a
        # batch in parts equals the whole one to rounding. A file may set this one otherwise.
        config["torch_autocast"] = {"enabled": True, "dtype": name, **FLOAT32_SUMS}
    return config


FLOAT32_SUMS: dict[str, Any] = {"lower_precision_safe_modules": []}
# Keys of a DeepSpeed file that options of ours decide, and these options.
DECIDED = {
    "train_batch_size": "--batch-size",
    "train_micro_batch_size_per_gpu": "--batch-size and --accumulate",
    "gradient_accumulation_steps": "--accumulate",
    "gradient_clipping": "--clip",
    "zero_optimization": "--zero and --offload",
    "torch_autocast": "--precision",
}
# Sections that would do what our options do in another way.
REPLACED = {
    "optimizer": "--lr, --beta2 and --weight-decay",
    "scheduler": "--schedule and --warmup",
    "bf16": "--precision",
    "bfloat16": "--precision",
    "fp16": "--precision",
    "amp": "--precision",
}


def read_file(path: Path) -> dict[str, Any]:
    """A DeepSpeed configuration file, without the sections that it has switched off.

    UsageError for a file that is not JSON, or that does what an option does in another way.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(theirs, dict):
        raise UsageError(f"{path} does not hold a DeepSpeed configuration", "{...}, as JSON")
    for section, flag in REPLACED.items():
        value = theirs.pop(section, None)
        if value and not (isinstance(value, dict) and value.get("enabled") in (False, "auto")):
            raise UsageError(f"{path} has a section '{section}'", f"leave it to {flag}")
    return theirs


def merge_config(ours: dict[str, Any], theirs: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our configuration with what the DeepSpeed file at `path`, from `read_file`, adds.

    "auto" in the file stands for ours. UsageError for a file that says otherwise than an option:
    the message names both.
    """
    return _merged(ours, theirs, path, ())


def _merged(ours: dict, theirs: dict, path: Path, above: tuple[str, ...]) -> dict:
    merged = dict(ours)
    for key, value in theirs.items():
        place = (*above, key)
        if value == "auto" and key in ours:
            continue
        if isinstance(ours.get(key), dict) and isinstance(value, dict):
            merged[key] = _merged(ours[key], value, path, place)
        elif key in ours and key not in FLOAT32_SUMS and value != ours[key]:
            flag = DECIDED.get(place[0], "sit")
            name = ".".join(place)
            raise UsageError(
                f"{path} says {name} {json.dumps(value)}, but {flag} {json.dumps(ours[key])}",
                f"change one of them, or take {name} out of the file",
            )
        elif place in UNDECIDED and value not in (None, {}, UNDECIDED[place][1]):
            raise UsageError(f"{path} says {'.'.join(place)}", UNDECIDED[place][0])
        else:
            merged[key] = value
    return merged


# What our configuration leaves out where the option is off.
UNDECIDED = {
    ("zero_optimization", "offload_optimizer"): ("say --offload optimizer", {"device": "none"}),
    ("zero_optimization", "offload_param"): ("say --offload params", {"device": "none"}),
    ("torch_autocast",): ("say --precision bf16", {"enabled": False}),
}


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

    config: from `engine_config`. Under a dtype other than float32 matrix products run under
    torch autocast.
    """
    deepspeed = import_deepspeed(device)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=True
    )
    config = {"steps_per_print": 10**9, **config}
    with contextlib.redirect_stdout(sys.stderr):
        engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=config)
    install_loss_scaler(engine)
    if engine.zero_optimization_stage() == 0 and engine.world_size == 1:
        # It would copy all gradients into one tensor and back, to sum them over one process.
        engine.enable_backward_allreduce = False
    return engine


def gradient_norm(engine: Any) -> torch.Tensor | None:
    """The 2-norm of the gradients that the next step takes, before they are clipped.

    To be asked for between backward and step under stage 0; None under the others, which have it
    after the step (`engine.get_global_grad_norm()`).
    """
    if engine.zero_optimization_stage() != 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    return norm / (loss_scale(engine) or 1.0)


@torch.no_grad()
def whole_weights(engine: Any, *, keep: bool) -> dict[str, torch.Tensor]:
    """All parameters and buffers as float32 copies on the CPU, where keep, else {}.

    Every rank must call it.
    """
    import deepspeed

    state = {}
    for name, parameter in engine.module.named_parameters():
        sharded = [parameter] if hasattr(parameter, "ds_id") else []
        with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
            if keep:
                state[name] = parameter.detach().float().to("cpu", copy=True)
    buffers = engine.module.named_buffers() if keep else ()
    return state | {name: b.detach().to("cpu", copy=True) for name, b in buffers}


def held_bytes(engine: Any) -> dict[str, int]:
    """Bytes this rank keeps between steps: of the model's parameters, and of the optimizer.

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
    """Several tensors may lie in one storage, which is there once."""
    if tensor is not None and tensor.numel():
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
