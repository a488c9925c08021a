"""Devices, precisions, memory and threads."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys

import pytest
import torch

from sitcli.errors import UsageError
from sitcli.machine.devices import one_thread, resolve_device, resolve_precision


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, number: int, capability: int = 9) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_gpus_always_have_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: `--device cuda` without an index, which torch.cuda.set_device refuses, or all ranks
    of a launcher on GPU 0."""
    pretend_gpus(monkeypatch, 4)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 2)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("gpus", "rank", "name", "message"),
    [
        (0, "0", "cuda", "no CUDA GPU"),
        (2, "0", "cuda:2", "no GPU number 2: this machine has 2"),
        (2, "3", "auto", "no GPU number 3"),
        (0, "0", "gpu", "no device is called 'gpu'"),
        (0, "0", "xla", "not supported"),
    ],
)
def test_missing_devices(monkeypatch, gpus: int, rank: str, name: str, message: str) -> None:
    """Catches: a missing device, or more processes than GPUs, found by a CUDA traceback."""
    pretend_gpus(monkeypatch, gpus)
    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(UsageError, match=message):
        resolve_device(name)


def test_auto_precision_needs_real_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: bf16 chosen on a V100 or T4, which only emulates it."""
    device = torch.device("cuda", 0)
    pretend_gpus(monkeypatch, 1, capability=8)
    assert resolve_precision("auto", device) == torch.bfloat16
    pretend_gpus(monkeypatch, 1, capability=7)
    assert resolve_precision("auto", device) == torch.float32


def test_fp16_is_not_bound_to_a_gpu() -> None:
    """Catches: fp16 refused on a CPU, where alone most tests of its loss scale can run."""
    assert resolve_precision("fp16", torch.device("cpu")) == torch.float16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone gives pages back")
def test_freed_memory_is_kept() -> None:
    """Catches: every large tensor waits for fresh pages, thousands of them; counted by the
    kernel."""
    lines = [
        "import resource, torch",
        "from sitcli.machine.devices import tune_cpu",
        "def faults():",
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "    for _ in range(8): torch.ones(1 << 24)",  # 64 MiB each
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before",
        "a = faults(); tune_cpu(torch.device('cpu')); faults(); print(a, faults())",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert after < before / 4


@pytest.mark.parametrize(
    ("environment", "processors", "threads"),
    [
        ({}, 2, 2),
        ({"LOCAL_WORLD_SIZE": "2"}, 2, 1),
        ({"LOCAL_WORLD_SIZE": "8"}, 2, 1),
        ({"OMP_NUM_THREADS": "2"}, 1, 2),
    ],
)
def test_threads_are_those_of_the_share(environment, processors, threads) -> None:
    """Catches: every process with as many threads as the machine has cores, or a user overruled."""
    lines = [
        "import torch",
        "from sitcli.machine import devices, world",
        f"world.num_processors = lambda: {processors}",
        "if 'OMP_NUM_THREADS' not in devices.os.environ: torch.set_num_threads(8)",
        "devices.tune_cpu(torch.device('cpu'))",
        "print(torch.get_num_threads())",
    ]
    rest = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env=rest | environment
    )
    assert int(done.stdout) == threads


def test_one_thread_gives_the_others_back():
    """Catches: a training that goes on with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
