"""``sit watch``: a live view on a terminal, a line now and then off it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sitcli.cli.options import Invocation, command
from sitcli.cli.output import LOG_SECONDS, duration
from sitcli.errors import SitError
from sitcli.settings.tools import WatchSettings
from sitcli.text import format_bytes, spread

if TYPE_CHECKING:
    from sitcli.commands.watch import Snapshot
LABEL = 10  # columns
BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-=+*#@"
COLOURS = {"training": "green", "finished": "green", "waiting": "cyan"}
RESUME = "the same `sit train` command goes on from the newest checkpoint"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""

    @command(app, "watch", WatchSettings, panel="Tools")
    def run(settings: WatchSettings, invocation: Invocation) -> None:
        """Watch a run in progress: loss, speed, time left, ranks, the newest checkpoint and grid.

        It reads the run's files and writes none: from another terminal, or from any machine that
        sees them. It ends with the run, or by Ctrl-C, which leaves the training alone. Off a
        terminal it prints a line when there is news, twice a minute at most, and ends with exit
        code 1 if the training ended before its last step.

        sit watch

        sit watch runs/NAME

        sit watch runs/NAME >> progress.log

        sit watch --once --json | jq .eta_seconds
        """
        from sitcli.commands.watch import watch

        snapshots = watch(replace(settings, once=settings.once or invocation.json))
        with contextlib.suppress(KeyboardInterrupt):
            if invocation.json:
                print(json.dumps(as_data(next(snapshots)), indent=2))
            elif sys.stdout.isatty():
                _live(snapshots)
            elif settings.once:
                print("\n".join(plain(next(snapshots))))
            else:
                _lines(snapshots)


def _live(snapshots: Iterator[Snapshot]) -> None:
    console = Console(force_terminal=True)
    with Live(console=console, auto_refresh=False) as live:
        for snapshot in snapshots:
            live.update(draw(snapshot, console), refresh=True)


def _lines(snapshots: Iterator[Snapshot]) -> None:
    """Print a line for every new log line, at least LOG_SECONDS apart.

    Raises SitError if the run stopped before its last step.
    """
    told: tuple = ()
    last = -LOG_SECONDS
    for snapshot in snapshots:
        news = snapshot.state, snapshot.step
        ended = snapshot.state not in ("training", "waiting")
        if news != told and (ended or time.monotonic() - last >= LOG_SECONDS):
            told, last = news, time.monotonic()
            print(line(snapshot), flush=True)
        if ended and snapshot.state != "finished":
            hint = RESUME if snapshot.state == "stopped" else "see the output of the training"
            raise SitError(f"{snapshot.run}: {state_text(snapshot)}", hint)


def as_data(snapshot: Snapshot) -> dict[str, Any]:
    """The snapshot for --json: the newest line's figures are in `entry`."""
    data = asdict(snapshot)
    for name in ("age", "interval", "eta", "checkpoint_age"):
        data[f"{name}_seconds"] = data.pop(name)
    data |= dict(run=str(snapshot.run), grid=snapshot.grid and str(snapshot.grid))
    data["step"] = snapshot.step
    return {name: value for name, value in data.items() if name != "curve"}


def line(snapshot: Snapshot) -> str:
    """One line for a log."""
    entry = snapshot.entry
    parts = [f"{time.strftime('%H:%M:%S')} {snapshot.run.name}: {state_text(snapshot)}"]
    if entry:
        parts += [f"step {_of_steps(snapshot)}", f"loss {entry['loss']:.4g}", _speed(entry)]
    if snapshot.eta is not None and snapshot.state == "training":
        parts.append(f"{duration(snapshot.eta)} left")
    return ", ".join(filter(None, parts))


def state_text(snapshot: Snapshot) -> str:
    """The state of the run, for people."""
    ago = "" if snapshot.age is None else duration(snapshot.age)
    if snapshot.state == "waiting":
        which = "next" if snapshot.entry else "first"
        return f"started {ago} ago, waiting for its {which} log line"
    if snapshot.state == "stopped":
        return f"not training, ended {ago} ago before its last step"
    if snapshot.state == "silent":
        usual = f", usually a line every {_seconds(snapshot.interval)}" if snapshot.interval else ""
        return f"seems stopped: nothing written for {ago}, since {_clock(snapshot.age)}{usual}"
    return {"gone": "the folder is gone"}.get(snapshot.state, snapshot.state)


def facts(snapshot: Snapshot) -> dict[str, str]:
    """Label -> text, in the order of the view; unknown facts are missing."""
    entry = snapshot.entry
    rows = {}
    if entry:
        rows["speed"] = _speed(entry)
        if snapshot.eta is not None and snapshot.state == "training":
            rows["time left"] = f"{duration(snapshot.eta)}, until {_clock(-snapshot.eta)}"
        if snapshot.state == "training" and snapshot.step == snapshot.steps:
            rows["time left"] = "none, ending"
        rows["epoch"] = f"{entry['epoch']:.4g}" if "epoch" in entry else ""
        rates = [f"{entry['lr']:.3g}"] if "lr" in entry else []
        if "grad_norm" in entry:
            rates.append(f"gradient norm {entry['grad_norm']:.3g}")
        rows["lr"] = ", ".join(rates)
        if "peak_memory_bytes" in entry:
            rows["memory"] = f"{format_bytes(entry['peak_memory_bytes'])} at most"
        if len(seconds := entry.get("rank_seconds") or []) > 1:
            rows["ranks"] = f"{len(seconds)}, {spread(seconds)}"
        if seconds and "data_seconds" in entry:
            rows["data"] = f"waited for {entry['data_seconds'] / max(*seconds, 1e-9):.0%} of a step"
    if snapshot.checkpoint:
        rows["checkpoint"] = f"{snapshot.checkpoint}, {duration(snapshot.checkpoint_age)} ago"
    if snapshot.grid is not None:
        rows["grid"] = str(snapshot.grid)
    if snapshot.state == "training":
        usual = f", one every {_seconds(snapshot.interval)}" if snapshot.interval else ""
        rows["log line"] = f"{duration(snapshot.age)} ago{usual}"
    return {label: text for label, text in rows.items() if text}


def draw(snapshot: Snapshot, console: Console) -> Group:
    """The whole view, within the console's width."""
    ascii_only = console.options.ascii_only
    name, state, progress, *rows = _rows(snapshot, console.width, ascii_only=ascii_only)
    parts: list[Any] = [Text(name[1], style="bold")]
    parts.append(Text(state[1], style=COLOURS.get(snapshot.state, "yellow")))
    if snapshot.steps:
        width = max(1, min(50, console.width - len(progress[1]) - 1))
        bar = ProgressBar(total=snapshot.steps, completed=snapshot.step, width=width)
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_row(bar, Text(progress[1], no_wrap=True))
        parts.append(line)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True, width=LABEL)
    room, overflow = max(1, console.width - LABEL - 4), "crop" if ascii_only else "ellipsis"
    table.add_column(no_wrap=True, max_width=room, overflow=overflow)
    for label, text in rows:
        table.add_row(label, Text(text))
    return Group(*parts, table)


def plain(snapshot: Snapshot) -> list[str]:
    """The whole view, as lines for a file or a pipe."""
    ascii_only = not sys.stdout.encoding.lower().startswith("utf")
    rows = _rows(snapshot, 80, ascii_only=ascii_only)
    return [f"{label:<{LABEL}}  {text}" for label, text in rows if text]


def _rows(snapshot: Snapshot, width: int, *, ascii_only: bool) -> list[tuple[str, str]]:
    """(label, text) of each row; the first three are the run, its state and its steps."""
    model = f" ({snapshot.model})" if snapshot.model else ""
    share = f", {_percent(snapshot.step / snapshot.steps)}" if snapshot.steps else ""
    rows = [
        ("run", f"{snapshot.run}{model}"),
        ("state", state_text(snapshot)),
        ("steps", _of_steps(snapshot) + share if snapshot.state != "gone" else ""),
    ]
    if snapshot.curve:
        losses = [loss for _, loss in snapshot.curve]
        blocks = ASCII_BLOCKS if ascii_only else BLOCKS
        room = max(8, min(60, width - LABEL - 4))
        rows.append(("loss", sparkline(losses, room, blocks=blocks)))
        rows.append(("", loss_text(snapshot.curve)))
    return [*rows, *facts(snapshot).items()]


def sparkline(values: Sequence[float], width: int, *, blocks: str = BLOCKS) -> str:
    """The values as at most `width` characters, each the mean of an equal part of them.

    The characters span the range of the means after the first tenth. A first tenth far above the
    rest, as with a loss, is cut off at the top, so that the rest keeps its shape.
    """
    width = min(width, len(values))
    edges = [i * len(values) // width for i in range(width + 1)] if width else []
    means = [fmean(values[a:b]) for a, b in pairwise(edges)]
    if not means:
        return ""
    low, high = min(means), max(means[width // 10 :])
    scale = (len(blocks) - 1) / (high - low) if high > low else 0.0
    return "".join(blocks[min(len(blocks) - 1, round((mean - low) * scale))] for mean in means)


def loss_text(curve: Sequence[tuple[int, float]]) -> str:
    """The newest loss, and the mean of the last tenth of the lines against the tenth before."""
    text = f"{curve[-1][1]:.4g}"
    number = len(curve) // 10
    if not number:
        return text
    late, early = (
        fmean(loss for _, loss in part) for part in (curve[-number:], curve[-2 * number : -number])
    )
    steps = curve[-1][0] - curve[-number - 1][0]
    change = (late - early) / abs(early) if early else 0.0
    verb = "down" if change < 0 else "up"
    return f"{text}, {verb} {abs(change):.1%} in the last {steps} steps"


def _of_steps(snapshot: Snapshot) -> str:
    return f"{snapshot.step}/{snapshot.steps}" if snapshot.steps else f"{snapshot.step}"


def _speed(entry: dict[str, Any]) -> str:
    parts = []
    if "images_per_second" in entry:
        parts.append(f"{entry['images_per_second']:.4g} images/s")
    if "mfu" in entry:
        parts.append(f"MFU {_percent(entry['mfu'])}")
    return ", ".join(parts)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"


def _seconds(value: float) -> str:
    return duration(value) if value >= 10 else f"{value:.2g}s"


def _clock(ago: float) -> str:
    """The time of day `ago` seconds before now, with the day if it is not today."""
    then, now = time.localtime(time.time() - ago), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%a %d %b %H:%M", then)
