"""`sit watch` as it is seen: on a terminal, in a log, as JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sitcli.cli.watch import loss_text, sparkline, state_text
from sitcli.commands.watch import Snapshot
from tests.cli.terminal import rest_of
from tests.commands.watched import watched_run


def sit(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "sitcli", "watch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
        check=False,
    )


def test_sparkline() -> None:
    """Catches: a curve upside down, or flat because of the first steps' high loss."""
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([3, 3, 1, 1], 2) == "█▁"
    assert sparkline([5.0], 10) == "▁"
    assert sparkline([2.0, 2.0, 2.0], 3) == "▁▁▁"
    assert sparkline([], 10) == ""
    assert len(sparkline(range(1000), 37)) == 37
    falling = [100.0] + [1 - i / 40 for i in range(39)]
    assert sparkline(falling, 40)[1] == "█"
    assert sparkline(falling, 40)[-1] == "▁"
    assert sparkline(falling, 40)[20] in "▄▅"


def test_loss_text() -> None:
    """Catches: a rising loss reported as falling, or a change taken from too few lines."""
    curve = [(50 * i, 2.0 if i <= 18 else 1.0) for i in range(1, 21)]
    assert loss_text(curve) == "1, down 50.0% in the last 100 steps"
    assert loss_text([(s, 3 - loss) for s, loss in curve]) == "2, up 100.0% in the last 100 steps"
    assert loss_text(curve[:5]) == "2"


def test_state_text() -> None:
    """Catches: words that do not say whether and since when a run is dead."""
    run = dict(run=Path("runs/x"), steps=100, age=720.0, interval=0.25)
    silent = state_text(Snapshot(state="silent", **run))
    assert re.fullmatch(
        r"seems stopped: nothing written for 12m00s, since .*\d\d:\d\d, "
        r"usually a line every 0.25s",
        silent,
    )
    stopped = state_text(Snapshot(state="stopped", **run))
    assert stopped == "not training, ended 12m00s ago before its last step"
    waiting = state_text(Snapshot(state="waiting", **run))
    assert waiting == "started 12m00s ago, waiting for its first log line"


def test_once_off_a_terminal(tmp_path: Path) -> None:
    """Catches: bars and escapes in a log, or blocks that an ASCII stream cannot take."""
    path = watched_run(tmp_path / "run", lines=20, lock=False)
    done = sit(path, "--once", FORCE_COLOR="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"run         {path} (SiT-Mi/4)\nstate       not training, ended "
    )
    assert "\nsteps       200/100, " in done.stdout
    assert "\nloss        █" in done.stdout
    assert "\x1b" not in done.stdout
    assert "loss        @" in sit(path, "--once", PYTHONIOENCODING="ascii").stdout


def test_json(tmp_path: Path) -> None:
    """Catches: a Path that JSON does not know, or a state without the figures behind it."""
    path = watched_run(tmp_path / "run", lines=4, ago=1, began=60, lock=True)
    data = json.loads(sit(path, "--json").stdout)
    assert (data["run"], data["state"], data["step"], data["steps"]) == (
        str(path), "training", 40, 100
    )  # fmt: skip
    assert data["entry"]["loss"] == 1 / 40
    assert data["eta_seconds"] == pytest.approx(12 - 1, abs=3)
    assert (data["checkpoint"], data["grid"]) == ("", None)


def test_lines_in_a_log_end_with_the_training(tmp_path: Path) -> None:
    """Catches: a script that waits for a training that has died, or takes it for done."""
    path = watched_run(tmp_path / "run", lines=4, lock=False)
    done = sit(path)
    assert done.returncode == 1
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d run: not training, .*, step 40/100, loss 0.025\n", done.stdout
    )
    assert "error: " in done.stderr
    assert "hint: the same `sit train` command goes on" in done.stderr
    (path / "step-0000100").mkdir()
    (path / "step-0000100" / "meta.json").touch()
    done = sit(path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "run: finished, step 40/100" in done.stdout


def test_torch_is_not_loaded(tmp_path: Path) -> None:
    """Catches: seconds of import, and its memory, for a look at a few text files."""
    path = watched_run(tmp_path / "run", lines=4, lock=False)
    program = (
        "import sys; sys.argv[1:] = ['watch', sys.argv[1], '--once']\n"
        "from sitcli.cli.app import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ctrl_c_on_a_terminal_leaves_quietly(tmp_path: Path) -> None:
    """Catches: `error: interrupted`, a traceback or exit code 130 for ending a mere view."""
    path = watched_run(tmp_path / "run", lines=30, ago=1, began=90, lock=True)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sitcli", "watch", str(path), "--every", "0.2"],
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen = b""
    deadline = time.monotonic() + 30
    while screen.count(b"training") < 3 and time.monotonic() < deadline:
        screen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    screen += rest_of(ours)
    assert process.communicate(timeout=30)[1] == b""
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.decode())
    for part in (f"{path} (SiT-Mi/4)", "300/100", "loss", "█", "log line"):
        assert part in text
