"""Copying scattered rows out of a file."""

import math
import os
from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.storage.gather import Gather

ROWS, SHAPE = 9, (4, 3)


def write(path, offsets, *, seed=0):
    """Arrays (ROWS, *SHAPE) float16 at these offsets of the file."""
    random = np.random.default_rng(seed)
    arrays = random.normal(size=(len(offsets), ROWS, *SHAPE)).astype(np.float16)
    content = bytearray(max(offsets) + arrays[0].nbytes)
    for offset, array in zip(offsets, arrays, strict=True):
        content[offset : offset + array.nbytes] = array.tobytes()
    path.write_bytes(content)
    return arrays


@pytest.mark.parametrize("offsets", [[0], [0, 216], [512, 728], [4096, 8192], [100, 317], [900, 2]])
def test_rows_come_from_their_arrays(tmp_path, offsets):
    """Catches: rows from wrong places where arrays do not lie a multiple of a row apart, end the
    file, or begin within a page."""
    arrays = write(tmp_path / "a", offsets)
    with open(tmp_path / "a", "rb") as file:
        gather = Gather(file, offsets=offsets, shape=(ROWS, *SHAPE), dtype=np.dtype(np.float16))
    random = np.random.default_rng(1)
    for _ in range(3):  # asked for, and not
        numbers, which = random.integers(0, ROWS, 20), random.integers(0, len(offsets), 20)
        np.testing.assert_array_equal(gather.read(numbers, array=which), arrays[which, numbers])
        part = gather.read(numbers, array=which, used=slice(2))
        np.testing.assert_array_equal(part, arrays[which, numbers, :2])
        np.testing.assert_array_equal(gather.read(numbers), arrays[0, numbers])
    assert gather.read(np.arange(0)).shape == (0, *SHAPE)


def test_only_the_rows_come_from_the_disk(tmp_path):
    """Catches: rows read one after the other with all that lies around them, or the kernel asked
    for other pages than are read."""
    if not Path("/proc/self/io").exists():
        pytest.skip("the system does not count what is read")
    path, rows, row = tmp_path / "a", 4096, 16384
    with open(path, "wb") as file:
        file.write(bytes(rows * row))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    numbers = np.random.default_rng(0).permutation(rows)[:128]
    with open(path, "rb") as file:
        gather = Gather(file, offsets=[0], shape=(rows, row), dtype=np.dtype(np.uint8))
    before = bytes_read()
    gather.read(numbers)
    taken = bytes_read() - before
    if not taken:
        pytest.skip("the file stays in memory here")
    assert len(numbers) * row <= taken < 2 * len(numbers) * row


def bytes_read():
    """What this process has had read from disks so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


@pytest.mark.parametrize("used", [slice(None), slice(1)])
def test_a_file_cut_short_is_an_error(tmp_path, used):
    """Catches: SIGBUS, which ends the process without a word. Twice, as the pages are then gone."""
    path, shape = tmp_path / "a", (64, 4, 4096)
    path.write_bytes(b"\1" * math.prod(shape))
    with open(path, "rb") as file:
        gather = Gather(file, offsets=[0], shape=shape, dtype=np.dtype(np.uint8))
    assert gather.read(np.arange(64), used=used).all()
    os.truncate(path, 3 * 4 * 4096)
    for _ in range(2):
        with pytest.raises(SitError, match="a was cut short while it was read"):
            gather.read(np.arange(64), used=used)
