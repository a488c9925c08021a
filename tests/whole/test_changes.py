"""A run that goes on with other settings, or on other images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.encode.stage import encode
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.train.batches import Batches
from sitcli.commands.train.job import prepare
from sitcli.commands.train.resume import read_config
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.events import Note
from sitcli.machine.world import World
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.train import TrainSettings
from tests.tiny import finish, losses, make_store, pictures, train_settings, write_folder

ALONE = World(0, 1)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return make_store(tmp_path / "tiny.h5", number=10).path


@pytest.fixture
def run(store: Path, tmp_path: Path) -> Path:
    finish(train(train_settings(store, tmp_path / "run", steps=2, batch_size=4)))
    return tmp_path / "run"


def go_on(run: Path, **options) -> list:
    """`sit train --out run` with these options alone; its notes."""
    settings = TrainSettings(out=run, device="cpu", **options)
    return [event for event in train(settings, dict.fromkeys(options, "x")) if type(event) is Note]


def test_the_run_says_what_changes_and_keeps_it(run: Path) -> None:
    """Catches: a change that nobody sees, or that is forgotten at the next resume."""
    notes = go_on(run, lr=3e-4, clip=1.0, steps=3)
    assert notes[0].text.startswith("latents: ")
    assert notes[1].text == "from step 2 on: lr 0.0003, not 0.001; clip 1, not 0"
    assert not any("from step" in note.text for note in go_on(run, steps=4))
    assert go_on(run, ema=0.5, steps=5)[1].text == "from step 4 on: ema 0.5, not 0.9999"
    checkpoint = open_checkpoint(run)
    assert checkpoint.meta["format_version"] == 4
    assert [change.step for change in checkpoint.history.changes] == [2, 4]
    assert read_config(run / "config.yaml")["lr"] == 3e-4
    entries = RunDir(run).read_metrics()
    assert [entry["lr"] for entry in entries] == [1e-3, 1e-3, 3e-4, 3e-4, 3e-4]
    tables = finish(inspect(InspectSettings(path=run))).tables
    (table,) = [table for table in tables if table.title == "Changes"]
    assert table.rows[1] == ["4", "ema 0.5, not 0.9999"]
    assert (run / "loss.png").stat().st_size


def test_nothing_left_to_do_changes_nothing(run: Path) -> None:
    """Catches: a change that is announced, and does not come."""
    notes = [note.text for note in go_on(run, lr=3e-4, steps=1)]
    assert notes[1:] == [
        f"{run} has 2 steps already, more than --steps 1; with lr 0.0003, not 0.001 it goes on for "
        "a higher --steps"
    ]
    assert read_config(run / "config.yaml")["lr"] == 1e-3


def test_what_was_begun_and_never_saved_holds(run: Path) -> None:
    """Catches: a learning rate that falls back to the old one after a kill, or is noted twice."""
    prepare(TrainSettings(out=run, device="cpu", lr=3e-4), ALONE, {"lr": "x"})
    settings = TrainSettings(out=run, device="cpu", lr=3e-4, steps=3)
    job = prepare(settings, ALONE, {"lr": "x", "steps": "x"})
    with job.owned_run():
        job.write_config()  # killed before a checkpoint
    again = prepare(TrainSettings(out=run, device="cpu"), ALONE, {})
    assert again.settings.lr == 3e-4
    assert again.change_now.settings == {"lr": (1e-3, 3e-4)}


def test_images_are_counted_and_not_steps(run: Path, store: Path) -> None:
    """Catches: images left out or seen twice in an epoch, or noise drawn twice, once the batch has
    another size."""
    go_on(run, batch_size=2, steps=3)
    assert open_checkpoint(run).images_seen == 10
    changed = prepare(TrainSettings(out=run, device="cpu", steps=9), ALONE, {"steps": "x"})
    batches = Batches(changed, ALONE)
    plain = prepare(train_settings(store, run.parent / "other", steps=5, batch_size=2), ALONE)
    # Ten images are drawn after 3 steps of one run, and after 5 of the other.
    for ours, theirs in zip(
        batches.of_step(3) + batches.of_step(4),
        Batches(plain, ALONE).of_step(5) + Batches(plain, ALONE).of_step(6),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
    assert changed.order.epochs(changed.images_at(4)) == 1.2


def test_other_images_of_the_same_classes(run: Path, store: Path, tmp_path: Path) -> None:
    """Catches: an order of the old images applied to the new ones, or a jump in the epochs."""
    more = make_store(tmp_path / "more.h5", number=14).path
    note = go_on(run, latents=[store, more], steps=3)[0].text
    assert note == "from step 2 on: other latents, of 24 images, not 10"
    job = prepare(TrainSettings(out=run, device="cpu", steps=9), ALONE, {"steps": "x"})
    assert job.store.num_items == 24
    # 8 images of the first ten are an epoch, begun and cut short.
    assert job.history.data_began == (8, 1)
    order = job.order
    assert np.sort(order.batch(8, 24)).tolist() == list(range(24))
    assert job.streams.order(1, 24).tolist() == order.batch(8, 24).tolist()
    # Without --latents it goes on with those that it has now.
    go_on(run, steps=4)
    assert open_checkpoint(run).latents["num_items"] == 24


def test_a_store_that_grows(tmp_path: Path) -> None:
    """Catches: a run refused because its own store has more images, or that mixes the orders of
    both; and an unrelated store taken for the grown one."""
    images, _ = pictures(12)
    write_folder(tmp_path / "photos" / "a", images[:6])
    write_folder(tmp_path / "photos" / "b", images[6:])
    settings = EncodeSettings(
        source=tmp_path / "photos", out=tmp_path / "s.h5", vae="pixels", image_size=8, device="cpu"
    )
    finish(encode(settings))
    run = tmp_path / "run"
    finish(train(train_settings(tmp_path / "s.h5", run, steps=2, batch_size=4)))
    write_folder(tmp_path / "photos" / "a" / "more", images[:3])
    finish(encode(settings))
    notes = [note.text for note in go_on(run, steps=3)]
    assert "from step 2 on: other latents, of 15 images, not 12" in notes
    assert open_checkpoint(run).history.data_began == (8, 1)
    write_folder(tmp_path / "photos" / "c", images[:3])
    finish(encode(settings))
    with pytest.raises(UsageError, match="has not the classes of"):
        go_on(run, steps=4)


@pytest.mark.parametrize("which", ["classes", "space"])
def test_images_that_do_not_fit_are_refused(run: Path, tmp_path: Path, which: str) -> None:
    """Catches: a label that means another class from now on, or latents of another size."""
    other = dict(classes=dict(classes=False), space=dict(side=16))[which]
    path = make_store(tmp_path / "other.h5", number=14, **other).path
    with pytest.raises(SitError) as failure:
        go_on(run, latents=[path], steps=3)
    assert ("has not the classes" if which == "classes" else "holds latents") in str(failure.value)
    if which == "classes":
        assert failure.value.hint.startswith("begin another run from its weights: sit train --init")


def test_a_schedule_begins_where_it_is_said(run: Path) -> None:
    """Catches: a cosine over all steps, which begins in its middle."""
    go_on(run, schedule="cosine", steps=6)
    rates = [entry["lr"] for entry in RunDir(run).read_metrics()][2:]
    shares = [1 - step / 4 for step in range(4)]
    expected = [1e-3 * 0.5 * (1 - np.cos(np.pi * share)) for share in shares]
    np.testing.assert_allclose(rates, expected, rtol=1e-12)
    # More steps move the end of the cosine, and say so.
    assert go_on(run, steps=8)[1].text == (
        "from step 6 on: steps 8, not 6, and the schedule ends with them"
    )


def test_changed_and_changed_back_is_no_change(run: Path, store: Path) -> None:
    """Catches: a run that learns otherwise after a change that was taken back before a step."""
    settings = TrainSettings(out=run, device="cpu", lr=3e-4, batch_size=2, steps=4)
    job = prepare(settings, ALONE, dict.fromkeys(("lr", "batch_size", "steps"), "x"))
    with job.owned_run():
        job.write_config()
    go_on(run, lr=1e-3, batch_size=4, steps=4)
    finish(train(train_settings(store, run.parent / "whole", steps=4, batch_size=4)))
    assert losses(run) == losses(run.parent / "whole")
    assert "history" not in open_checkpoint(run).meta


def test_another_precision(run: Path) -> None:
    """Catches: a run that cannot leave a precision, or forgets that it did."""
    go_on(run, precision="bf16", steps=3)
    assert open_checkpoint(run).meta["precision"] == "bf16"
    go_on(run, steps=4)
    assert [c.settings for c in open_checkpoint(run).history.changes] == [
        {"precision": ("fp32", "bf16")}
    ]


def test_the_name_of_a_changed_run(store: Path, tmp_path: Path, monkeypatch) -> None:
    """Catches: the first command, typed again, that takes back what was changed since."""
    monkeypatch.chdir(tmp_path)
    settings = train_settings(store, None, steps=2)
    finish(train(settings))
    (run,) = (tmp_path / "runs").iterdir()
    go_on(run, clip=2.0, steps=3)
    with pytest.raises(UsageError, match=r"says clip 2.0, but the run's name is that") as failure:
        finish(train(settings))
    assert failure.value.hint.startswith("go on with what it has now: sit train --out runs/")


def test_a_damaged_history_is_an_error(run: Path) -> None:
    """Catches: a traceback."""
    file = open_checkpoint(run).path / "meta.json"
    meta = json.loads(file.read_text())
    meta.pop("checksum")
    file.write_text(json.dumps(meta | {"history": [{"step": 1}]}))
    with pytest.raises(SitError, match="is damaged: its history"):
        go_on(run, steps=3)


def test_a_refused_resume_changes_nothing(run: Path) -> None:
    """Catches: settings of a command that was refused, applied by the next one; and weights with a
    flipped byte that training goes on from."""
    before = (run / "config.yaml").read_bytes()
    file = open_checkpoint(run).path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(SitError, match=r"is damaged: '.*' is not what was written"):
        go_on(run, lr=5.0, steps=4)
    assert (run / "config.yaml").read_bytes() == before
