"""The other end of a pseudo-terminal that a command writes to."""

from __future__ import annotations

import os


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
