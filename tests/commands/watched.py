"""Runs as `sit watch` finds them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import yaml


def entry(step: int, **more: float) -> str:
    return json.dumps(dict(step=step, loss=1 / step, **more)) + "\n"


def watched_run(
    path: Path, *, steps: int = 100, lines: int = 0, ago: float = 0, began: float = 0, lock: bool
) -> Path:
    """A run with a line every ten steps and two seconds, the last `ago` seconds back."""
    path.mkdir(parents=True)
    config = path / "config.yaml"
    config.write_text(yaml.safe_dump({"train": {"steps": steps, "model": "SiT-Mi/4"}}))
    now = time.time()
    os.utime(config, (now - began,) * 2)
    times = [now - ago - 2 * (lines - i) for i in range(1, lines + 1)]
    text = "".join(entry(10 * i, time=t) for i, t in enumerate(times, start=1))
    (path / "metrics.jsonl").write_text(text)
    if lock:
        (path / ".config.yaml.lock").touch()
    return path
