"""Where a forward pass spends its time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.bench.job import prepared
from sitcli.commands.bench.parts import random_inputs, random_network, time_parts
from sitcli.settings.tools import BenchSettings
from tests.commands.bench.measuring import TINY


@pytest.mark.parametrize("training", [False, True])
def test_each_part_is_timed_for_all_blocks(tmp_path: Path, monkeypatch, training: bool) -> None:
    """Catches: one block's seconds given for those of all, or a part that is never run.

    Every call is said to take a second: three parts are there once in each block, one once."""
    with prepared(BenchSettings(what="sample", dir=tmp_path, **TINY)) as bench:
        calls = []

        def one_second(self, work):
            calls.append(work())
            return 1.0

        monkeypatch.setattr(type(bench), "seconds", one_second)
        found = time_parts(bench, training=training)
        depth, rounds = bench.job.config.depth, bench.settings.rounds
    assert [*found.values()] == [depth, depth, depth, 1]
    assert len(calls) == 4 * rounds


def test_inputs_and_network_are_the_models(tmp_path: Path) -> None:
    """Catches: a network whose output is zero, so that its products may be skipped, or inputs of
    another shape."""
    with prepared(BenchSettings(what="sample", dir=tmp_path, **TINY)) as bench:
        x, t, y = random_inputs(bench)
        assert x.shape == (2, *bench.job.config.latent_shape)
        assert bool(((t >= 0) & (t <= 1)).all())
        assert all(map(torch.equal, random_inputs(bench), (x, t, y)))
        network = random_network(bench.job.config, bench)
        assert float(network(x, t, y).std()) > 1e-4
        assert not any(p.requires_grad for p in network.parameters())
        trained = random_network(bench.job.config, bench, training=True)
        assert any(p.requires_grad for p in trained.parameters())
