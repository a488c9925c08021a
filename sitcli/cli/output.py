"""Output to the terminal: bars and notes on stderr, results on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table as RichTable
from rich.text import Text

from sitcli.cli.options import Invocation
from sitcli.events import Note, Progress, Result, Stage, Table, Warn

LOG_SECONDS = 30.0


def follow(stage: Stage, *, title: str) -> Result:
    """Run a stage to its end, showing what it reports, and return its result."""
    with _reporter(title) as report:
        while True:
            try:
                event = next(stage)
            except StopIteration as end:
                return end.value
            try:
                report(event)
            except KeyboardInterrupt as interrupt:
                # Ctrl-C between two events belongs to the stage, which knows what to save.
                stage.throw(interrupt)


def finish(result: Result, invocation: Invocation) -> None:
    """Print a stage's result: a summary, tables and the path, or one object with --json."""
    if not _speaks():
        return
    if invocation.json:
        data = dict(result.data)
        if result.path is not None:
            data.setdefault("path", str(result.path))
        print(json.dumps(data, indent=2, allow_nan=False, default=str))
        return
    width = max((len(label) for label in result.summary), default=0)
    for label, text in result.summary.items():
        say(f"{label:<{width}}  {text}")
    for number, table in enumerate(result.tables):
        if number:
            print()
        print_table(table)
    if result.path is not None:
        print(result.path, flush=True)
    if result.next:
        say(f"next: {result.next}")


def _speaks() -> bool:
    """Whether this process prints: of several only rank 0 does."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line on stderr."""
    print(text, file=sys.stderr, flush=True)


def error(message: str, hint: str = "") -> None:
    """Print the two lines of a failure."""
    say(f"error: {message}")
    if hint:
        say(f"hint: {hint}")


def print_table(table: Table) -> None:
    """Print a table on stdout, as wide as it needs to be: a cell is never cut."""
    grid = RichTable(box=None, pad_edge=False)
    numeric = [all(_is_number(row[i]) for row in table.rows) for i in range(len(table.header))]
    for name, is_number in zip(table.header, numeric, strict=True):
        grid.add_column(name, justify="right" if is_number else "left", no_wrap=True)
    for row in table.rows:
        grid.add_row(*row)
    console = Console(file=sys.stdout, force_terminal=sys.stdout.isatty(), markup=False)
    needed = console.measure(grid, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed, len(table.title))
    console.print(Text(table.title, style="italic"))
    console.print(grid)


def _is_number(cell: str) -> bool:
    return not cell or cell == "-" or cell.lstrip("+-").replace(",", "")[:1].isdigit()


@contextmanager
def _reporter(title: str) -> Iterator[Callable]:
    if not _speaks():
        yield lambda event: None
    elif sys.stderr.isatty():
        with _bar_reporter(title) as report:
            yield report
    else:
        yield _line_reporter(title)


class _Pace:
    """Measures rate and time left of this run; the work of earlier runs does not count."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def describe(self, event: Progress) -> str:
        now = time.monotonic()
        if self.first is None:
            self.first = (now, event.done)
        seconds, done = now - self.first[0], event.done - self.first[1]
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        left = (event.total - event.done) / rate
        return f"{rate:.3g} {event.unit}/s, {duration(left)} left"


def _line_reporter(title: str) -> Callable:
    """The reporter for logs and pipes: prints a line every half minute, and every note."""
    pace = _Pace()
    last = time.monotonic()

    def report(event: object) -> None:
        nonlocal last
        if isinstance(event, (Note, Warn)):
            say(_plain(event))
        elif isinstance(event, Progress):
            text = pace.describe(event)
            if time.monotonic() - last >= LOG_SECONDS:
                last = time.monotonic()
                parts = [f"{title}: {event.done}/{event.total} {event.unit}", text, event.text]
                say(", ".join(part for part in parts if part))

    return report


@contextmanager
def _bar_reporter(title: str) -> Iterator[Callable]:
    pace = _Pace()
    console = Console(stderr=True, force_terminal=True)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}"),
    ]
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, pace="")

        def report(event: object) -> None:
            if isinstance(event, (Note, Warn)):
                bar.console.print(Text(_plain(event)))
            elif isinstance(event, Progress):
                text = ", ".join(part for part in (pace.describe(event), event.text) if part)
                bar.update(task, completed=event.done, total=event.total, pace=text)

        yield report


def _plain(event: Note | Warn) -> str:
    return f"warning: {event.text}" if isinstance(event, Warn) else event.text


def duration(seconds: float) -> str:
    """95 -> '1m35s', 7260 -> '2h01m', 200000 -> '2d07h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if hours < 1:
        return f"{minutes}m{seconds % 60:02d}s"
    if days < 1:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h"
