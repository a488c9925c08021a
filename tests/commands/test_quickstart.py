"""`sit quickstart`: the pictures it draws, and commands that fail or are killed."""

import signal

import numpy as np
import pytest
from PIL import Image

from sitcli.cli.output import follow
from sitcli.commands import quickstart
from sitcli.errors import Interrupted, SitError, UsageError
from sitcli.images.drawn import SHAPES, draw_shape
from sitcli.settings.tools import QuickstartSettings


def test_drawing_goes_on_and_keeps_what_is_there(tmp_path):
    """Catches: pictures drawn twice, and a torn file taken for a picture."""
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
    """Catches: pictures scattered into somebody's folder, or two sets mixed in one."""
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
    """Catches: a quickstart that goes on after an error, or reports success."""
    with pytest.raises(SitError) as caught:
        quickstart.run_command(["train", "--lr", "-1"], tmp_path)
    assert caught.value.exit_code == 2
    assert "`sit train --lr -1`" in caught.value.message
    with pytest.raises(SitError) as caught:
        quickstart.run_command(["sample"], tmp_path)  # there is no run
    assert caught.value.exit_code == 1


def test_a_killed_stage_is_named(tmp_path, monkeypatch):
    """Catches: a negative return code passed on as an exit code."""
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/sh")
    monkeypatch.setattr(quickstart, "LAUNCH", ["-c", "kill -KILL $$"])
    with pytest.raises(Interrupted, match="signal 9") as caught:
        quickstart.run_command(["train"], tmp_path)
    assert caught.value.exit_code == 137


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stage_that_cannot_save_is_not_said_to_have_stopped(tmp_path, monkeypatch, number):
    """Catches: a failure to save that a signal hides: its exit code, and that all is well."""
    monkeypatch.setattr(quickstart.sys, "executable", "/bin/sh")
    stage = f"trap 'exit 1' {number:d}; kill -{number:d} $PPID; while sleep 0.1; do :; done"
    monkeypatch.setattr(quickstart, "LAUNCH", ["-c", stage])
    with pytest.raises(SitError, match="failed with exit code 1") as caught:
        quickstart.run_command(["train"], tmp_path)
    assert caught.value.exit_code == 1
