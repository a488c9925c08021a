"""The quickstart: pictures worth learning, and four stages run as a user runs them."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from sitcli.cli.output import follow
from sitcli.commands import quickstart
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.images.drawn import SHAPES, draw_shape
from sitcli.settings.tools import QuickstartSettings


def mask(picture):
    """(H, W) in [0, 1]: how far each pixel is from the ground, which is the corner's colour."""
    distance = np.abs(picture.astype(float) - picture[0, 0]).sum(-1)
    return distance / distance.max()


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_whole_plain_and_anti_aliased(name):
    """Would catch a shape cut off by the frame, lost in its ground, or with jagged edges."""
    for index in range(30):
        picture = draw_shape(name, index, size=32, seed=3)
        assert picture.shape == (32, 32, 3)
        assert picture.dtype == np.uint8
        inside = mask(picture)
        border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
        assert border.max() < 0.6, "more than the tip of an edge reaches the border"
        assert 0.05 < inside.mean() < 0.6
        assert np.any((inside > 0.2) & (inside < 0.8)), "no pixel is partly covered"
        contrast = np.abs(picture[inside > 0.99].mean(0) - picture[0, 0]).max()
        assert contrast > 80


def test_classes_are_told_apart():
    """Would catch two classes that look alike: nearest neighbours must name the shape."""

    def masks(indices):
        found = [
            (mask(draw_shape(name, i, size=32, seed=0)), label)
            for label, name in enumerate(SHAPES)
            for i in indices
        ]
        return np.stack([m.ravel() for m, _ in found]), np.array([label for _, label in found])

    known, labels = masks(range(60))
    asked, truth = masks(range(100, 115))
    distances = ((asked[:, None] - known[None]) ** 2).sum(-1)
    assert np.mean(labels[distances.argmin(1)] == truth) > 0.9


def test_pictures_are_a_function_of_seed_name_and_index():
    """Would catch a generator shared between pictures, or Python's salted hash as a seed."""
    picture = draw_shape("heart", 7, size=32, seed=1)
    assert not np.array_equal(picture, draw_shape("heart", 8, size=32, seed=1))
    assert not np.array_equal(picture, draw_shape("heart", 7, size=32, seed=2))
    program = (
        "from sitcli.images.drawn import draw_shape\n"
        "print(draw_shape('heart', 7, size=32, seed=1).tobytes().hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "42"}
    printed = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert bytes.fromhex(printed) == picture.tobytes()


def test_drawing_goes_on_and_keeps_what_is_there(tmp_path):
    """Would catch pictures drawn twice, and a torn file taken for a picture."""
    settings = QuickstartSettings(out=tmp_path / "q", images_per_class=3)
    result = follow(quickstart.draw(settings), title="draw")
    files = sorted(result.path.glob("*/*"))
    assert [file.parent.name for file in files[::3]] == sorted(SHAPES)
    assert len(files) == 30
    for file in files:
        expected = draw_shape(file.parent.name, int(file.stem), size=32, seed=0)
        assert np.array_equal(np.asarray(Image.open(file)), expected)

    before = {file: file.stat().st_mtime_ns for file in files}
    torn = files[4].with_name(f".{files[4].name}.tmp")
    torn.write_bytes(files[4].read_bytes()[:50])
    files[4].unlink()
    follow(quickstart.draw(settings), title="draw")
    assert np.asarray(Image.open(files[4])).shape == (32, 32, 3)
    assert sorted(result.path.glob("*/*")) == files
    assert all(file.stat().st_mtime_ns == before[file] for file in files if file != files[4])


def test_a_folder_with_other_things_is_refused(tmp_path):
    """Would catch pictures scattered into somebody's folder, or two sets mixed in one."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        follow(quickstart.draw(QuickstartSettings(out=tmp_path)), title="draw")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    out = tmp_path / "q"
    follow(quickstart.draw(QuickstartSettings(out=out, images_per_class=2)), title="draw")
    with pytest.raises(UsageError, match="--images-per-class 2 --seed 0"):
        follow(quickstart.draw(QuickstartSettings(out=out, images_per_class=3)), title="draw")
    with pytest.raises(UsageError, match="cannot use"):
        follow(quickstart.draw(QuickstartSettings(out=tmp_path / "thesis.tex")), title="draw")


def test_a_failing_stage_stops_it_with_the_stages_exit_code(tmp_path):
    """Would catch a quickstart that goes on after an error, or reports success."""
    with pytest.raises(SitError) as caught:
        quickstart.run_command(["train", "--lr", "-1"], tmp_path)
    assert caught.value.exit_code == 2
    assert "`sit train --lr -1`" in caught.value.message
    with pytest.raises(SitError) as caught:
        quickstart.run_command(["sample"], tmp_path)  # there is no run
    assert caught.value.exit_code == 1


def test_a_killed_stage_is_named(tmp_path, monkeypatch):
    """Would catch a negative return code passed on as an exit code."""
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/sh")
    monkeypatch.setattr(quickstart, "LAUNCH", ["-c", "kill -KILL $$"])
    with pytest.raises(Interrupted, match="signal 9") as caught:
        quickstart.run_command(["train"], tmp_path)
    assert caught.value.exit_code == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_cannot_save_is_not_said_to_have_stopped(tmp_path, monkeypatch, number):
    """Would catch a failure to save that a signal hides: its exit code, and that all is well."""
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/sh")
    stage = f"trap 'exit 1' {number:d}; kill -{number:d} $PPID; while sleep 0.1; do :; done"
    monkeypatch.setattr(quickstart, "LAUNCH", ["-c", stage])
    with pytest.raises(SitError, match="failed with exit code 1") as caught:
        quickstart.run_command(["train"], tmp_path)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("number", "to_group", "code"),
    [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143), (signal.SIGKILL, True, -9)],
)
def test_signals_end_the_stage_too(tmp_path, number, to_group, code):
    """Would catch an orphan that trains on after Ctrl-C or a scheduler's SIGTERM."""
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
    """Would catch stages that do not fit together, and a second run that starts again."""
    out = tmp_path / "a folder"
    options = ["--images-per-class", "12", "--steps", "20", "--seed", "5"]
    process = start(out, *options)
    printed, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    commands = [line.split()[2] for line in log.splitlines() if line.startswith("$ sit ")]
    assert commands == ["encode-latents", "train", "sample", "evaluate"]
    grid = printed.splitlines()[-1]
    assert grid.endswith("grid.png")
    assert min(Image.open(grid).size) > 32
    assert "floor" in printed

    store = out / "shapes.h5"
    before = store.stat().st_mtime_ns
    process = start(out, *options, "--json")
    printed, log = process.communicate(timeout=900)
    assert process.returncode == 0, log
    assert "all 20 steps" in log
    data = json.loads(printed)
    assert data["path"] == grid
    assert all(figure["floor"] is not None for figure in data["figures"])
    assert store.stat().st_mtime_ns == before
