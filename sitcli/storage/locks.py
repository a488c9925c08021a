"""Locks that keep two commands off one file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sitcli.errors import SitError
from sitcli.text import format_bytes


def lock_path(path: Path) -> Path:
    """The hidden file that exists, and is locked, while a process may write `path`."""
    return path.with_name(f".{path.name}.lock")


_held_locks: set[int] = set()


def check_writable(path: Path) -> None:
    """Raise SitError unless a file can be created or replaced at `path`."""
    if path.is_dir():
        raise SitError(f"{path} is a folder", f"name a file in it, e.g. {path / 'out.h5'}")
    if not path.parent.is_dir():
        raise SitError(f"the folder {path.parent} does not exist", f"mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise SitError(f"cannot write in {path.parent}: permission denied")


@contextlib.contextmanager
def lock(path: Path, *, what: Path | None = None) -> Iterator[None]:
    """Hold the right to write `path`, which need not exist.

    The lock is a hidden file beside `path`: HDF5 takes locks of its own on the file itself.
    what: the artefact that an error names, if it is not the file.
    Raises SitError if another process has the right.
    """
    check_writable(path)
    name = lock_path(path)
    descriptor = _take_lock(name, path, what)
    _held_locks.add(descriptor)
    try:
        yield
    finally:
        _held_locks.discard(descriptor)
        with contextlib.suppress(OSError):
            name.unlink()
        os.close(descriptor)


def _take_lock(name: Path, path: Path, what: Path | None) -> int:
    while True:
        with explained(path, 0):
            descriptor = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have removed the name between our open and our lock.
            if os.path.samestat(os.fstat(descriptor), os.stat(name)):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(descriptor)
            if error.errno != errno.EWOULDBLOCK:
                raise SitError(f"cannot lock {name}: {error.strerror}") from None
            hint = "wait until it ends, or name another file"
            raise SitError(f"another process is writing {what or path}", hint) from None
        os.close(descriptor)


def _leave_locks_to_parent() -> None:
    # A reader process that outlives a killed parent by seconds must not keep its lock.
    for descriptor in _held_locks:
        os.close(descriptor)
    _held_locks.clear()


os.register_at_fork(after_in_child=_leave_locks_to_parent)


@contextlib.contextmanager
def explained(path: Path, size: int) -> Iterator[None]:
    """Raise SitError for the operating system's errors; `path` was to get `size` bytes."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            what = f"no room for {path}: "
            what += f"it needs {format_bytes(size)} and " if size else ""
            raise SitError(
                f"{what}{format_bytes(free)} are free there", "free some space, or write elsewhere"
            ) from None
        if error.errno == errno.EFBIG:
            raise SitError(
                f"{path} would be larger than a file may be here", "raise the limit of ulimit -f"
            ) from None
        reason = error.strerror or str(error)
        raise SitError(f"cannot write {path}: {reason}") from None
