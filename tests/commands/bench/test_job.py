"""What a benchmark of a network works on."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sitcli.commands.bench.job import prepared
from sitcli.settings.tools import BenchSettings
from tests.commands.bench.measuring import TINY
from tests.tiny import make_store


def test_the_store_of_numbers_is_removed(tmp_path: Path) -> None:
    """Catches: a gigabyte of random numbers left on the disk after every benchmark."""
    with prepared(BenchSettings(what="train", dir=tmp_path, **TINY)) as bench:
        assert len(list(tmp_path.glob("*/noise.h5"))) == 1
        assert bench.job.store.num_items == 512
    assert list(tmp_path.iterdir()) == []


def test_a_given_store_is_read(tmp_path: Path) -> None:
    """Catches: --latents that is accepted and replaced by random numbers."""
    store = make_store(tmp_path / "a.h5").path
    settings = BenchSettings(what="train", latents=store, **TINY)
    with prepared(settings) as bench:
        assert bench.job.store.paths == [store]
        assert bench.job.config.channels == 3
    assert store.exists()


def test_another_batch_size_changes_nothing_else(tmp_path: Path) -> None:
    """Catches: a search for a batch size that measures the first one again and again."""
    with prepared(BenchSettings(what="train", dir=tmp_path, **TINY)) as bench:
        large = bench.sized(8)
        assert (bench.batch, large.batch) == (2, 8)
        assert large.job.engine["train_micro_batch_size_per_gpu"] == 8
        assert large.job.config == bench.job.config
        assert large.job.step_flops == 4 * bench.job.step_flops


def test_seconds_are_of_the_work(tmp_path: Path) -> None:
    """Catches: seconds of the waiting before or after, or none."""
    with prepared(BenchSettings(what="train", dir=tmp_path, **TINY)) as bench:
        assert bench.seconds(lambda: time.sleep(0.05)) >= 0.05
        assert bench.seconds(lambda: None) < 0.05


@pytest.mark.parametrize("what", ["sample", "gemm"])
def test_the_model_is_the_one_that_was_named(tmp_path: Path, what: str) -> None:
    """Catches: --model that only training looks at."""
    settings = BenchSettings(what=what, dir=tmp_path, **TINY | dict(model="DiT-S/8"))
    with prepared(settings) as bench:
        assert (bench.job.config.width, bench.job.config.patch) == (384, 8)
        assert bench.job.config.out_channels == 2 * bench.job.config.channels
