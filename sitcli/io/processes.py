"""The processes of one command: who this one is, and starting several on this machine.

Torch-free, so that the process which only starts the others is there at once. The same command
line also runs under torchrun, the deepspeed launcher and Slurm's srun, which say in the environment
who is who.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sitcli.errors import LostPeer, SitError, UsageError

LIFELINE = "SIT_LIFELINE"  # the file descriptor that closes when the starter is gone
MEETING_POINT = "SIT_MEETING_POINT"  # the file descriptor of rank 0's listening socket
GRACE_SECONDS = 10.0  # for the others to end by themselves once one process has failed
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class World:
    """This process among all of them, as the launcher's environment says; (0, 1) without one."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> World:
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    def slice(self, number: int) -> slice:
        """This rank's share of `number` items, which the world size divides."""
        share = number // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


def world_for(*, gpus: int | None, procs: int | None) -> World:
    """The world of a command that was given --gpus or --procs.

    UsageError if both are given, or a launcher has started another number of processes.
    """
    wanted = number_of(gpus=gpus, procs=procs)
    world = World.from_environment()
    if wanted is not None and wanted != world.size:
        flag = "--gpus" if gpus is not None else "--procs"
        raise UsageError(
            f"{flag} {wanted}: a launcher has started {world.size} process(es) already",
            "leave the option to the launcher, or type the command without one",
            shared=True,
        )
    return world


def planned_size(*, gpus: int | None, procs: int | None) -> int:
    """In how many processes the command would run: as asked, or as a launcher has started."""
    return number_of(gpus=gpus, procs=procs) or World.from_environment().size


def number_of(*, gpus: int | None, procs: int | None) -> int | None:
    """How many processes were asked for; None if that was left open."""
    if gpus is not None and procs is not None:
        raise UsageError("--gpus and --procs both say how many processes", "use --procs on a CPU")
    return gpus if gpus is not None else procs


def device_name(device: str, *, gpus: int | None, procs: int | None) -> str:
    """What --device means beside --gpus or --procs. UsageError where they contradict."""
    kind = "cuda" if gpus is not None else "cpu"
    if gpus is None and procs is None:
        return device
    if device not in ("auto", kind):
        flag, other = ("--gpus", "--procs") if gpus is not None else ("--procs", "--gpus")
        raise UsageError(f"{flag} runs on {kind}, not on --device {device}", f"use {other}")
    return kind


def adopt_slurm() -> None:
    """Under srun, say in torchrun's variables who this process is, unless they are there."""
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
    # Below the ports that systems give to others; jobs and steps of one node differ.
    here.setdefault("MASTER_PORT", str(10000 + (32 * job + step) % 20000))


class Children:
    """Processes of this program that are sent each signal once and never outlive it.

    A terminal's Ctrl-C reaches this process alone, which passes it on while the block lasts. Should
    this process be killed, the children get SIGTERM; those left at the end of the block are killed.
    `received` holds the numbers of the signals that were passed on.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Children:
        self.lifeline, self.held = os.pipe()
        self.before = {number: signal.signal(number, self._pass_on) for number in PASSED_ON}
        return self

    def start(
        self, words: Sequence[str], *, listener: int | None = None, **options: Any
    ) -> subprocess.Popen:
        """Start one; `options` are Popen's, with `env` among them.

        listener: the descriptor of a listening socket, for the process that serves the others.
        """
        held = {LIFELINE: self.lifeline} | ({} if listener is None else {MEETING_POINT: listener})
        options["env"] = {**options["env"], **{name: str(number) for name, number in held.items()}}
        process = subprocess.Popen(
            words, pass_fds=[*held.values()], start_new_session=True, **options
        )
        self.processes.append(process)
        if self.received:  # while it was being started
            process.send_signal(self.received[-1])
        return process

    def _pass_on(self, number: int, frame: object) -> None:
        self.received.append(number)
        for process in self.processes:
            process.send_signal(number)

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in self.before.items():
            signal.signal(number, handler)
        os.close(self.lifeline)
        os.close(self.held)


def run_processes(arguments: Sequence[str], number: int) -> int:
    """Run this program with `arguments` in `number` processes, and return its exit code.

    They are `Children`; when one fails the others have GRACE_SECONDS to end too. Raises SitError
    naming a process that was killed; one that failed otherwise has spoken itself, and its exit code
    is returned.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
    }
    # As torchrun does: processes with as many threads each as there are cores slow each other.
    shared.setdefault("OMP_NUM_THREADS", str(max(1, num_processors() // number)))
    words = [sys.executable, "-m", "sitcli", *arguments]
    with Children() as children:
        # Rank 0 gets the listening socket itself: no port is free between a look and its use.
        with socket.create_server(("127.0.0.1", 0)) as server:
            shared["MASTER_PORT"] = str(server.getsockname()[1])
            for rank in range(number):
                children.start(
                    words,
                    env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    listener=None if rank else server.fileno(),
                )
        first = _wait(children.processes)
    if first is None:
        return 0
    rank, code = first
    if code == LostPeer.exit_code:
        raise SitError("the connection between the processes broke", "SIT_DEBUG=1 shows how")
    if -code in children.received:
        return 128 - code
    if code >= 0:
        return code
    raise SitError(
        f"process {rank} of {number} was killed ({signal.Signals(-code).name}), and the others "
        "were ended",
        "memory may be short; the same command goes on" if code == -signal.SIGKILL else "",
    )


def _wait(processes: list[subprocess.Popen]) -> tuple[int, int] | None:
    """The rank and exit code that explain a failure, once all have ended or had their time.

    None where none failed.
    """
    deadline = float("inf")
    while [p for p in processes if p.poll() is None] and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(process.returncode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    # The killed, then those with a reason of their own, before those that lost the others.
    failed = [(rank, p.returncode) for rank, p in enumerate(processes) if p.returncode]
    lost = LostPeer.exit_code
    return min(failed, key=lambda pair: (pair[1] == lost, pair[1]), default=None)


def take_meeting_point() -> int | None:
    """The descriptor of the listening socket this process was given, once; None without one."""
    return _take_descriptor(MEETING_POINT)


def _take_descriptor(name: str) -> int | None:
    """The descriptor in the environment variable `name`, not passed on to other programs."""
    text = os.environ.pop(name, None)
    if text is None:
        return None
    os.set_inheritable(int(text), False)
    return int(text)


def watch_lifeline() -> None:
    """In one of `Children`: SIGTERM to itself when the starter is gone."""
    descriptor = _take_descriptor(LIFELINE)
    if descriptor is None:
        return

    def wait() -> None:
        os.read(descriptor, 1)  # nothing is ever written: it returns at the other end's close
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


# What a container's control group gives its processes: microseconds of processors in a period.
CGROUP = Path("/sys/fs/cgroup")


def num_processors() -> int:
    """Processors this process may use: by its affinity, and by its container's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    number = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(number, _quota() or number)


def _quota() -> int | None:
    """Whole processors of the control group's quota, at least one; None where there is none."""
    # Version 2 says "200000 100000", or "max 100000"; version 1 has a file each, -1 for no quota.
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with contextlib.suppress(OSError, ValueError):
            texts = [(CGROUP / name).read_text() for name in names]
            quota, period = map(int, " ".join(texts).split())
            return max(1, quota // period) if quota > 0 else None
    return None


def local_size() -> int:
    """How many of the command's processes run on this machine."""
    here = os.environ
    return int(here.get("LOCAL_WORLD_SIZE") or here.get("LOCAL_SIZE") or 1)  # torchrun, deepspeed


def processors_each() -> int:
    """Processors for each of the command's processes on this machine, at least one."""
    return max(1, num_processors() // local_size())
