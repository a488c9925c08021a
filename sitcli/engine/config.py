"""DeepSpeed's configuration, from settings and from the user's own file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sitcli.errors import UsageError
from sitcli.machine.world import World

# The least stage that can.
OFFLOADS = {"none": 0, "optimizer": 1, "params": 3}


def default_stage(offload: str, world: World, file: dict[str, Any]) -> int:
    """The ZeRO stage without --zero: the DeepSpeed file's, else the lowest that shards.

    One process gets stage 0: there is nobody to share with, and sharding would only copy gradients.
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
    """DeepSpeed's configuration for our options.

    Raises UsageError if the ZeRO stage does not support the offload.
    """
    stage: dict[str, Any] = {"stage": zero}
    if zero < (needed := OFFLOADS[offload]):
        raise UsageError(
            f"--offload {offload} needs --zero {needed}, not --zero {zero}",
            f"use --zero {needed}, or --offload none",
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
    """Read a DeepSpeed configuration file, without the sections that it switches off.

    Raises UsageError if it is not JSON, or has a section that does the work of an option of ours.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", "name a file with --deepspeed-config"
        ) from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}") from None
    if not isinstance(theirs, dict):
        raise UsageError(
            f"{path} does not hold a DeepSpeed configuration", "write it as a JSON object, {...}"
        )
    for section, flag in REPLACED.items():
        value = theirs.pop(section, None)
        if value and not (isinstance(value, dict) and value.get("enabled") in (False, "auto")):
            raise UsageError(f"{path} has a section '{section}'", f"remove it, and use {flag}")
    return theirs


def merge_config(ours: dict[str, Any], theirs: dict[str, Any], path: Path) -> dict[str, Any]:
    """Our configuration with the additions of the DeepSpeed file at `path`, read by `read_file`.

    "auto" in the file takes our value.
    Raises UsageError, naming both, if a value in the file contradicts an option.
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
                f"change one of them, or remove {name} from the file",
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
