"""Reading a mapped file that is cut short meanwhile: an error in place of the signal that kills.

The kernel answers a read beyond the end of a mapped file, or from a disk that fails, with SIGBUS,
which ends the process without a word. Python's own signal handlers cannot help: the instruction
that failed runs again before they do.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import signal
from collections.abc import Iterator

MAP_FIXED = 0x10  # on Linux and macOS
PROTECTION = getattr(mmap, "PROT_READ", 1)
ANONYMOUS = getattr(mmap, "MAP_PRIVATE", 2) | getattr(mmap, "MAP_ANONYMOUS", 0x20) | MAP_FIXED


class Mapping:
    """The pages of a mapped file, from `address` on, `length` bytes.

    lost: whether a read of them has failed. All its pages are zeros since.
    """

    def __init__(self, address: int, length: int) -> None:
        self.address, self.length, self.lost = address, length, False
        _catch()

    @contextlib.contextmanager
    def read(self) -> Iterator[None]:
        """Within, a page that cannot be read sets `lost` and does not end the process."""
        _in_use.append(self)
        try:
            yield
        finally:
            _in_use.remove(self)


_in_use: list[Mapping] = []  # in this process, by all its threads
_caught: list[object] = []  # the handler, which must live as long as the process; its predecessor


def _catch() -> None:
    """Install the handler, once a process."""
    if _caught:
        return
    library = ctypes.CDLL(None, use_errno=True)
    library.signal.argtypes, library.signal.restype = (
        [ctypes.c_int, ctypes.c_void_p],
        ctypes.c_void_p,
    )
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]

    def handle(number: int) -> None:
        # It runs in the thread whose read failed, in the middle of a copy: no lock is held then.
        pages = [mapping for mapping in _in_use if not mapping.lost]
        if not pages:
            library.signal(number, before)  # not ours: let it end the process as it would have
        for mapping in pages:
            # In place of the file's pages there are zeros now, and the copy goes on.
            library.mmap(mapping.address, mapping.length, PROTECTION, ANONYMOUS, -1, 0)
            mapping.lost = True

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    _caught.append(handler)
    before = library.signal(int(signal.SIGBUS), ctypes.cast(handler, ctypes.c_void_p))
    _caught.append(before)
