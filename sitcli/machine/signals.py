"""Ctrl-C and SIGTERM noted, so that work ends after the current step."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2.0


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM are put in the list and end the work after the step; twice at once.

    A second one within ECHO_SECONDS is the same one: torchrun passes on to its processes what a
    terminal or a scheduler has sent them too.
    """
    received: list[int] = []
    first = 0.0

    def note(number: int, frame: object) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
        elif time.monotonic() - first > ECHO_SECONDS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
            signal.raise_signal(number)

    before: dict[int, Callable | int | None] = {n: signal.signal(n, note) for n in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
