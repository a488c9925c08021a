"""What a run changed when it went on: which setting held from which step on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DATA = "latents"


@dataclass(frozen=True)
class Change:
    """What changed after `step` steps, in which `images` images were drawn.

    settings: name -> (value before, value after); DATA's values are the numbers of images of the
    stores before and after.
    """

    step: int
    images: int
    settings: dict[str, tuple[Any, Any]]

    def as_plain(self) -> dict[str, Any]:
        """As meta.json keeps it."""
        settings = {name: list(pair) for name, pair in self.settings.items()}
        return dict(step=self.step, images=self.images, settings=settings)

    @property
    def words(self) -> str:
        """'lr 0.0003, not 0.0001; other latents, of 200 images, not 100'."""
        parts = []
        for name, (before, after) in self.settings.items():
            if name == "steps":
                parts.append(f"steps {after}, not {before}, and the schedule ends with them")
            elif name == DATA:
                parts.append(f"other latents, of {after} images, not {before}")
            else:
                parts.append(f"{name.replace('_', '-')} {_said(after)}, not {_said(before)}")
        return "; ".join(parts)


def _said(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class History:
    """All changes of a run, oldest first."""

    changes: tuple[Change, ...] = ()

    @property
    def schedule_from(self) -> int:
        """The step from which the schedule of the learning rate, with its warm-up, counts."""
        steps = [c.step for c in self.changes if {"schedule", "warmup"} & c.settings.keys()]
        return steps[-1] if steps else 0

    @property
    def data_began(self) -> tuple[int, int]:
        """(images drawn, epochs begun) before the present images."""
        images = epochs = 0
        for change in self.changes:
            if DATA in change.settings:
                before, _ = change.settings[DATA]
                epochs += math.ceil((change.images - images) / before)
                images = change.images
        return images, epochs

    @property
    def marks(self) -> list[tuple[int, str]]:
        """(step, words) for plots."""
        return [(change.step, change.words) for change in self.changes]

    def as_plain(self) -> list[dict[str, Any]]:
        """As meta.json keeps it."""
        return [change.as_plain() for change in self.changes]


def history_in(meta: dict[str, Any]) -> History:
    """The history that a checkpoint's meta.json keeps."""
    lines: Sequence[dict[str, Any]] = meta.get("history", ())
    return History(
        tuple(
            Change(
                line["step"],
                line["images"],
                {name: (before, after) for name, (before, after) in line["settings"].items()},
            )
            for line in lines
        )
    )


def is_history(lines: Any) -> bool:
    """Whether these can be the lines of a history in meta.json."""
    if not isinstance(lines, list):
        return False
    for line in lines:
        if not isinstance(line, dict) or not isinstance(line.get("settings"), dict):
            return False
        numbers = [line.get("step"), line.get("images")]
        pairs = list(line["settings"].values())
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            return False
        before = line["settings"].get(DATA, [1, 1])
        if not all(type(n) is int and n >= 0 for n in numbers) or not (
            all(type(n) is int and n > 0 for n in before)
        ):
            return False
    return True
