"""`sit bench loader`: what is measured, and what is left behind."""

import numpy as np
import pytest

from sitcli.commands.bench import loader as stage
from sitcli.commands.bench import synthetic
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Progress
from sitcli.latents.store import LatentStore
from sitcli.settings.tools import BenchSettings
from tests.tiny import finish, make_store

LOADER = ["memmap", "rows", "batch", "feed"]


@pytest.fixture(autouse=True)
def few(monkeypatch, tmp_path):
    """Rounds of a moment, in a folder of the test's own."""
    monkeypatch.setattr(stage, "WARM_IMAGES", 64)
    monkeypatch.setattr(stage, "COLD_IMAGES", 64)
    monkeypatch.chdir(tmp_path)


def settings(**more):
    return BenchSettings(what="loader", batch_size=16, rounds=2, **more)


def test_a_synthetic_store_is_measured_and_removed(tmp_path):
    """Catches: readings that fail, gigabytes left on the disk, or ratios of other figures."""
    folder = tmp_path / "room"
    folder.mkdir()
    result = finish(stage.bench_loader(settings(items=300, files=40, dir=folder, workers=2)))
    assert list(folder.iterdir()) == []
    readings = result.data["readings"]
    assert [reading["name"] for reading in readings] == [*LOADER, "files"]
    raw = np.array(readings[0]["rounds"])
    for reading in readings:
        rates = np.array(reading["rounds"])
        assert len(rates) == 2
        assert len(reading["workers"]) == 2
        assert reading["images_per_second"] == pytest.approx(np.median(rates))
        assert reading["to_memmap"] == pytest.approx(np.median(rates / raw))
        assert reading["min"] == rates.min() > 0
    assert result.data["row_bytes"] == 16384
    assert result.data["images_a_round"] == 64
    assert [row[0] for row in result.tables[0].rows] == [
        stage.READINGS[reading["name"]][0] for reading in readings
    ]


@pytest.mark.parametrize("cold", [False, True])
def test_the_newest_store_is_read_and_left_alone(tmp_path, cold):
    """Catches: a store that is changed, and one without a posterior that cannot be read."""
    store = make_store(tmp_path / "a.h5", number=30)
    before = store.path.read_bytes()
    events, notes = stage.bench_loader(settings(cold=cold)), []
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result = end.value
            break
        notes += [event.text] if isinstance(event, Note) else []
        assert not isinstance(event, Progress) or event.done < event.total
    assert notes == ["latents: a.h5 (the newest complete store)"]
    assert store.path.read_bytes() == before
    assert [reading["name"] for reading in result.data["readings"]] == LOADER
    assert (result.data["items"], result.data["posterior"]) == (30, "mode")
    assert ("still_in_memory" in result.data) == cold


def test_every_reading_reads_as_many_images_of_the_same_store(tmp_path):
    """Catches: a reading that is fast because it reads less."""
    folder = tmp_path / "room"
    folder.mkdir()
    list(synthetic.write_synthetic(folder / "s.h5", 100))
    store = LatentStore.open(folder / "s.h5")
    list(stage._write_files(folder / "files", store.path, 100))
    saved = np.load(folder / "files" / "latents" / "0000099.npy")
    np.testing.assert_array_equal(saved, store.rows.array("latents")[99])
    assert np.load(folder / "files" / "labels" / "0000099.npy") == store.labels[99]
    task = stage._Job(
        store=store.path,
        files=folder / "files",
        num_files=64,
        batch_size=16,
        workers=2,
        posterior=True,
        cold=False,
        batches=4,
    )
    assert {name: opener(task, 1)() for name, opener in stage.OPENERS.items()} == dict.fromkeys(
        stage.READINGS, 64
    )


def test_a_dead_reader_is_named(tmp_path, monkeypatch):
    """Catches: a benchmark that waits for ever for a process that was killed."""
    path = make_store(tmp_path / "a.h5").path
    events = stage.bench_loader(settings(latents=path))
    next(events)
    path.unlink()  # the reader does not find it
    with pytest.raises(SitError, match="reader process has died"):
        for _ in events:
            pass


def test_contradictions_are_refused(tmp_path):
    """Catches: an option that does nothing."""
    with pytest.raises(UsageError, match="--items makes a store"):
        next(stage.bench_loader(settings(items=3, latents=tmp_path / "a.h5")))
    with pytest.raises(SitError, match="cannot write in"):
        next(stage.bench_loader(settings(items=3, dir=tmp_path / "none")))
