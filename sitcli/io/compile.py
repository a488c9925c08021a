"""torch.compile for the blocks of a network: where it works, and how often it compiled."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from pathlib import Path

import torch

from sitcli.errors import UsageError
from sitcli.model.transformer import Transformer


def can_compile(device: torch.device) -> str | None:
    """None where torch.compile works for this device, else what it lacks."""
    if device.type not in ("cpu", "cuda"):
        return f"torch.compile does not serve {device.type}"
    if device.type == "cuda":
        if torch.version.cuda and torch.cuda.get_device_capability(device)[0] < 7:
            return "this GPU is older than triton supports (compute capability 7.0)"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        # As triton and inductor look for theirs.
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        default = "clang++" if sys.platform == "darwin" else "g++"
        names = [os.environ.get("CXX", default)]
    if not any(map(shutil.which, names)):
        language = "C" if device.type == "cuda" else "C++"
        return f"there is no {language} compiler ({' or '.join(names)})"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's header files are not installed (Python.h)"
    return None


def resolve_compile(name: str, device: torch.device) -> bool:
    """Whether to compile: 'on', 'off', or 'auto', which is on for a GPU where it works.

    Raises UsageError for 'on' where it does not.
    """
    if name == "on" and (reason := can_compile(device)):
        raise UsageError(f"--compile on: {reason}", "use --compile off")
    return name == "on" or (
        name == "auto" and device.type == "cuda" and can_compile(device) is None
    )


def compile_blocks(network: Transformer) -> None:
    """Compile every block in place, one by one; state-dict keys stay as they are.

    After DeepSpeed has the network: stage 3 refuses one that is compiled already. The blocks are
    alike, so that one graph serves all of them; under stage 3, which gathers the weights of each
    layer just before it, a block is several graphs.
    """
    sharded = any(hasattr(parameter, "ds_id") for parameter in network.parameters())
    for block in network.blocks:
        block.compile(fullgraph=not sharded)


def compile_count() -> int:
    """The graphs this process has compiled so far; of a training they all come in its first step,
    unless shapes change."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
