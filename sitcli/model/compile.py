"""torch.compile for networks: where it works and pays, and how often it compiled."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.errors import UsageError
from sitcli.model.transformer import Transformer


def can_compile(device: torch.device) -> str | None:
    """None if torch.compile works for this device, else the reason why not, as an error says it."""
    if device.type not in ("cpu", "cuda"):
        return f"torch.compile does not serve {device.type}"
    if device.type == "cuda":
        if torch.version.cuda and torch.cuda.get_device_capability(device)[0] < 7:
            return "this GPU is older than triton supports (compute capability 7.0)"
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        # triton and inductor look for these compilers.
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


# Operations from which on compiling pays: minutes of work on two cores, where it takes 10 to 20 s,
# and on a GPU, where it takes up to a minute.
WORTH_COMPILING = {"cpu": 1e14, "cuda": 1e17}


def resolve_compile(name: str, device: torch.device, *, flops: float | None) -> bool:
    """Whether to compile: 'on', 'off', or 'auto', which is on where it works and pays.

    flops: operations of the whole work, None if unknown.
    Raises UsageError for 'on' where it does not work.
    """
    if name == "on" and (reason := can_compile(device)):
        raise UsageError(f"--compile on: {reason}", "use --compile off")
    if name != "auto":
        return name == "on"
    pays = flops is not None and flops >= WORTH_COMPILING.get(device.type, math.inf)
    return pays and can_compile(device) is None


def compile_blocks(network: Transformer) -> None:
    """Compile every block in place, one by one; state-dict keys stay as they are.

    Call it after DeepSpeed has the network: stage 3 refuses a compiled one. The blocks are alike,
    so one graph serves all of them. Under stage 3, which gathers the weights of each layer just
    before the layer runs, a block is several graphs.
    """
    sharded = any(hasattr(parameter, "ds_id") for parameter in network.parameters())
    for block in network.blocks:
        block.compile(fullgraph=not sharded)


class CompiledNetwork:
    """A network (x, t, y) -> tensors, compiled whole for evaluation, for one batch size or two.

    On a CPU its weights are folded into the graph and laid out for its instructions; on a GPU the
    graph is replayed without Python. A batch is filled up to the next of `sizes`, so that there
    are no more graphs than sizes; a larger batch is evaluated without compiling.
    """

    def __init__(
        self, network: Callable[..., Any], device: torch.device, *, sizes: set[int]
    ) -> None:
        self.network, self.sizes = network, sorted(sizes)
        gpu = device.type == "cuda"
        mode = "reduce-overhead" if gpu else "default"
        self.compiled = torch.compile(network, dynamic=False, mode=mode)
        # As an option of torch.compile, freezing would leave the linear layers a slower layout.
        self._config = {} if gpu else {"freezing": True}

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor | tuple[Tensor, ...]:
        """x (B, C, h, w), t (B,), y (B,) -> the network's output or outputs, (B, ...) each."""
        count = len(x)
        size = next((size for size in self.sizes if size >= count), None)
        if size is None:
            return self.network(x, t, y)
        if missing := size - count:
            x, t, y = (torch.cat([a, a[:1].expand(missing, *a.shape[1:])]) for a in (x, t, y))
        from torch._inductor import config

        with config.patch(self._config):
            found = self.compiled(x, t, y)
        # A GPU's next replay writes over its results.
        if isinstance(found, tuple):
            return tuple(part[:count].clone() for part in found)
        return found[:count].clone()


def compile_count() -> int:
    """The number of graphs this process has compiled so far.

    A training compiles all of them in its first step, unless shapes change.
    """
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]
