"""Makes a settings field a command-line option, and holds help texts that several share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

MOST_SEED = 2**63 - 1  # what a sample set's int64 can record
# The options that were given, each with how to take it back: "remove --lr", "unset SIT_TRAIN_LR".
Said = Mapping[str, str]


def option(
    default: Any,
    help: str,
    *,
    group: str = "",
    flag: str = "",
    argument: bool = False,
    low: float | None = None,
    high: float | None = None,
    role: str = "",
) -> Any:
    """A settings field that is also a command-line option (or argument).

    help: one sentence, shown by ``--help``; group: the panel it is listed in; flag: another name
    than the field's; low/high: inclusive bounds; role: "mode" for options of which one is chosen,
    "detail" for the options of a mode. If a flag chooses a mode, the modes and details in the
    --config file are dropped.
    """
    metadata = dict(help=help, group=group, flag=flag, argument=argument, low=low, high=high)
    metadata["role"] = role
    return field(default=default, metadata=metadata)


DEVICE_HELP = "cpu, cuda, cuda:1, mps; auto takes the first GPU there is."
COMPILE_HELP = (
    "torch.compile the network; auto does so if there is a compiler and the work takes minutes."
)
PRECISION_HELP = "auto is bf16 autocast where the hardware computes in it, else fp32."
GPUS_HELP = "Run on this many of this machine's GPUs, a process each."
PROCS_HELP = "Run in this many processes on the CPU."
