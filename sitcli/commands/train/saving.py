"""A checkpoint written beside training, and committed once every rank has written its part."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Saving:
    """A checkpoint on its way to the disk, in a thread, while training goes on.

    step, meta: of the checkpoint; error: why it could not be written; stall: seconds that training
    stood still for it; seconds: those of the writing.
    """

    def __init__(
        self, step: int, meta: dict[str, Any], write: Callable[[], None], *, stall: float
    ) -> None:
        self.step, self.meta, self.stall = step, meta, stall
        self.seconds = 0.0
        self.error: OSError | None = None
        self._write = write
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.perf_counter()
        try:
            self._write()
        except OSError as error:
            self.error = error
        self.seconds = time.perf_counter() - began

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> None:
        self._thread.join()


def error_of(work: Callable[[], Any]) -> OSError | None:
    """The operating system's error in work(), if there was one."""
    try:
        work()
    except OSError as error:
        return error
    return None
