"""`sit watch`: the state of a run in progress, read from its files alone.

It locks and writes no file, so a run can be watched from another machine over a shared filesystem.
It does not import torch, so the command starts at once, on a login node too.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from sitcli.commands.newest import newest_written_run
from sitcli.errors import SitError
from sitcli.settings.tools import WatchSettings
from sitcli.storage.locks import lock_path

State = Literal["waiting", "training", "silent", "stopped", "finished", "gone"]
RECENT = 50  # log lines from which the usual interval and the time left are computed
SILENT_INTERVALS, SILENT_SECONDS = 10, 60.0  # whichever is longer: a save or a grid takes its time
STARTING_SECONDS = 900.0  # compiling and the first steps, until there is a line
PAUSE = 20  # in an interval this many times the usual one the run was stopped, not training
CHECK_BYTES = 256


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run at one moment.

    state:      waiting    it has started, and has logged nothing since
                training
                silent     it should have logged long ago: killed, hanging, or saving very slowly
                stopped    its trainer has ended before the last step
                finished
                gone       the folder does not exist any more
    steps:      of the whole run; None if config.yaml is unreadable.
    entry:      the newest line of metrics.jsonl; {} if there is none.
    curve:      (step, loss) of every line.
    age:        seconds since the run last wrote a file; None if it never did.
    interval:   usual seconds between two lines, None if there are too few.
    eta:        seconds left, None if unknown.
    checkpoint: name of the newest complete one, written `checkpoint_age` seconds ago.
    grid:       the newest picture of samples.
    """

    run: Path
    state: State
    model: str = ""
    steps: int | None = None
    entry: dict[str, Any] = field(default_factory=dict)
    curve: Sequence[tuple[int, float]] = ()
    age: float | None = None
    interval: float | None = None
    eta: float | None = None
    checkpoint: str = ""
    checkpoint_age: float | None = None
    grid: Path | None = None

    @property
    def step(self) -> int:
        """The step of the newest log line, 0 if there is none."""
        return self.entry.get("step", 0)


def watch(settings: WatchSettings) -> Iterator[Snapshot]:
    """Yield a snapshot every settings.every seconds until the run has finished.

    With settings.once it yields one. A run that is removed meanwhile is `gone`, and may come back.
    Raises SitError if the run does not exist at the start.
    """
    path = settings.run or newest_written_run()
    if not any(os.path.isfile(path / name) for name in ("config.yaml", "metrics.jsonl")):
        what = f"{path} is not a run directory" if path.exists() else f"there is no run {path}"
        raise SitError(what, "name a folder below runs/")
    watcher = Watcher(path)
    while True:
        snapshot = watcher.look()
        yield snapshot
        if settings.once or snapshot.state == "finished":
            return
        time.sleep(settings.every)


class Tail:
    """The log lines of a growing file: the newest RECENT of them, and the loss of all.

    `read` reads the lines that were appended. A file that was replaced, or cut and written again,
    is read from its start. While it cannot be read (a stale handle of NFS), nothing changes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recent: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self.curve: list[tuple[int, float]] = []  # (step, loss)
        self._forget()

    def _forget(self) -> None:
        self.recent.clear()
        self.curve.clear()
        self._mark = (0, 0, 0, 0)
        self._position = 0  # after the last whole line that was read
        self._before = b""  # the bytes before it

    def read(self) -> None:
        """Read the lines that were appended since the last call."""
        try:
            # NFS asks its server when a file is opened, and not when it is only stat'ed.
            with open(self.path, "rb") as file:
                stat = os.fstat(file.fileno())
                mark = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
                if mark == self._mark:
                    return
                file.seek(self._position - len(self._before))
                if file.read(len(self._before)) != self._before:
                    self._forget()
                    file.seek(0)
                data = file.read()
        except FileNotFoundError:
            return self._forget()
        except OSError:
            return
        self._mark = mark
        whole = data[: data.rfind(b"\n") + 1]  # the rest is being written
        self._position += len(whole)
        self._before = (self._before + whole)[-CHECK_BYTES:]
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                point = int(entry["step"]), float(entry["loss"])
                self.recent.append(entry)
                if math.isfinite(point[1]):
                    self.curve.append(point)


class Watcher:
    """Looks at a run again and again, and remembers what it saw between two looks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self.tail = Tail(self.path / "metrics.jsonl")
        self.config: dict[str, Any] = {}
        self.newest: tuple[float, int] | None = None  # time and step of the newest line
        self.seen: float | None = None  # our clock when that line arrived, None if before we began

    def look(self) -> Snapshot:
        """The run as it is now."""
        path, now = self.path, time.time()
        if _is_gone(path):
            self._forget()
            return Snapshot(run=path, state="gone")
        self.tail.read()
        self.config = _config(path / "config.yaml") or self.config
        steps, recent = self.config.get("steps"), self.tail.recent
        entry = recent[-1] if recent else {}
        newest = (entry.get("time", 0.0), entry.get("step", 0))
        if self.newest is not None and newest > self.newest:
            self.seen = now
        self.newest = newest
        points = [(e["time"], e["step"]) for e in recent if "time" in e]
        interval = usual_interval(points)
        checkpoint, saved = _newest(path, "/meta.json")
        grid, drawn = _newest(path / "samples", "")
        began = _modified(path / "config.yaml")  # every trainer writes it
        # Clocks of two machines differ: our own clock at a line's arrival counts before its time.
        logged = None
        if entry:
            logged = self.seen or entry.get("time") or _modified(self.tail.path)
        saving = [_modified(path / name) for name in _names(path, ".saving-")]
        alive = max((t for t in (began, logged, saved, drawn, *saving) if t), default=None)
        age = None if alive is None else max(0.0, now - alive)
        state = _state(
            finished=steps is not None and _step_of(checkpoint) >= steps,
            # The lock exists while a trainer works, and afterwards only if it was killed.
            locked=_modified(lock_path(path / "config.yaml")) is not None,
            # NFS may hide a new lock for a minute.
            fresh=self.seen is not None and now - self.seen < 2 * (interval or 0),
            starting=logged is None or (began or 0) > logged,
            age=age,
            interval=interval,
        )
        left = None
        if steps and state in ("training", "silent"):
            left = eta(points, steps)
            rate = entry.get("images_per_second"), self.config.get("batch_size")
            if left is None and all(rate):  # the first line, or a run without times
                left = max(0, steps - entry["step"]) * rate[1] / rate[0]
            if left is not None and state == "training":
                left = max(0.0, left - max(0.0, now - logged))
        return Snapshot(
            run=path,
            state=state,
            model=str(self.config.get("model") or ""),
            steps=steps,
            entry=entry,
            curve=list(self.tail.curve),
            age=age,
            interval=interval,
            eta=left,
            checkpoint=checkpoint,
            checkpoint_age=max(0.0, now - saved) if saved else None,
            grid=path / "samples" / grid if grid else None,
        )


def _state(
    *,
    finished: bool,
    locked: bool,
    fresh: bool,
    starting: bool,
    age: float | None,
    interval: float | None,
) -> State:
    age = math.inf if age is None else age
    if finished and not (locked and age < SILENT_SECONDS):  # it may still draw the last grid
        return "finished"
    if not (locked or fresh):
        return "stopped"
    if starting:
        return "waiting" if age < STARTING_SECONDS else "silent"
    patience = max(SILENT_SECONDS, SILENT_INTERVALS * (interval or 0))
    return "training" if age < patience else "silent"


def usual_interval(points: Sequence[tuple[float, int]]) -> float | None:
    """The median of the seconds between (seconds, step) points; None for fewer than two."""
    gaps = [b - a for (a, _), (b, _) in pairwise(points) if b > a]
    return statistics.median(gaps) if gaps else None


def eta(points: Sequence[tuple[float, int]], steps: int) -> float | None:
    """Seconds from the last of (seconds, step) points to `steps`, at the mean rate of all of them.

    The time of saves and grids counts, pauses between two halves of a run do not. None for fewer
    than two points.
    """
    usual = usual_interval(points)
    if usual is None:
        return None
    pairs = [
        (b - a, t - s) for (a, s), (b, t) in pairwise(points) if 0 < b - a < PAUSE * usual and t > s
    ]
    if not pairs:
        return None
    seconds, done = map(sum, zip(*pairs, strict=True))
    return max(0, steps - points[-1][1]) * seconds / done


def _is_gone(path: Path) -> bool:
    try:
        path.stat()
    except FileNotFoundError:
        return True
    except OSError:  # a stale handle: the next look gets a new one
        pass
    return False


def _config(path: Path) -> dict[str, Any]:
    try:
        settings = dict(yaml.safe_load(path.read_text(encoding="utf-8"))["train"])
        return settings if isinstance(settings["steps"], int) else {}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        return {}


def _newest(folder: Path, part: str) -> tuple[str, float | None]:
    """The last step-* in `folder` that has `part`, and when that was written; else ('', None)."""
    for name in sorted(_names(folder, "step-"), key=_step_of, reverse=True):
        written = _modified(Path(f"{folder / name}{part}"))
        if written is not None:
            return name, written
    return "", None


def _names(folder: Path, prefix: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if name.startswith(prefix)]
    except OSError:
        return []


def _step_of(name: str) -> int:
    digits = name.removeprefix("step-").split(".")[0]
    return int(digits) if digits.isdigit() else -1


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
