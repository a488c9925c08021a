"""Commands in processes of their own, a stage to follow, and a pseudo-terminal's other end."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from sitcli.events import Note, Progress, Result, Warn


def rest_of(terminal: int) -> bytes:
    """All that is still written to it, until the command closes its end; then it is closed."""
    screen = b""
    try:
        while chunk := os.read(terminal, 4096):
            screen += chunk
    except OSError:
        pass  # Linux: the other end was closed
    finally:
        os.close(terminal)
    return screen


COMMANDS = [
    "encode-latents", "import-latents", "train", "sample", "evaluate", "flops", "ema", "import",
    "export", "inspect", "watch", "bench", "quickstart",
]  # fmt: skip


def sit(*arguments, **environment):
    """Run `python -m sitcli` in a process of its own."""
    return python("-m", "sitcli", *arguments, **environment)


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=120,
    )


def plain(text):
    """Without the colour codes that FORCE_COLOR or a CI system put in."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def stage(total=3):
    """A stage that reports everything there is to report."""
    yield Note("taking out.h5")
    for done in range(total + 1):
        yield Progress(done=done, total=total, unit="images", text="loss 0.5")
    yield Warn("one image is broken")
    return Result(summary={"images": "3"})
