"""What reaches stdout and stderr, on a terminal and off it."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from sitcli.cli import output
from sitcli.cli.options import Invocation
from sitcli.events import Note, Progress, Result, Table
from tests.cli.terminal import rest_of, stage


def test_off_a_terminal_progress_is_a_line_every_half_minute(monkeypatch, capfd):
    """Catches: logs filled by one line per batch, and logs that stay silent for hours."""
    clock = iter(range(0, 10_000, 4))
    monkeypatch.setattr(output.time, "monotonic", lambda: next(clock))
    result = output.follow(stage(total=100), title="encode")
    assert result.summary == {"images": "3"}
    captured = capfd.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("encode: ")]
    # The clock is read at least twice an event, 4 s each: 101 events are more than 800 s.
    assert 101 * 8 / (output.LOG_SECONDS + 12) <= len(lines) <= 101 * 12 / output.LOG_SECONDS
    assert "/100 images, " in lines[0]
    assert " left, loss 0.5" in lines[0]
    assert captured.out == ""


def test_off_a_terminal_a_short_stage_logs_its_notes_only(capfd):
    """Catches: a Rich bar's last frame in a log."""
    output.follow(stage(), title="encode")
    assert capfd.readouterr().err == "taking out.h5\nwarning: one image is broken\n"


PROGRAM = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from sitcli.cli.output import follow
from tests.cli.terminal import stage
follow(stage(), title="encode")
"""


def test_no_escapes_in_logs_whatever_the_environment_says():
    """Catches: Rich believing FORCE_COLOR or GITHUB_ACTIONS instead of the file descriptor."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "FORCE_COLOR": "1", "GITHUB_ACTIONS": "true"},
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    assert done.stderr == "taking out.h5\nwarning: one image is broken\n"


def test_on_a_terminal_there_is_a_bar():
    """Catches: a bar on stdout, or none at all, or notes lost behind it."""

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    screen = rest_of(ours)
    assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 0
    text = screen.decode()
    assert "taking out.h5" in text
    assert "warning: one image is broken" in text
    assert "encode" in text
    assert "3/3" in text
    assert "\x1b[" in text


def test_pace_counts_this_run_only(monkeypatch):
    """Catches: a resumed run that promises the rate of the work it did not do."""
    now = [0.0]
    monkeypatch.setattr(output.time, "monotonic", lambda: now[0])
    pace = output._Pace()
    assert pace.describe(Progress(done=900, total=1000)) == ""
    now[0] = 10.0
    assert pace.describe(Progress(done=950, total=1000)) == "5 images/s, 10s left"


def test_ctrl_c_during_a_report_reaches_the_stage(monkeypatch):
    """Catches: an interrupt between two events that skips the stage's own clean-up."""
    saved = []

    def interruptible():
        try:
            yield Note("working")
        except KeyboardInterrupt:
            saved.append(True)
            raise

    def press(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(output, "say", press)
    with pytest.raises(KeyboardInterrupt):
        output.follow(interruptible(), title="x")
    assert saved == [True]


RESULT = Result(
    summary={"images": "3", "where": "here"},
    tables=[Table(title="Costs", header=["model", "G"], rows=[["S/2", "6.06"], ["XL/2", "118.6"]])],
    data={"images": 3},
    path=Path("out.h5"),
    next="sit train",
)


def test_people_get_results_on_stdout_and_the_rest_on_stderr(capfd):
    """Catches: a summary that ends up in a pipe, and a path that does not."""
    output.finish(RESULT, Invocation())
    captured = capfd.readouterr()
    assert captured.err.splitlines() == ["images  3", "where   here", "next: sit train"]
    lines = [line.rstrip() for line in captured.out.splitlines()]
    assert lines == ["Costs", "model      G", "S/2     6.06", "XL/2   118.6", "out.h5"]


def test_json_is_one_object_and_nothing_else(capfd):
    """Catches: a table or summary that breaks `| jq`."""
    output.finish(RESULT, Invocation(json=True))
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"images": 3, "path": "out.h5"}
    assert captured.err == ""


def test_wide_tables_are_not_cut_in_a_pipe(capfd):
    """Catches: columns lost to an 80-character console that nobody looks at."""
    row = [f"{i}" * 12 for i in range(10, 22)]
    table = Table(title="Wide", header=[f"column {i}" for i in range(12)], rows=[row])
    output.print_table(table)
    printed = capfd.readouterr().out
    assert all(cell in printed for cell in row)
    title = "a title of many words " * 5
    output.print_table(Table(title=title, header=["a"], rows=[["b"]]))
    assert title in capfd.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (95, "1m35s"), (7260, "2h01m"), (200_000, "2d07h")],
)
def test_duration(seconds, text):
    """Catches: '60s' and '0h61m'."""
    assert output.duration(seconds) == text


def test_tables_show_brackets(capfd):
    """Catches: cells read as markup: FD[pixels] would lose what it was measured in."""
    output.print_table(Table(title="t", header=["metric"], rows=[["FD[pixels]"]]))
    assert "FD[pixels]" in capfd.readouterr().out
