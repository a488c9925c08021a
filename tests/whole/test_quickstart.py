"""The whole quickstart, run as a user runs it, and the signals that end it."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, True, -9)],
)
def test_signals_end_the_stage_too(tmp_path, number, to_group, code):
    """Catches: an orphan that trains on after Ctrl-C or a scheduler's SIGTERM."""
    out = tmp_path / "q"
    process = start(out, "--images-per-class", "3", "--steps", "100000")
    wait_for(process, "$ sit train")
    wait_for(process, "run: ")
    time.sleep(0.5)
    stage = int(subprocess.check_output(["pgrep", "-P", str(process.pid)]))
    if to_group:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    # A first step may take long, and is saved for all that.
    _, rest = process.communicate(timeout=300)
    assert process.returncode == code
    assert "Traceback" not in rest
    for group in (process.pid, stage):  # nobody of the two is left
        wait_for_the_end(group)
    assert list(out.glob("runs/*/step-*/meta.json")), "the stage did not save before it left"


def wait_for_the_end(group):
    """An orphan is there until its new parent has looked."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail(f"of group {group} somebody is left")


def start(out, *options):
    return subprocess.Popen(
        [sys.executable, "-m", "sitcli", "quickstart", out, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(process, beginning):
    """Read stderr up to a line that begins so."""
    for line in process.stderr:
        if line.startswith(beginning):
            return
    pytest.fail(f"ended with {process.wait()} before '{beginning}'")


@pytest.mark.slow
def test_the_whole_story(tmp_path):
    """Catches: stages that do not fit together, and a second run that starts again."""
    out = tmp_path / "a folder"
    options = ["--images-per-class", "16", "--steps", "20", "--seed", "5"]
    process = start(out, *options)
    printed, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    commands = [line.split()[2] for line in log.splitlines() if line.startswith("$ sit ")]
    assert commands == ["encode-latents", "train", "sample", "evaluate"]
    grid = printed.splitlines()[-1]
    assert grid.endswith("grid.png")
    assert min(Image.open(grid).size) > 32
    assert "real pictures" in printed

    store = out / "shapes.h5"
    before = store.stat().st_mtime_ns
    process = start(out, *options, "--json")
    printed, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    assert "all 20 steps" in log
    data = json.loads(printed)
    assert data["path"] == grid
    assert all(figure["real"]["numbers"] == [80, 80] for figure in data["figures"])
    assert store.stat().st_mtime_ns == before
