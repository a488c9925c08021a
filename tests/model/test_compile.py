"""torch.compile of the blocks, on a CPU that has a compiler."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sitcli.errors import UsageError
from sitcli.machine.devices import autocast
from sitcli.model.compile import (
    WORTH_COMPILING,
    CompiledNetwork,
    can_compile,
    compile_blocks,
    compile_count,
    resolve_compile,
)
from sitcli.model.transformer import Transformer
from tests.model.networks import TINY, every_block, filled

CPU = torch.device("cpu")


needs_compiler = pytest.mark.skipif(can_compile(CPU) is not None, reason=str(can_compile(CPU)))


def passed(network: Transformer, *, batch: int = 3) -> list[torch.Tensor]:
    """The output and all gradients of a fixed batch."""
    random = torch.Generator().manual_seed(batch)
    network.zero_grad()
    out = network(
        torch.randn(batch, 4, 8, 8, generator=random),
        torch.rand(batch, generator=random),
        torch.arange(batch),
    )
    out.float().square().mean().backward()
    return [out.detach(), *(p.grad.clone() for p in network.parameters())]


@needs_compiler
@every_block
def test_one_graph_serves_all_blocks(block: str) -> None:
    """Catches: a graph for each block (28 compilations of an XL), a block that breaks into several
    (an error here, by fullgraph), other results, other state-dict keys, or recompilations that are
    not counted."""
    network = filled(dataclasses.replace(TINY, block=block, depth=4))
    eager, keys = passed(network), [*network.state_dict()]
    compile_blocks(network)
    torch._dynamo.reset()  # each design from nothing
    before = compile_count()
    torch.testing.assert_close(passed(network), eager, atol=1e-5, rtol=1e-4)
    assert compile_count() == before + 1
    passed(network)
    assert compile_count() == before + 1
    passed(network, batch=5)
    assert compile_count() == before + 2
    assert [*network.state_dict()] == keys


@needs_compiler
def test_compiled_blocks_are_recomputed_under_autocast() -> None:
    """Catches: activation checkpointing that does not go with compiled blocks or with bf16."""
    network = filled(TINY)
    with autocast(CPU, torch.bfloat16):
        eager = passed(network)
        compile_blocks(network)
        kept = passed(network)
        network.checkpoint_every = 1
        assert all(map(torch.equal, passed(network), kept))
    torch.testing.assert_close(kept[0], eager[0], atol=0.05, rtol=0.05)


def test_compile_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a training on a machine without a compiler that ends in inductor's traceback."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "g++-0")
    assert can_compile(CPU) == "there is no C++ compiler (g++-0)"
    with pytest.raises(UsageError, match=r"--compile on: there is no C\+\+ compiler"):
        resolve_compile("on", CPU, flops=1e20)
    assert not resolve_compile("auto", CPU, flops=1e20)
    assert not resolve_compile("off", CPU, flops=1e20)


@needs_compiler
def test_auto_compiles_on_a_cpu_for_long_work_alone() -> None:
    """Catches: a minute of compiling for ten seconds of work."""
    assert resolve_compile("auto", CPU, flops=WORTH_COMPILING["cpu"])
    assert not resolve_compile("auto", CPU, flops=WORTH_COMPILING["cpu"] / 2)
    assert not resolve_compile("auto", CPU, flops=None)
    assert resolve_compile("on", CPU, flops=None)


@pytest.mark.parametrize(
    ("capability", "triton", "compiler", "works"),
    [
        (9, True, True, True),
        (9, False, True, False),
        (9, True, False, False),
        (6, True, True, False),
    ],
)
def test_auto_compiles_on_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capability, triton, compiler, works
) -> None:
    """Catches: blocks left uncompiled on a GPU that could, or a first step that fails on one that
    lacks triton, a C compiler, or the instructions."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (capability, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if triton else None)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    (tmp_path / "Python.h").touch()
    (tmp_path / "cc").touch(mode=0o755 if compiler else 0o644)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    assert resolve_compile("auto", gpu, flops=1e17) == (can_compile(gpu) is None) == works
    (tmp_path / "Python.h").unlink()
    assert not resolve_compile("auto", gpu, flops=1e17)


@needs_compiler
@torch.no_grad()
def test_a_compiled_network_is_the_network_for_every_batch() -> None:
    """Catches: images that were filled up with, a graph for every batch size, or other values."""
    network = filled(TINY).eval().requires_grad_(False)
    before = compile_count()
    compiled = CompiledNetwork(network, CPU, sizes={3, 6})
    for batch in (6, 4, 3, 1, 8):
        inputs = torch.randn(batch, 4, 8, 8), torch.rand(batch), torch.arange(batch) % 3
        found = compiled(*inputs)
        torch.testing.assert_close(found, network(*inputs), atol=1e-5, rtol=1e-5)
    assert compile_count() - before == 2
