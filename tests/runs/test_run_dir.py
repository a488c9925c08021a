"""A run's folder: steps that count, saves that are committed, what pruning keeps, and the log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from sitcli.model.power_ema import Snapshot
from sitcli.runs.run_dir import RunDir, snapshot_name, step_name
from sitcli.storage.tensors import write_tensors


def save(run: RunDir, step: int, **meta) -> Path:
    folder = run.begin_save(step)
    (folder / "weights").write_text(str(step))
    return run.commit_save(step, meta)


def test_names_sort_as_numbers() -> None:
    """Catches: names whose order in a listing is not that of the steps, up to ten million."""
    assert step_name(10_000) == "step-0010000"
    assert snapshot_name(0.05) == "ema-std0.050.safetensors"
    assert sorted(map(step_name, (9_999_999, 20, 3))) == [*map(step_name, (3, 20, 9_999_999))]


def test_steps_are_complete_ones_in_order(tmp_path: Path) -> None:
    """Catches: an order of text, in which step 10,000,000 comes before step 9,000,000, and folders
    that are no checkpoint taken for one."""
    run = RunDir(tmp_path / "run")
    assert run.steps() == []
    assert run.newest() is None
    for step in (9_000_000, 10_000_000, 5):
        save(run, step)
    for name in ("step-12", "step-0000007-old", "steps"):
        (run.path / name).mkdir()
        (run.path / name / "meta.json").touch()
    (run.path / "step-0000008").mkdir()  # no meta.json
    assert run.steps() == [5, 9_000_000, 10_000_000]
    assert run.newest() == run.path / "step-10000000"


def test_a_save_counts_when_it_is_committed(tmp_path: Path) -> None:
    """Catches: a checkpoint that can be found before it is whole, or files of an earlier attempt
    that stay in it."""
    run = RunDir(tmp_path / "run")
    save(run, 1)
    (run.begin_save(2) / "half").touch()
    assert run.steps() == [1]
    assert run.partial() == [run.saving_path(2)]
    (run.step_path(2)).mkdir()  # a removal that was cut off
    (run.step_path(2) / "old").touch()
    assert run.partial() == [run.saving_path(2), run.step_path(2)]
    final = save(run, 2, lr=0.5)
    assert final == run.newest() == run.step_path(2)
    assert sorted(path.name for path in final.iterdir()) == ["meta.json", "state", "weights"]
    meta = json.loads((final / "meta.json").read_text())
    assert (meta["format"], meta["step"], meta["lr"]) == ("sit-checkpoint", 2, 0.5)
    assert run.partial() == []


def test_cleaning_removes_what_does_not_count_alone(tmp_path: Path) -> None:
    """Catches: leftovers of a kill that fill the disk, or a whole checkpoint removed with them."""
    run = RunDir(tmp_path / "run")
    save(run, 1)
    run.begin_save(2)
    run.step_path(3).mkdir()
    run.clean()
    assert [path.name for path in run.path.iterdir()] == ["step-0000001"]


@pytest.mark.parametrize("last", [0, 1, 3, 9])
@pytest.mark.parametrize("every", [0, 2, 5])
def test_pruning_keeps_the_newest_and_the_multiples(tmp_path: Path, last: int, every: int) -> None:
    """Catches: pruning the newest instead of the oldest, and steps that are to stay for good."""
    run, steps = RunDir(tmp_path / "run"), [1, 2, 4, 5, 7, 8]
    for step in steps:
        save(run, step)
    run.prune(last=last, every=every)
    kept = {s for s in steps if every and s % every == 0} | set(steps[-last:])
    assert run.steps() == sorted(kept if last else steps)


def test_a_removal_that_is_cut_off_does_not_count(tmp_path: Path, monkeypatch) -> None:
    """Catches: a step that lost some of its files and is still taken for a checkpoint."""
    run = RunDir(tmp_path / "run")
    for step in (1, 2):
        save(run, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **more: None)  # killed before it
        run.prune(last=1, every=0)
    assert (run.step_path(1) / "weights").exists()
    assert run.steps() == [2]
    assert run.partial() == [run.step_path(1)]


def test_averages_outlive_their_step(tmp_path: Path) -> None:
    """Catches: a step's averages removed with it, counted twice, or given to another step."""
    run = RunDir(tmp_path / "run")
    for step in (3, 6):
        folder = run.begin_save(step)
        for std in (0.05, 0.1):
            write_tensors(folder / snapshot_name(std), {"w": torch.tensor([step + std])})
        run.commit_save(step, {})
    before = list(run.snapshots())
    run.prune(last=1, every=0)
    assert run.steps() == [6]
    assert list(run.snapshots()) == before == [Snapshot(s, d) for s in (3, 6) for d in (0.05, 0.1)]
    assert not run.snapshots()[Snapshot(3, 0.1)].is_relative_to(run.step_path(3))


def test_a_log_line_cut_short_is_left_out(tmp_path: Path) -> None:
    """Catches: a run that cannot go on because a kill cut its last log line."""
    run = RunDir(tmp_path)
    assert run.read_metrics() == []
    for step in (1, 2, 3):
        run.log_metrics({"step": step})
    with open(run.metrics, "a") as file:
        file.write('{"step": 4, "lo')
    assert [entry["step"] for entry in run.read_metrics()] == [1, 2, 3]
    run.cut_metrics(2)
    run.log_metrics({"step": 3, "again": True})
    assert [entry.get("again", False) for entry in run.read_metrics()] == [False, False, True]


def test_the_checksum_of_the_log_s_beginning(tmp_path):
    """Catches: a checksum of what was logged since, too."""
    run = RunDir(tmp_path)
    assert (run.metrics_bytes(), run.metrics_checksum(0)) == (0, "00000000")
    run.metrics.write_bytes(b"123456789")
    assert run.metrics_bytes() == 9
    assert run.metrics_checksum(9) == run.metrics_checksum(99) == "cbf43926"
    run.metrics.write_bytes(b"123456789 and more")
    assert run.metrics_checksum(9) == "cbf43926"
