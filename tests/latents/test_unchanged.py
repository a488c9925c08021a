"""A store that is changed while it is read."""

import os
import shutil

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.latents.unchanged import damaged_rows, sampled_rows
from sitcli.storage.rows import Rows
from tests.latents.stores import NUM, SIDE, C, make_store, make_two


def later(path, seconds=5):
    """Give the file a date in the future: two writes may fall into one tick of its clock."""
    date = path.stat().st_mtime + seconds
    os.utime(path, (date, date))


def overwrite(path, *, rows, crc=False, **attrs):
    """Write other latents into rows of the store, in place."""
    other = np.ones((len(rows), 2 * C, SIDE, SIDE), np.float16)
    with Rows(path, writable=True) as file:
        more = {"crc32": np.full((len(rows), 2), 7, np.uint32)} if crc else {}
        if rows:
            file.write(rows, latents=other, latents_flipped=other, **more)
        else:
            file.set_attrs(**attrs)
    later(path)


@pytest.fixture
def store(tmp_path):
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    store.batch([0, 1])
    return store


@pytest.mark.parametrize("change", [
    dict(rows=[5]),
    dict(rows=[5], crc=True),
    dict(rows=[], checksum="1" * 64),
], ids=["rows", "rows and their checksums", "attributes"])  # fmt: skip
def test_a_store_overwritten_in_place_is_refused(store, change):
    """Catches: a run on half of one store and half of another. Item 4 is row 5."""
    overwrite(store.path, **change)
    with pytest.raises(SitError, match=r"a\.h5 was overwritten in place while it was read"):
        store.batch([4])


def test_a_store_overwritten_before_its_first_row_is_read(tmp_path):
    """Catches: a watch that begins too late."""
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    overwrite(store.path, rows=[5], crc=True)
    with pytest.raises(SitError, match="overwritten in place"):
        store.batch([0])


def test_a_store_that_is_only_touched_is_read_on(store):
    """Catches: a run stopped by a backup that sets dates."""
    later(store.path)
    expected = store.batch([3, 7])
    later(store.path)
    np.testing.assert_array_equal(store.batch([3, 7]), expected)


def test_a_store_cut_short_is_refused(store):
    """Catches: SIGBUS, and the message of a store overwritten."""
    size = store.path.stat().st_size
    os.truncate(store.path, 8192)
    with pytest.raises(SitError, match=r"cut short while it was read"):
        store.batch(range(8))
    # Where the rows that are read are still there, the size tells.
    make_store(store.path)
    again = LatentStore.open(store.path)
    again.batch([0])
    os.truncate(store.path, size - 1)
    with pytest.raises(SitError, match=rf"{size - 1} of {size} bytes are left"):
        again.batch([0])


def test_a_store_copied_over_in_place(store, tmp_path):
    """Catches: `cp other.h5 store.h5` under a run."""
    make_store(tmp_path / "b.h5", source_fingerprint="g")
    with open(tmp_path / "b.h5", "rb") as new, open(store.path, "wb") as old:
        shutil.copyfileobj(new, old)
    later(store.path)
    with pytest.raises(SitError, match="overwritten in place"):
        store.batch([0])


def test_a_store_that_is_replaced_as_a_whole_is_read_on(store, tmp_path):
    """Catches: a run that is stopped by, or reads from, the file that took the name."""
    expected = store.batch([2, 5])
    assert store.replaced() == ""
    make_store(tmp_path / "b.h5", source_fingerprint="g", scaling=0.25)
    os.replace(tmp_path / "b.h5", store.path)
    np.testing.assert_array_equal(store.batch([2, 5]), expected)
    assert store.replaced() == "replaced by another file"
    store.path.unlink()
    assert store.replaced() == "removed"


def test_a_store_replaced_before_its_first_row_is_read(tmp_path):
    """Catches: labels of one file beside latents of another."""
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    make_store(tmp_path / "b.h5", source_fingerprint="g")
    later(tmp_path / "b.h5")
    os.replace(tmp_path / "b.h5", tmp_path / "a.h5")
    with pytest.raises(SitError, match="replaced by another file while it was read"):
        store.batch([0])


def test_of_several_stores_one_is_replaced(tmp_path):
    """Catches: only the first of several stores looked at."""
    paths = make_two(tmp_path)
    joined = open_stores(paths)
    joined.batch([0, NUM])
    assert joined.replaced() == ""
    paths[1].unlink()
    assert joined.replaced() == "removed"


def test_a_store_that_is_being_written_is_not_watched(tmp_path):
    """Catches: `sit inspect` that fails while `sit encode-latents` goes on."""
    make_store(tmp_path / "a.h5", complete=False)
    store = LatentStore.open(tmp_path / "a.h5", allow_incomplete=True)
    store.batch([0])
    overwrite(store.path, rows=[5])
    store.batch([4])
    assert store.replaced() == ""


def test_a_sample_of_rows_is_compared(tmp_path):
    """Catches: a store whose rows are not those written that is trained on; broken image 4 has
    no latents."""
    make_store(tmp_path / "a.h5")
    store = LatentStore.open(tmp_path / "a.h5")
    assert 4 not in sampled_rows(store.rows)
    assert len(sampled_rows(store.rows)) == NUM - 1
    store.check_sample()
    overwrite(store.path, rows=[6])
    assert damaged_rows(Rows(store.path), np.arange(NUM)) == [6]
    with pytest.raises(SitError, match="row 6 is not what was written") as failure:
        LatentStore.open(store.path).check_sample()
    assert "inspect --verify" in failure.value.hint
