"""Watching a run: what its files tell, whatever happens to them meanwhile."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from sitcli.commands.train.stage import train
from sitcli.commands.watch import CHECK_BYTES, Tail, Watcher, eta, usual_interval, watch
from sitcli.errors import SitError
from sitcli.events import Progress
from sitcli.settings.tools import WatchSettings
from sitcli.settings.train import TrainSettings
from tests.commands.watched import entry, watched_run
from tests.tiny import make_store


def look(path: Path):
    (snapshot,) = watch(WatchSettings(run=path, once=True))
    return snapshot


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (dict(lines=0, began=30, lock=True), "waiting"),
        (dict(lines=0, began=3000, lock=True), "silent"),
        (dict(lines=0, began=30, lock=False), "stopped"),
        (dict(lines=5, ago=3, began=60, lock=True), "training"),
        (dict(lines=5, ago=90, began=900, lock=True), "silent"),
        (dict(lines=5, ago=3, began=60, lock=False), "stopped"),
        (dict(lines=5, ago=900, began=20, lock=True), "waiting"),  # for the first line of a resume
    ],
)
def test_states(tmp_path: Path, run: dict, state: str) -> None:
    """Catches: a killed run shown as training for ever, or one that compiles as dead."""
    snapshot = look(watched_run(tmp_path / "run", **run))
    assert snapshot.state == state
    assert (snapshot.steps, snapshot.step) == (100, 10 * run["lines"])
    age = min(run.get("ago", 1e9), run["began"])
    assert snapshot.age == pytest.approx(age, abs=2.0)


def test_a_save_counts_as_life(tmp_path: Path) -> None:
    """Catches: a run called dead because a big checkpoint keeps it from logging."""
    path = watched_run(tmp_path / "run", lines=5, ago=90, began=900, lock=True)
    (path / ".saving-step-0000050").mkdir()
    assert look(path).state == "training"


def test_a_real_training_is_followed_to_its_end(tmp_path: Path) -> None:
    """Catches: a name in the run directory, or a key of a log line, that train no longer writes."""
    store, out = make_store(tmp_path / "tiny.h5").path, tmp_path / "run"
    settings = TrainSettings(
        latents=[store], out=out, model="SiT-Mi/4", width=32, depth=1, heads=2, batch_size=8,
        steps=6, log_every=1, save_every=2, sample_every=3, precision="fp32", device="cpu",
    )  # fmt: skip
    watcher, states = None, []
    for event in train(settings):
        if isinstance(event, Progress):
            watcher = watcher or Watcher(out)
            states.append(watcher.look().state)
    assert states[0] == "waiting"
    assert set(states[1:]) == {"training"}
    end = watcher.look()
    assert (end.state, end.step, end.steps, end.model) == ("finished", 6, 6, "SiT-Mi/4")
    assert (end.checkpoint, end.grid.name) == ("step-0000006", "step-0000006.png")
    assert [step for step, _ in end.curve] == [1, 2, 3, 4, 5, 6]
    assert end.interval is not None
    assert len(end.entry["rank_seconds"]) == 1


def test_an_interrupted_training_has_stopped(tmp_path: Path) -> None:
    """Catches: a run that was stopped on purpose shown as training for a minute more."""
    store, out = make_store(tmp_path / "tiny.h5").path, tmp_path / "run"
    stage = train(
        TrainSettings(
            latents=[store], out=out, model="SiT-Mi/4", width=32, depth=1, heads=2, batch_size=8,
            steps=6, log_every=1, sample_every=0, precision="fp32", device="cpu",
        )
    )  # fmt: skip
    for event in stage:
        if isinstance(event, Progress) and event.done == 3:
            break
    assert look(out).state == "training"
    stage.close()
    assert look(out).state == "stopped"


def test_the_tail_alone_is_read(tmp_path: Path) -> None:
    """Catches: all of a long run's log parsed again at each look."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(entry, range(1, 101))))
    tail = Tail(path)
    tail.read()
    assert [step for step, _ in tail.curve] == list(range(1, 101))
    with open(path, "r+b") as file:  # what was read is never looked at again, but its end
        file.write(b"#" * (path.stat().st_size - CHECK_BYTES))
        file.seek(0, os.SEEK_END)
        file.write(entry(101).encode() + b'{"step": 102, "lo')
    tail.read()
    assert [step for step, _ in tail.curve] == list(range(1, 102))
    with open(path, "ab") as file:
        file.write(b'ss": 0.5}\n')
    tail.read()
    assert tail.curve[-1] == (102, 0.5)
    assert len(tail.curve) == 102


@pytest.mark.parametrize("replace", [True, False], ids=["renamed over", "written in place"])
def test_a_log_that_a_resume_cut_is_read_again(tmp_path: Path, replace: bool) -> None:
    """Catches: lines read twice, or missed, when a resume drops those after its checkpoint."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(entry, range(1, 101))))
    tail = Tail(path)
    tail.read()
    # Longer than what was read: the size alone tells nothing.
    text = "".join(entry(i, time=1.7e9) for i in [*range(1, 51), *range(151, 251)])
    if replace:
        (tmp_path / "new").write_text(text)
        (tmp_path / "new").replace(path)
    else:
        path.write_text(text)
    tail.read()
    assert [step for step, _ in tail.curve] == [*range(1, 51), *range(151, 251)]
    assert tail.recent[-1]["step"] == 250


def test_damaged_lines_and_no_file(tmp_path: Path) -> None:
    """Catches: a view that dies of a line cut by a full disk, or of a file that goes away."""
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    tail.read()
    path.write_text(entry(1) + '{"step": 2, "lo' + entry(3) + "[]\n7\n{}\n" + entry(4))
    tail.read()
    assert [step for step, _ in tail.curve] == [1, 4]
    path.write_text(entry(1) + '{"step": 2, "loss": NaN}\n')
    tail.read()
    assert (len(tail.curve), len(tail.recent)) == (1, 2)
    path.unlink()
    tail.read()
    assert not tail.curve
    assert not tail.recent


def test_a_run_that_is_removed_and_made_anew(tmp_path: Path) -> None:
    """Catches: the old run's curve below the new one's, or the end of the view."""
    path = watched_run(tmp_path / "run", lines=5, lock=True)
    snapshots = watch(WatchSettings(run=path, every=0.1))
    assert next(snapshots).step == 50
    shutil.rmtree(path)
    gone = next(snapshots)
    assert (gone.state, gone.curve) == ("gone", ())
    watched_run(tmp_path / "run", lines=1, began=60, lock=True)
    again = next(snapshots)
    assert (again.state, [step for step, _ in again.curve]) == ("training", [10])
    (path / "step-0000100").mkdir()
    assert next(snapshots).state == "training"
    (path / "step-0000100" / "meta.json").touch()
    (path / ".config.yaml.lock").unlink()
    assert [s.state for s in snapshots] == ["finished"]


def test_what_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: an empty view for a wrong name; and the newest run overlooked before its first
    checkpoint."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SitError, match="there is no run below runs/"):
        next(watch(WatchSettings()))
    with pytest.raises(SitError, match="there is no run nope"):
        next(watch(WatchSettings(run=Path("nope"))))
    with pytest.raises(SitError, match="is not a run directory"):
        next(watch(WatchSettings(run=tmp_path)))
    for name, ago in (("old", 900), ("new", 5), ("older", 5000)):
        path = watched_run(Path("runs", name), began=ago, lock=False)
        os.utime(path / "metrics.jsonl", (time.time() - ago,) * 2)
    assert next(watch(WatchSettings())).run == Path("runs/new")


def test_time_left() -> None:
    """Catches: a night between two halves of a run taken for slow training, or saves left out."""
    steady = [(10.0 * i, 5 * i) for i in range(11)]  # 2 seconds a step, at step 50
    assert usual_interval(steady) == 10
    assert eta(steady, 150) == pytest.approx(200)
    night = steady + [(t + 50_000, s + 50) for t, s in steady[1:]]
    assert eta(night, 150) == pytest.approx(100)
    saves = [(t + 40 * (i // 5), s) for i, (t, s) in enumerate(steady)]  # 40 s after every 25 steps
    assert eta(saves, 150) == pytest.approx(100 * 180 / 50)
    assert eta(steady, 40) == 0
    assert eta(steady[:1], 150) is None
    assert eta([], 150) is None
