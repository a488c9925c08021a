"""Errors the toolkit raises on purpose: one line that says what is wrong, one that says what to do.

Anything else that escapes is a programming error and keeps its traceback.
"""

from __future__ import annotations


class SitError(Exception):
    """A failure the user can act on; the command ends with exit code 1.

    message: what is wrong, one line, no full stop needed.
    hint:    what to do about it, preferably the command to type; may be empty.
    shared:  every process of the command raises it, so only rank 0 prints it.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "", *, shared: bool = False) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        self.shared = shared

    def __str__(self) -> str:
        return self.message


class UsageError(SitError):
    """Wrong options or configuration; the command ends with exit code 2."""

    exit_code = 2


class Interrupted(SitError):
    """A signal stopped the work after everything was saved; the exit code is 128 + signal."""

    def __init__(self, message: str, hint: str = "", *, signal_number: int) -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple:
        return _interrupted, (self.message, self.hint, self.exit_code - 128)


def _interrupted(message: str, hint: str, signal_number: int) -> Interrupted:
    return Interrupted(message, hint, signal_number=signal_number)


class LostPeer(SitError):
    """Another process of the command has ended; its own error is the reason."""

    exit_code = 113
