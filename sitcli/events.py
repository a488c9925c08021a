"""The events that a stage sends to the command line while it works.

A stage is a generator: it yields events and returns a `Result`. It does not print or draw bars.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`done` of `total` `unit`s are finished; `text` is a short live remark ("loss 0.81").

    `done` includes work finished in earlier runs. The first event of a stage therefore gives the
    work done before this run, and rates are computed from there.
    """

    done: int
    total: int
    unit: str = "images"
    text: str = ""


@dataclass(frozen=True)
class Note:
    """One line the user should see once, such as the artefact taken or the step of a resume."""

    text: str


@dataclass(frozen=True)
class Warn:
    """One line about something that went wrong without stopping the work."""

    text: str


@dataclass(kw_only=True)
class Result:
    """The end of a stage.

    summary: label -> text, shown to people in this order on stderr.
    tables:  figures and costs, printed on stdout.
    data:    the same facts for `--json`; one object.
    path:    the file or folder written, printed on stdout.
    next:    the command to type next.
    """

    summary: dict[str, str] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    path: Path | None = None
    next: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells; numeric columns are right-aligned."""

    title: str
    header: list[str]
    rows: list[list[str]]


Event = Progress | Note | Warn
Stage = Generator[Event, None, Result]
