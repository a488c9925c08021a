"""Filling a sample set: evaluations counted, interruptions continued, settings kept."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from sitcli.commands.sample.stage import plan, sample
from sitcli.errors import UsageError
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.storage.rows import MISSING, Rows
from tests.tiny import draw, finish, make_run


def test_evaluations_are_counted(run: Path) -> None:
    """Catches: evaluations reported from a formula that the solver does not follow."""
    assert draw(run, "a", solver="euler").meta["evaluations_per_image"] == 4
    assert draw(run, "b", solver="heun", cfg_scale=2.0).meta["evaluations_per_image"] == 16
    assert draw(run, "c", solver="rk4", batch_size=3).meta["evaluations_per_image"] == 16
    assert draw(run, "d", sde=True, solver="heun").meta["evaluations_per_image"] == 7
    assert draw(run, "e", solver="dopri5", steps=None).meta["evaluations_per_image"] > 7
    for name, options in [("a", {"solver": "euler"}), ("d", {"sde": True, "solver": "heun"})]:
        planned = plan(SampleSettings(checkpoint=run, num=8, steps=4, device="cpu", **options))
        known = SampleSet.open(run.parents[1] / name).meta["evaluations_per_image"]
        assert planned.data["evaluations"] == known


def test_interrupted_sets_go_on(run: Path) -> None:
    """Catches: an interrupted set starting again, or ending with other images."""
    whole = draw(run, "whole", batch_size=3)
    stage = sample(
        SampleSettings(
            checkpoint=run, out=run.parents[1] / "parts", num=8, steps=4, batch_size=3,
            precision="fp32", device="cpu",
        )
    )  # fmt: skip
    for event in stage:
        if getattr(event, "done", 0) >= 5:
            break
    stage.close()
    assert 3 <= SampleSet.open(run.parents[1] / "parts").done.sum() < 8
    # Another batch size on the way: the set keeps the one it was begun with.
    parts = draw(run, "parts", batch_size=8)
    assert np.array_equal(whole.images, parts.images)
    assert parts.meta["evaluations_per_image"] == 8


def test_a_set_of_format_1_goes_on(run: Path) -> None:
    """Catches: sets begun before evaluations had rows of their own refused, or their count lost."""
    whole = draw(run, "whole", batch_size=4)
    with Rows(draw(run, "old", batch_size=4).path, writable=True) as rows:
        rows.write([5], status=MISSING)
        rows.set_attrs(complete=False, format_version=1, evaluations=[32, 4])
    with h5py.File(rows.path, "r+") as file:
        del file["evaluations"]
    mended = draw(run, "old", batch_size=4)
    assert mended.complete
    assert np.array_equal(mended.images, whole.images)
    assert (mended.evaluations, mended.meta["evaluations_per_image"]) == ((32, 4), 8)


def test_progress_is_kept_in_place(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an attribute of samples.h5 made anew while drawing: HDF5 moves things for it, and a
    kill in the middle would leave a file that cannot be opened."""
    stage = sample(
        SampleSettings(
            checkpoint=run, out=run.parents[1] / "set", num=8, steps=4, batch_size=1,
            precision="fp32", device="cpu",
        )
    )  # fmt: skip
    while getattr(next(stage), "done", 0) < 1:
        pass
    monkeypatch.setattr(h5py.AttributeManager, "create", None)
    finish(stage)
    samples = SampleSet.open(run.parents[1] / "set")
    assert samples.complete
    assert samples.evaluations == (8 * 8, 8)


def test_a_kill_before_the_end_is_mended(run: Path) -> None:
    """Catches: a division by zero, or no meta.json, after a kill between the last image and the
    end."""
    samples = draw(run, "set")
    samples.rows.set_attrs(complete=False)
    (samples.directory / "meta.json").unlink()
    again = draw(run, "set")
    assert again.complete
    assert json.loads((again.directory / "meta.json").read_text())["evaluations_per_image"] == 8


def test_another_setting_is_refused(run: Path) -> None:
    """Catches: a set that mixes two samplers."""
    draw(run, "set")
    with pytest.raises(UsageError, match="drawn with steps 4, not 5"):
        draw(run, "set", steps=5)
    with pytest.raises(UsageError, match="fp32, not bf16"):
        draw(run, "set", precision="bf16")


def test_a_dry_run_refuses_what_the_command_refuses(run: Path, tmp_path: Path) -> None:
    """Catches: a plan for a set that was begun from another checkpoint."""
    draw(run, "out", num=2)
    (tmp_path / "other").mkdir()
    other = make_run(tmp_path / "other")
    same = dict(out=run.parents[1] / "out", num=2, steps=4, device="cpu", precision="fp32")
    assert plan(SampleSettings(checkpoint=run, **same)).data["num"] == 2
    for command in (plan, lambda settings: finish(sample(settings))):
        with pytest.raises(UsageError, match="was drawn with checkpoint"):
            command(SampleSettings(checkpoint=other, **same))


def test_both_ends_are_told(run: Path) -> None:
    """Catches: noise left in the images without a word of it."""
    options = dict(checkpoint=run, num=2, device="cpu", t_start=0.9)
    assert " from t = 0.9," in plan(SampleSettings(**options)).summary["sampler"] + ","
    text = plan(SampleSettings(**options, t_end=0.2)).summary["sampler"]
    assert "from t = 0.9 to t = 0.2" in text
    text = plan(SampleSettings(**options, sde=True)).summary["sampler"]
    assert "from t = 0.9" in text
    assert "to t" not in text
