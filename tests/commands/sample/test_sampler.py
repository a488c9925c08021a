"""Where sampling begins and ends, by option, by the run's loss, and in sets of older versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sitcli.commands.sample.options import resolve
from sitcli.commands.sample.sampler import Sampler, as_recorded, sampler_of, shrinks
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.core.intervals import MARGIN, MOST_DATA_ERROR
from sitcli.errors import UsageError
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import draw, make_run, write_meta

SDE = dict(sde=True)
NO_LAST_STEP = dict(sde=True, last_step="none")


def checkpoint_of(folder: Path, process: Flow, noise_error: float | None = None) -> Checkpoint:
    """A run whose loss curve is that of a network with this error of eps on linear."""
    folder.mkdir(exist_ok=True)
    run = make_run(folder, process=process)
    meta_file = next(run.glob("step-*/meta.json"))
    meta = json.loads(meta_file.read_text())
    bins = [(i + 0.5) / 20 for i in range(20)]
    sums = [] if noise_error is None else [(noise_error / (1 - t)) ** 2 for t in bins]
    meta["loss_by_t"] = dict(sums=sums, counts=[1.0] * len(sums))
    write_meta(meta_file, meta)
    return open_checkpoint(run)


def sampler(checkpoint: Checkpoint, **options) -> Sampler:
    return sampler_of(resolve(SampleSettings(**options), checkpoint), checkpoint)


def test_the_ends_that_were_asked_for(tmp_path: Path) -> None:
    """Catches: an end that is ignored, or noise that is not scaled to the time it stands for."""
    checkpoint = checkpoint_of(tmp_path, Flow(prediction="noise"))
    assert sampler(checkpoint).interval == (1 - MARGIN, 0.0, False, 1 - MARGIN, 0.0)
    ode = sampler(checkpoint, t_start=0.9, t_end=0.1)
    assert ode.interval == (0.9, 0.1, False, 0.9, 0.0)
    assert sampler(checkpoint, **SDE, t_start=0.9).interval == (0.9, 0.04, False, 0.9, 0.0)
    assert sampler(checkpoint, **SDE, last_step_size=0.1).interval.end == 0.1
    assert sampler(checkpoint, **NO_LAST_STEP).interval.end == MARGIN
    assert sampler(checkpoint, **NO_LAST_STEP, t_end=0.02).interval.end == 0.02


def test_a_network_of_large_error_begins_later(tmp_path: Path) -> None:
    """Catches: the loss that the run measured not looked at."""
    checkpoint = checkpoint_of(tmp_path, Flow(prediction="noise"), noise_error=0.1)
    expected = 1 / (1 + 0.1 / MOST_DATA_ERROR)  # sigma / alpha is MOST_DATA_ERROR / 0.1 there
    for options in ({}, {"solver": "dopri5"}, SDE):
        assert sampler(checkpoint, **options).interval.start == pytest.approx(expected, abs=1e-4)
    assert sampler(checkpoint, t_start=0.999).interval.start == 0.999


def test_data_prediction_does_not_jump_where_an_end_was_asked_for(tmp_path: Path) -> None:
    """Catches: --t-end 0.1 that jumps to the data from there."""
    checkpoint = checkpoint_of(tmp_path, Flow(prediction="data"))
    assert sampler(checkpoint).interval.jump
    assert sampler(checkpoint, t_end=0.1).interval == (1.0, 0.1, False, 1.0, 0.0)


@pytest.mark.parametrize(
    ("process", "options", "message"),
    [
        (Flow(prediction="noise"), dict(t_start=1.0), "--t-start 1: .* divides by alpha"),
        (Flow(prediction="noise"), dict(t_start=0.99999), "--t-start 0.99999: .* divides by alpha"),
        (Flow(), dict(**SDE, wt="kl", t_start=1.0), "divides by alpha"),
        (Flow(interpolant="vp"), dict(t_end=0.0), "--t-end 0: .* divides by sigma"),
        (Flow(prediction="data"), dict(t_end=0.0), "divides by sigma"),
        (Flow(), dict(**NO_LAST_STEP, t_end=0.0), "divides by sigma"),
        (Flow(), dict(t_start=0.3, t_end=0.5), "begin at t = 0.3 and end at t = 0.5"),
        (Flow(), dict(**SDE, t_start=0.1, last_step_size=0.2), "begin at t = 0.1 and end at"),
    ],
)
def test_ends_that_cannot_be(tmp_path: Path, process: Flow, options: dict, message: str) -> None:
    """Catches: a division by zero, or time that runs the other way."""
    with pytest.raises(UsageError, match=message):
        sampler(checkpoint_of(tmp_path, process), **options)


def test_a_velocity_model_may_begin_and_end_at_the_ends(tmp_path: Path) -> None:
    """Catches: an end refused where nothing divides by zero."""
    checkpoint = checkpoint_of(tmp_path, Flow())
    assert sampler(checkpoint, t_start=1.0, t_end=0.0).interval == (1.0, 0.0, False, 1.0, 0.0)


def test_a_begun_set_keeps_its_interval(tmp_path: Path) -> None:
    """Catches: a set of an older version, which recorded none, finished over another interval; or
    one of this version over the interval of a later one."""
    checkpoint = checkpoint_of(tmp_path, Flow(prediction="noise"), noise_error=0.1)
    process = checkpoint.process
    ode, sde = sampler(checkpoint), sampler(checkpoint, **SDE)
    assert as_recorded(ode, None, process).interval == (1 - 1e-5, 0.0, False, 1.0, 0.0)
    assert as_recorded(sde, None, process).interval == (1 - 1e-3, 0.04, False, 1.0, 0.0)
    assert as_recorded(ode, [0.7, 0.1, True, 0.5, 0.2], process).interval == (
        0.7, 0.1, True, 0.5, 0.2,
    )  # fmt: skip
    velocity = sampler(checkpoint_of(tmp_path / "velocity", Flow()))
    assert as_recorded(velocity, None, Flow()).interval == (1.0, 0.0, False, 1.0, 0.0)
    chain = sampler(checkpoint_of(tmp_path / "chain", Diffusion()))
    assert as_recorded(chain, None, Diffusion()) == chain


def test_the_interval_is_recorded(run: Path) -> None:
    """Catches: a sample set that does not say over which times it was drawn."""
    draw(run, "out", t_start=0.9)
    meta = SampleSet.open(run.parents[1] / "out" / "samples.h5").meta
    assert meta["interval"] == [0.9, 0.0, False, 0.9, 0.0]
    assert (meta["t_start"], meta.get("t_end")) == (0.9, None)


def test_which_last_step_shrinks(tmp_path: Path) -> None:
    """Catches: no word of --last-step mean under constant, or one where it does no harm."""
    checkpoint = checkpoint_of(tmp_path, Flow())
    assert shrinks(sampler(checkpoint, **SDE, wt="constant", last_step="mean"))
    assert not shrinks(sampler(checkpoint, **SDE, wt="constant"))
    assert not shrinks(sampler(checkpoint, **SDE))
    assert not shrinks(sampler(checkpoint))
