"""Devices and precisions, and the tuning of CPUs."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator

import torch

from sitcli.errors import UsageError
from sitcli.machine.world import processors_each


def resolve_device(name: str) -> torch.device:
    """The device called `name`; 'auto' is this process's GPU if there is one, else the CPU.

    A GPU without a number is the first one, or under a launcher the one of LOCAL_RANK.
    Raises UsageError for a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device is called '{name}'", "use cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "this machine has no CUDA GPU that torch can use",
            "use --device cpu, or --procs N for several processes",
        )
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        count = torch.cuda.device_count()
        if device.index >= count:
            raise UsageError(
                f"there is no GPU number {device.index}: this machine has {count}",
                f"use a number below {count}",
            )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "--device mps: this machine has no Apple GPU that torch can use", "use --device cpu"
        )
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"--device {name} is not supported", "use cpu, cuda, cuda:N or mps")
    return device


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: float32, bfloat16 or float16.

    'auto' is bfloat16 where the hardware multiplies in it (on a CPU: after a short trial, since
    some emulate it), else float32. float16 works on a CPU too, but most emulate it, tens of times
    slower than float32.
    """
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        # torch's is_bf16_supported also says yes where bf16 is emulated, slowly.
        native = torch.version.hip or torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if native else torch.float32
    if device.type == "cpu" and _bf16_pays_on_cpu():
        return torch.bfloat16
    return torch.float32


def _bf16_pays_on_cpu() -> bool:
    """Whether a bf16 matrix product is at least 1.3 times as fast as the fp32 one, here and now."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(512, 512, dtype=dtype)
        best[dtype] = min(_seconds(a) for _ in range(8))
    return best[torch.float32] > 1.3 * best[torch.bfloat16]


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Do without torch's other threads, which a short operation would wait for.

    Where another program has one of two cores, converting 2 MB takes 80 times as long in two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tune_cpu(device: torch.device) -> None:
    """Set this process up for work on a CPU: the number of threads, and memory that it keeps.

    torch takes a thread for every core of the machine, even if a container or the other processes
    of the command leave this one fewer. OMP_NUM_THREADS overrides the number. By default glibc
    returns freed tensors to the kernel, which must zero the pages again at the next step. Keeping
    them saves a fifth of a training step (SiT-S/2, two cores).
    """
    if device.type != "cpu":
        return
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), processors_each()))
    if platform.libc_ver()[0] == "glibc":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors, until this process ends."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run the block under torch.autocast to `dtype`; float32 needs no autocast."""
    if dtype == torch.float32:
        yield
    else:
        with torch.autocast(device.type, dtype):
            yield


def precision_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> 'bf16'."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure the operations a second of a plain matrix product on this device."""
    side = 1024 if device.type == "cpu" else 8192
    if device.type == "cpu" and dtype == torch.float16:
        side = 256  # most CPUs emulate it
    a = torch.randn(side, side, device=device).to(dtype)
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def peak_memory(device: torch.device) -> int:
    """The most bytes held so far: the GPU's allocations, or the resident size on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
