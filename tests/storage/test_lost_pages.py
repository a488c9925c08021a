"""Reads of mapped pages that are gone."""

import mmap
import os
import signal
import subprocess
import sys
import threading

import numpy as np

from sitcli.storage.lost_pages import Mapping
from tests.tiny import ENVIRONMENT

SIZE = 16 * mmap.PAGESIZE


def mapped(path):
    path.write_bytes(b"\1" * SIZE)
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(pages, np.uint8)
    return array, Mapping(array.ctypes.data, SIZE)


def test_lost_pages_are_zeros_and_said_to_be_lost(tmp_path):
    """Catches: a process killed by SIGBUS, and zeros that are taken for the file's bytes."""
    array, mapping = mapped(tmp_path / "a")
    with mapping.read():
        assert array.copy().all()
    assert not mapping.lost
    os.truncate(tmp_path / "a", mmap.PAGESIZE)
    with mapping.read():
        copy = array.copy()
    assert mapping.lost
    assert not copy[mmap.PAGESIZE :].any()


def test_other_threads_and_other_files_are_left_alone(tmp_path):
    """Catches: the pages of a sound file thrown away for another's, and a thread that hangs."""
    sound, whole = mapped(tmp_path / "sound")
    array, mapping = mapped(tmp_path / "a")
    os.truncate(tmp_path / "a", 0)
    found = []

    def work():
        with mapping.read():
            found.append(array.copy())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert mapping.lost
    with whole.read():
        assert sound.copy().all()
    assert not whole.lost


PROGRAM = """
import mmap, os, sys
import numpy as np
from sitcli.storage.lost_pages import Mapping
open(sys.argv[1], "wb").write(bytes(1 << 16))
pages = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, access=mmap.ACCESS_READ)
array = np.frombuffer(pages, np.uint8)
Mapping(array.ctypes.data, len(array))
os.truncate(sys.argv[1], 0)
array.copy()
print("survived")
"""


def test_other_faults_end_the_process_as_before(tmp_path):
    """Catches: an endless loop, or a wrong result, for a fault in memory that is not ours."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "a"],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == -signal.SIGBUS
    assert b"survived" not in done.stdout
