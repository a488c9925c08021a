"""The batches of a step: functions of the seed and the step, whoever asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from sitcli.commands.train.batches import Batch, Batches
from sitcli.commands.train.job import Job, prepare
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import STREAMS
from sitcli.machine.world import World
from tests.tiny import train_settings

ALONE = World(0, 1)


def job_of(store: Path, world: World = ALONE, **more) -> Job:
    return prepare(train_settings(store, store.parent / "run", **more), world)


def joined(batches: list[Batch]) -> list[torch.Tensor]:
    """Data, labels, times and noise of micro-batches in a row."""
    return [
        torch.cat([getattr(batch, name) for batch in batches]) for name in ("x", "y", "t", "eps")
    ]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(map(torch.equal, joined(a), joined(b)))


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 2)])
def test_ranks_and_parts_share_one_batch(
    store: Path, ranks: int, accumulate: int, streams: str
) -> None:
    """Catches: noise, times or images that depend on the rank, or a row that two ranks take."""
    drawn_from = dict(streams_name=streams)
    whole = Batches(dataclasses.replace(job_of(store), **drawn_from), ALONE).of_step(5)
    parts = []
    for rank in range(ranks):
        world = World(rank, ranks)
        job = dataclasses.replace(job_of(store, world, accumulate=accumulate), **drawn_from)
        batches = Batches(job, world).of_step(5)
        assert len(batches) == accumulate
        parts += batches
    assert same(whole, parts)


def test_a_step_is_the_same_whenever_it_is_asked_for(store: Path) -> None:
    """Catches: a generator that goes on from step to step, so that a resumed run draws others."""
    batches = Batches(job_of(store), ALONE)
    later = [batches.of_step(step) for step in (7, 2, 7)]
    assert same(later[0], later[2])
    assert same(later[1], Batches(job_of(store), ALONE).of_step(2))
    assert not same(later[0], later[1])
    assert not same(later[1], Batches(job_of(store, seed=1), ALONE).of_step(2))


def test_data_are_the_stores(store: Path) -> None:
    """Catches: labels of other images, or mirrored images where nobody asked for them."""
    opened = LatentStore.open(store)
    batches = Batches(job_of(store, flip=False, label_dropout=0.0), ALONE)
    items = batches.order.batch(24, 8)
    (batch,) = batches.of_step(3)
    assert torch.equal(batch.x, opened.batch(items))
    assert batch.y.tolist() == opened.labels[items].tolist()
    assert batch.eps.shape == batch.x.shape
    assert (batch.tokens_kept, batch.features) == (None, None)


def test_labels_are_hidden_as_often_as_asked(store: Path) -> None:
    """Catches: a dropout that hides labels under class 0, or never.

    Of 400 labels that are hidden with probability 1/4, 100 are, give or take 5 deviations of 8.7.
    """
    batches = Batches(job_of(store, label_dropout=0.25), ALONE)
    labels = torch.cat([batches.of_step(step)[0].y for step in range(50)])
    assert 57 <= int((labels == 3).sum()) <= 143
    assert set(labels.tolist()) == {0, 1, 2, 3}


def test_steps_after_a_rollback_are_drawn_anew(store: Path) -> None:
    """Catches: a rollback that draws what failed once more, or that changes the steps beside it."""
    job = job_of(store)
    plain = Batches(job, ALONE)
    again = Batches(dataclasses.replace(job, redrawn=((2, 4),)), ALONE)
    changed = [not same(plain.of_step(step), again.of_step(step)) for step in range(6)]
    assert changed == [False, False, True, True, False, False]


def test_tokens_that_pass_through_are_some_of_the_images(store: Path) -> None:
    """Catches: a token that is taken twice, or another share than was asked for."""
    job = job_of(store, tread=0.5, depth=4)
    (batch,) = Batches(job, ALONE).of_step(0)
    assert batch.tokens_kept.shape == (8, job.config.tokens // 2)
    for row in batch.tokens_kept.tolist():
        assert len(set(row)) == len(row)
        assert set(row) <= set(range(job.config.tokens))
