"""Starting several processes of this program on this machine. Torch-free."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from sitcli.errors import LostPeer, SitError
from sitcli.machine.world import num_processors

LIFELINE = "SIT_LIFELINE"  # the file descriptor that closes when the starter is gone
MEETING_POINT = "SIT_MEETING_POINT"  # the file descriptor of rank 0's listening socket
GRACE_SECONDS = 10.0  # for the others to end by themselves once one process has failed
PASSED_ON = (signal.SIGINT, signal.SIGTERM)


class Children:
    """Processes that this program starts; they get each signal once and never outlive it.

    A terminal's Ctrl-C reaches this process alone, which passes it on while the block lasts. If
    this process is killed, the children get SIGTERM; the end of the block kills those still left.
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

    When one process fails, the others have GRACE_SECONDS to end too. A process that fails prints
    its own error, and its exit code is returned.
    Raises SitError, which names the process, if one was killed.
    """
    shared = {
        **os.environ,
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": "127.0.0.1",
    }
    # Like torchrun: processes that each have a thread per core slow each other down.
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
        "free some memory, and type the same command: it goes on"
        if code == -signal.SIGKILL
        else "",
    )


def _wait(processes: list[subprocess.Popen]) -> tuple[int, int] | None:
    """Wait for all processes; returns the rank and exit code that explain a failure, or None.

    After the first failure the others get GRACE_SECONDS.
    """
    deadline = float("inf")
    while [p for p in processes if p.poll() is None] and time.monotonic() < deadline:
        time.sleep(0.05)
        if any(process.returncode for process in processes):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
    # Killed processes come first, then those with an error of their own, then those that lost one.
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
    """In one of `Children`, send SIGTERM to itself as soon as the process that started it ends."""
    descriptor = _take_descriptor(LIFELINE)
    if descriptor is None:
        return

    def wait() -> None:
        os.read(descriptor, 1)  # nothing is written: it returns when the other end closes
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
