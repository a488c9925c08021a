"""The row file: its contents, and what survives of it."""

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.storage.rows import BROKEN, DONE, MISSING, Rows, create

LAYOUT = {"data": ((10, 3, 2), "float16"), "label": ((10,), "int64"), "note": ((10,), "S12")}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.h5"
    create(path, LAYOUT, attrs={"kind": "test", "complete": False})
    return path


def test_rows_are_what_was_written_and_plain_h5py_reads_the_same(path):
    """Catches: offsets or row sizes that differ from HDF5's own."""
    data = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float16)
    with Rows(path, writable=True) as rows:
        rows.write([7, 8, 2, 0], data=data, label=np.arange(4), note=["a", "é", "", "d" * 12])
        np.testing.assert_array_equal(rows.array("data")[[7, 8, 2, 0]], data)
        assert rows.texts("note", [7, 8, 2, 0]) == ["a", "é", "", "d" * 12]
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["data"][:][[7, 8, 2, 0]], data)
        np.testing.assert_array_equal(file["label"][:][[7, 8, 2, 0]], np.arange(4))
        assert file["note"].asstr()[8] == "é"
        assert file["written"][:].tolist() == [1, 0, 1, 0, 0, 0, 0, 1, 1, 0]


def test_status_tells_broken_rows_from_done_and_missing_ones(path):
    """Catches: a status that is written to the wrong row or not at all."""
    with Rows(path, writable=True) as rows:
        rows.write([4, 5], status=[BROKEN, DONE], label=np.array([1, 2]))
        rows.write([9], status=BROKEN, note=["cut short"])
        assert rows.written.tolist() == [0, 0, 0, 0, 2, 1, 0, 0, 0, 2]
        assert rows.written[0] == MISSING


def test_unwritten_rows_are_zero(path):
    """Catches: creation that leaves old disk contents in the rows."""
    rows = Rows(path)
    assert rows.num_rows == 10
    assert rows.shape("data") == (10, 3, 2)
    assert not rows.array("data").any()
    assert not rows.array("label").any()


@pytest.mark.parametrize(
    ("rows", "failure"),
    [
        (dict(label=np.arange(3)), ValueError),
        (dict(note=["thirteen byte", ""]), ValueError),
        (dict(label=np.array([0.5, 1.5])), TypeError),
    ],
)
def test_wrong_rows_are_refused_and_not_flagged(path, rows, failure):
    """Catches: silent broadcasting, cutting of text, or rounding."""
    with Rows(path, writable=True) as file:
        with pytest.raises(failure):
            file.write([0, 1], **rows)
        with pytest.raises(IndexError):
            file.write([10], label=np.array([1]))
        assert not file.written.any()


@pytest.mark.parametrize(
    "value",
    [
        3, 2.5, True, "text", "", "é", '{"not": "ours"}', "null", "[x", None, [1.5, 2.0], [],
        {"a": [1, {"b": None}]}, ["n01", "n02"], "x" * 40_000, [{"a": 1}],
    ],
)  # fmt: skip
def test_attributes_come_back_as_they_were(path, value):
    """Catches: text that is mistaken for JSON, and values HDF5 has no room or type for."""
    Rows(path).set_attrs(value=value)
    Rows(path).set_attrs(value=value)
    assert Rows(path).attrs["value"] == value
    assert type(Rows(path).attrs["value"]) is type(value)
    Rows(path).set_attrs(value="other")
    assert Rows(path).attrs == {"kind": "test", "complete": False, "value": "other"}


def test_arrays_known_at_creation(tmp_path):
    """Catches: arrays that end up at a wrong place, and file names that are not utf-8."""
    path = tmp_path / "b.h5"
    names = ["b.png", "\udcff.png", "a" * 300]
    basis = np.arange(6, dtype=np.float32).reshape(2, 3)
    arrays = {"names": names, "basis": basis, "none": []}
    create(path, {"data": ((3,), "uint8")}, attrs={}, arrays=arrays)
    rows = Rows(path)
    assert rows.texts("names") == names
    assert rows.texts("none") == []
    np.testing.assert_array_equal(rows.array("basis"), basis)
    with h5py.File(path, "r") as file:
        np.testing.assert_array_equal(file["basis"][:], basis)
        assert file["none"].shape == (0,)


def _write_stripe(path, first):
    with Rows(path, writable=True) as rows:
        for index in range(first, 400, 4):
            rows.write([index], data=np.full((1, 8), index, np.int32))


def test_many_processes_write_disjoint_rows(tmp_path):
    """Catches: a writer that rewrites its neighbours' rows or flags."""
    path = tmp_path / "a.h5"
    create(path, {"data": ((400, 8), "int32")}, attrs={})
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_stripe, args=(path, first)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = Rows(path)
    assert (rows.written == DONE).all()
    np.testing.assert_array_equal(rows.array("data")[:, 3], np.arange(400))


def test_killed_writers_leave_flagged_rows_whole(tmp_path):
    """Catches: a flag that is set before its row, and attributes that break the file's tables."""
    path = tmp_path / "a.h5"
    create(path, {"data": ((2000, 10_000), "uint8")}, attrs={"round": 0})
    script = textwrap.dedent("""
        import sys, numpy as np
        from sitcli.storage.rows import Rows
        rows = Rows(sys.argv[1], writable=True)
        print("ready", flush=True)
        for number in np.flatnonzero(rows.written == 0):
            rows.write([number], data=np.full((1, 10_000), number % 251 + 1, np.uint8))
            rows.set_attrs(round=int(number))
    """)
    for delay in (0.01, 0.03, 0.08):
        worker = subprocess.Popen(
            [sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout.readline() == "ready\n"
        time.sleep(delay)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        rows = Rows(path)
        done = np.flatnonzero(rows.written)
        assert (np.array(rows.array("data")[done]) == (done % 251 + 1)[:, None]).all()
        assert rows.attrs["round"] < 2000
    assert 0 < len(done) < 2000


def test_a_file_too_large_is_refused_before_anything_is_written(tmp_path):
    """Catches: a full disk that shows only in the middle of the work, or leaves a torso."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(SitError, match="larger than a file may be"):
            create(tmp_path / "a.h5", {"data": ((1000, 10_000), "uint8")}, attrs={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [0, 3000, 300_000])
def test_a_full_disk_is_one_clear_error(tmp_path, free):
    """Catches: HDF5's own many-line errors, SIGBUS, and a torso on the full disk."""
    disk = tmp_path / "disk"
    disk.mkdir()
    size = 1_000_000
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    try:
        room = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(room.f_bavail * room.f_bsize - free))
        with pytest.raises(SitError, match="no room for "):
            create(disk / "a.h5", {"data": ((1000, 10_000), "uint8")}, attrs={"a": {"b": "c"}})
        assert [entry.name for entry in disk.iterdir()] == ["filler"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", "is a folder"),
        ("absent/a.h5", "absent does not exist"),
        ("file/a.h5", "does not exist|not a folder"),
    ],
)
def test_impossible_targets_are_named(tmp_path, name, message):
    """Catches: a traceback for a target that cannot be written."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SitError, match=message):
        create(tmp_path / name, LAYOUT, attrs={})


def test_files_that_are_no_row_files_are_named(tmp_path, path):
    """Catches: HDF5's own errors reaching the user."""
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "short.h5").write_bytes(path.read_bytes()[:-100])
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1, 2]
    for name, message in [
        ("none.h5", "does not exist"), ("text.h5", "not a readable HDF5"),
        ("short.h5", "not a readable HDF5"), ("other.h5", "not one that sit wrote"),
        ("", "not a file"),
    ]:  # fmt: skip
        with pytest.raises(SitError, match=message):
            Rows(tmp_path / name)
