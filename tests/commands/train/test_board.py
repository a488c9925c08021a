"""TensorBoard and wandb: nothing lost over a resume, and no training that waits for a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sitcli.commands.train.board import Board, check_wandb
from sitcli.errors import UsageError


def board(folder: Path, first_step: int) -> Board:
    return Board(folder, first_step=first_step, wandb=False, name="tiny", config={"lr": 1e-3})


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tb")).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_resume_replaces_what_is_logged_again(tmp_path: Path) -> None:
    """Catches: the steps after the checkpoint drawn twice, the curve running backwards."""
    killed = board(tmp_path, 1)
    for step in range(1, 5):
        killed.log(step, {"step": step, "loss": 1.0})
    killed.flush()
    resumed = board(tmp_path, 3)
    for step in range(3, 6):
        resumed.log(step, {"step": step, "loss": 0.5})
    resumed.close()
    assert scalars(tmp_path, "loss") == [(1, 1.0), (2, 1.0), (3, 0.5), (4, 0.5), (5, 0.5)]


def test_a_metrics_line_and_a_grid_are_drawn(tmp_path: Path) -> None:
    """Catches: a list of the ranks' seconds that ends the training, and grids that never arrive."""
    picture = tmp_path / "grid.png"
    Image.new("RGBA", (6, 4), "red").save(picture)
    both = board(tmp_path, 1)
    both.log(1, {"step": 1, "time": 1.7e9, "loss": 2.0, "rank_seconds": [0.25, 0.5, 0.375]})
    both.picture(1, "samples", picture)
    both.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    names = ["loss", "rank_seconds/max", "rank_seconds/min"]
    assert sorted(events.Tags()["scalars"]) == names
    assert [events.Scalars(name)[0].value for name in names] == [2.0, 0.5, 0.25]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (1, 6, 4)
    assert both.notes == []


def test_without_wandb_it_is_refused_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: an ImportError hours later; and a folder wandb/ in the working directory that
    Python imports in the package's place."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="needs the package wandb") as error:
        check_wandb()
    assert "pip install 'wandb>=" in error.value.hint
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(UsageError, match="needs the package wandb"):
        check_wandb()


WANDB_PROGRAM = """
import sys
from pathlib import Path
from sitcli.commands.train.board import WANDB_SETTINGS, Board
WANDB_SETTINGS["init_timeout"] = 3.0
folder, first_step = Path(sys.argv[1]), int(sys.argv[2])
run = Board(folder, first_step=first_step, wandb=True, name="tiny", config={"lr": 1e-3})
for step in range(first_step, first_step + 3):
    run.log(step, {"loss": 1 / step, "rank_seconds": [0.1, 0.2]})
run.picture(step, "samples", folder / "grid.png")
notes = list(run.notes)
run.close()
assert run.notes == notes, run.notes
print("\\n".join(notes))
"""


def run_wandb(folder: Path, first_step: int, **environment: str) -> list[str]:
    """The notes of a process that logs three steps; it may say nothing else."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    done = subprocess.run(
        [sys.executable, "-c", WANDB_PROGRAM, str(folder), str(first_step)],
        env={**clean, "HOME": str(folder), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    pytest.importorskip("wandb")
    Image.new("RGB", (4, 4), "red").save(tmp_path / "grid.png")
    return tmp_path


def test_wandb_without_a_key_stays_offline_and_goes_on(run_folder: Path) -> None:
    """Catches: a prompt for a key, chatter on the terminal, files outside the run directory, or a
    resumed run that wandb takes for another."""
    for first_step in (1, 3):
        (note,) = run_wandb(run_folder, first_step)
        assert note.startswith("wandb: offline, there is no API key")
        assert note.endswith(f"wandb sync {run_folder}/wandb/offline-run-*")
    identity = (run_folder / "wandb-id.txt").read_text().strip()
    files = sorted((run_folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.name for file in files] == [f"run-{identity}.wandb"] * 2
    assert all(b"rank_seconds/max" in file.read_bytes() for file in files)


def test_wandb_without_a_network_stays_offline(run_folder: Path) -> None:
    """Catches: a training that ends, or waits for minutes, because a server does not answer."""
    # A port that nobody listens on.
    notes = run_wandb(run_folder, 1, WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9")
    assert len(notes) == 1
    assert notes[0].startswith("wandb: offline, ")
    assert len(list((run_folder / "wandb").glob("offline-run-*/run-*.wandb"))) == 1
