"""Note Ctrl-C and SIGTERM, so that work can end after the current step."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ECHO_SECONDS = 2.0


@contextlib.contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Yield a list that receives the number of the first signal; a second signal ends at once.

    A second signal within ECHO_SECONDS counts as the first: torchrun passes on to its processes
    the signals that a terminal or a scheduler has sent to them too.
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
