"""The rank of this process in the command, and the processors it may use. Torch-free."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from sitcli.errors import UsageError


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes; (0, 1) without a launcher."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> World:
        """What the launcher's variables RANK and WORLD_SIZE say; (0, 1) without them."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def slice(self, number: int) -> slice:
        """The positions of this rank's share of `number` items, a multiple of the world size."""
        share = number // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


def world_for(*, gpus: int | None, procs: int | None) -> World:
    """The world of a command with these --gpus and --procs.

    Raises UsageError if both are given, or a launcher has started another number of processes.
    """
    wanted = number_of(gpus=gpus, procs=procs)
    world = World.from_environment()
    if wanted is not None and wanted != world.size:
        flag = "--gpus" if gpus is not None else "--procs"
        raise UsageError(
            f"{flag} {wanted}: a launcher has started {world.size} process(es) already",
            "remove the option, or type the command without a launcher",
            shared=True,
        )
    return world


def planned_size(*, gpus: int | None, procs: int | None) -> int:
    """The number of processes of the command: as asked, or as a launcher has started."""
    return number_of(gpus=gpus, procs=procs) or World.from_environment().size


def number_of(*, gpus: int | None, procs: int | None) -> int | None:
    """The number of processes that the options ask for, None if they do not say."""
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs both say how many processes", "use --procs on a CPU")
    return gpus if gpus is not None else procs


def device_name(device: str, *, gpus: int | None, procs: int | None) -> str:
    """The device that --device, --gpus and --procs name. Raises UsageError if they contradict."""
    kind = "cuda" if gpus is not None else "cpu"
    if gpus is None and procs is None:
        return device
    if device not in ("auto", kind):
        flag, other = ("--gpus", "--procs") if gpus is not None else ("--procs", "--gpus")
        raise UsageError(f"{flag} runs on {kind}, not on --device {device}", f"use {other}")
    return kind


def adopt_slurm() -> None:
    """Under srun, set torchrun's environment variables from Slurm's, unless they are set."""
    here = os.environ
    if "RANK" in here or int(here.get("SLURM_STEP_NUM_TASKS", 1)) < 2:
        return
    # The first node of "gpu[007-012,020],other3" is gpu007.
    nodes = here.get("SLURM_STEP_NODELIST", "localhost")
    first = re.match(r"(?:\[[^]]*\]|[^,\[])+", nodes)[0]
    job, step = int(here.get("SLURM_JOB_ID", 0)), int(here.get("SLURM_STEP_ID", 0))
    here["RANK"] = here["SLURM_PROCID"]
    here["WORLD_SIZE"] = here["SLURM_STEP_NUM_TASKS"]
    here["LOCAL_RANK"] = here.get("SLURM_LOCALID", "0")
    per_node = here.get("SLURM_STEP_TASKS_PER_NODE", "1")  # "8(x2),4": the most come first
    here["LOCAL_WORLD_SIZE"] = re.match(r"\d+", per_node)[0]
    here.setdefault("MASTER_ADDR", re.sub(r"\[(\w+)[^]]*\]", r"\1", first))
    # Below the range of ephemeral ports; jobs and steps on one node get different ports.
    here.setdefault("MASTER_PORT", str(10000 + (32 * job + step) % 20000))


# A control group's quota: microseconds of processor time in each period.
CGROUP = Path("/sys/fs/cgroup")


def num_processors() -> int:
    """The number of processors this process may use, by its affinity and its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    number = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(number, _quota() or number)


def _quota() -> int | None:
    """The control group's quota in whole processors, at least one; None without a quota."""
    # Version 2 says "200000 100000", or "max 100000"; version 1 has a file each, -1 for no quota.
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            texts = [(CGROUP / name).read_text() for name in names]
            quota, period = map(int, " ".join(texts).split())
            return max(1, quota // period) if quota > 0 else None
    return None


def local_size() -> int:
    """The number of the command's processes on this machine."""
    here = os.environ
    return int(here.get("LOCAL_WORLD_SIZE") or here.get("LOCAL_SIZE") or 1)  # torchrun, deepspeed


def processors_each() -> int:
    """The number of processors for each of the command's processes here, at least one."""
    return max(1, num_processors() // local_size())
