"""Processes that a command starts: how they end, and the signals that reach them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

CLUSTER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


# A program that starts itself, as `run_processes` starts `python -m sitcli`.
PROGRAM = """
import os, sys, time, signal
import sitcli.machine.children as p

def child(rank, what):
    p.watch_lifeline()
    # One write: print makes two where streams are unbuffered, and lines of three would mix.
    os.write(1, f"rank {rank} {os.getpid()}\\n".encode())
    if what == "fail" and rank == 1:
        print("error: rank 1: no luck", file=sys.stderr)
        sys.exit(7)
    if what == "die" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0 if what == "work" else 60)

if "RANK" in os.environ:
    child(int(os.environ["RANK"]), sys.argv[-1])
else:
    start = p.subprocess.Popen
    def popen(words, **more):
        return start([sys.executable, __file__, *words[3:]], **more)
    p.subprocess.Popen, p.GRACE_SECONDS = popen, 1.0
    try:
        sys.exit(p.run_processes(sys.argv[1:], 3))
    except p.SitError as error:
        print(f"error: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
"""


def start(tmp_path, what: str) -> subprocess.Popen:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    # A test before this one may have trained in this very process, which says so here.
    environment = {name: value for name, value in os.environ.items() if name not in CLUSTER}
    return subprocess.Popen(
        [sys.executable, str(program), what],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("what", "code", "words"),
    [
        ("work", 0, ""),
        ("fail", 7, "error: rank 1: no luck\n"),
        ("die", 1, "error: process 1 of 3 was killed (SIGKILL), and the others were ended\n"),
    ],
)
def test_how_processes_end(tmp_path, what: str, code: int, words: str) -> None:
    """Catches: processes that outlive one that failed, another exit code, a reason not told."""
    began = time.monotonic()
    process = start(tmp_path, what)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, words)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_all(tmp_path, number: int) -> None:
    """Catches: processes that go on when the one that started them is told to end, or killed."""
    process = start(tmp_path, "sleep")
    pids = [int(process.stdout.readline().split()[2]) for _ in range(3)]
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode in (-number, 128 + number)
    end = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < end, "a process is left"
        time.sleep(0.05)
