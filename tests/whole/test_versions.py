"""Files of earlier and of later versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.train import TrainSettings
from sitcli.storage.rows import MISSING, Rows
from sitcli.storage.tensors import read_tensors
from tests.tiny import draw, finish, train_settings, write_meta


def test_newer_formats_are_refused(run: Path) -> None:
    """Catches: an artefact of a later version read as if nothing had changed, or a traceback."""
    samples, store = draw(run, "set"), run.parents[1] / "tiny.h5"
    for path in (samples.path, store):
        with Rows(path, writable=True) as file:
            file.set_attrs(format_version=9)
    meta = open_checkpoint(run).path / "meta.json"
    write_meta(meta, json.loads(meta.read_text()) | {"format_version": 9})
    for read in (
        lambda: SampleSet.open(samples.path),
        lambda: LatentStore.open(store),
        lambda: open_checkpoint(run),
    ):
        with pytest.raises(SitError, match=r"has format 9, this version of sit reads up to \d"):
            read()


ARTEFACTS = Path(__file__).parent / "artefacts"
# What 0.6.0 was told, but for paths and steps.
TRAINED = dict(
    model="SiT-Mi/2", width=16, depth=1, heads=2, batch_size=4, save_every=2, log_every=1,
    sample_every=0, device="cpu", precision="fp32", compile="off", seed=3,
)  # fmt: skip
DRAWN = dict(num=6, steps=4, device="cpu", precision="fp32", latents=True)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of the store, the run after 2 steps and the sample set that 0.6.0 wrote."""
    return Path(shutil.copytree(ARTEFACTS / "0.6.0", tmp_path / "old"))


def test_the_store_of_0_6_0_is_sound(old: Path) -> None:
    """Catches: a dataset, an attribute or a checksum that is read in another way than before."""
    result = finish(inspect(InspectSettings(path=old / "store.h5", verify=True)))
    assert result.data["verified"]
    store = LatentStore.open(old / "store.h5")
    assert (store.num_items, store.class_names) == (12, ["blue", "green", "red"])


def test_the_run_of_0_6_0_goes_on_with_its_own_numbers(old: Path) -> None:
    """Catches: another order of the data, other noise, times, moments or averages after the resume.

    Two steps of AdamW move the weights by 1e-4 each; the change is compared with the change that
    0.6.0 made. Rounding differs between processors and moves it by far less than a hundredth.
    """
    before = {kind: open_checkpoint(old / "run").weights(kind) for kind in ("model", "ema")}
    settings = TrainSettings(latents=[old / "store.h5"], out=old / "run", steps=4, **TRAINED)
    finish(train(settings))
    after = open_checkpoint(old / "run")
    assert after.step == 4
    # Version 0.7 can take it over again: it is in its format, and its numbers are its own.
    assert after.meta["format_version"] == 2
    assert "streams" not in after.meta
    for kind, weights in before.items():
        expected = read_tensors(old / "after" / f"{kind}.safetensors")
        ours = torch.cat([(t - weights[k]).flatten() for k, t in after.weights(kind).items()])
        theirs = torch.cat([(expected[k] - weights[k]).flatten() for k in after.weights(kind)])
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm()) < 0.01 * float(theirs.norm())


def test_the_samples_of_0_6_0_go_on_with_their_own_numbers(old: Path) -> None:
    """Catches: other noise or labels than the set was begun with, or another sampler of the same
    name."""
    before = np.array(SampleSet.open(old / "set").images)
    with Rows(old / "set" / "samples.h5", writable=True) as rows:
        rows.write(np.array([1, 4]), status=MISSING, images=np.zeros_like(before[:2]))
        rows.set_attrs(complete=False, meta=rows.attrs["meta"] | moved_to(old))
    finish(sample(SampleSettings(checkpoint=old / "run", out=old / "set", **DRAWN)))
    after = SampleSet.open(old / "set")
    assert after.complete
    difference = np.abs(after.images.astype(int) - before.astype(int))
    assert difference.max() <= 1  # a grey level, where rounding falls on the other side
    assert after.rows.attrs["format_version"] == 2


def moved_to(old: Path) -> dict[str, str]:
    """The path of the checkpoint, which a set compares."""
    return dict(checkpoint=str(open_checkpoint(old / "run").path.resolve()))


def test_new_samples_of_an_old_run_are_of_the_new_streams(old: Path) -> None:
    """Catches: a new set whose noise may be that of another of its images."""
    finish(sample(SampleSettings(checkpoint=old / "run", out=old / "again", **DRAWN)))
    again, before = (SampleSet.open(old / name) for name in ("again", "set"))
    assert again.labels.tolist() == before.labels.tolist()
    assert not np.array_equal(again.images, before.images)
    assert again.meta["streams"] == "philox"


def test_random_labels_stay_those_of_the_set(run: Path) -> None:
    """Catches: an old set that goes on with labels of the new streams, which it does not record."""
    settings = SampleSettings(
        checkpoint=run, out=run.parents[1] / "set", num=12, steps=2, labels="random",
        device="cpu", precision="fp32",
    )  # fmt: skip
    finish(sample(settings))
    samples = SampleSet.open(settings.out)
    before, labels = np.array(samples.images), (samples.labels + 1) % 3
    with Rows(samples.path, writable=True) as rows:
        rows.write(np.arange(12), status=MISSING)
        rows.set_attrs(complete=False)
    with h5py.File(samples.path, "r+") as file:
        file["labels"][:] = labels  # an older version drew others
    finish(sample(settings))
    after = SampleSet.open(settings.out)
    assert after.labels.tolist() == labels.tolist()
    assert not any(np.array_equal(a, b) for a, b in zip(after.images, before, strict=True))


def test_what_draws_from_the_new_streams_is_of_a_format_that_0_7_refuses(run: Path) -> None:
    """Catches: a run or a set of this version that an older one would go on with other numbers."""
    samples = draw(run, "set")
    assert samples.rows.attrs["format_version"] == 3
    assert samples.rows.attrs["meta"]["streams"] == "philox"
    store = run.parents[1] / "tiny.h5"
    finish(train(train_settings(store, run.parent / "new", steps=2)))
    meta = open_checkpoint(run.parent / "new").meta
    assert (meta["format_version"], meta["streams"]) == (3, "philox")


def test_unknown_streams_are_refused(run: Path) -> None:
    """Catches: a run or a set of a later version's streams that goes on with this one's."""
    samples = draw(run, "set")
    with Rows(samples.path, writable=True) as file:
        file.set_attrs(meta=file.attrs["meta"] | {"streams": "dice"})
    with pytest.raises(SitError, match="streams"):
        SampleSet.open(samples.path)
    meta = open_checkpoint(run).path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"streams": "dice"}))
    with pytest.raises(SitError, match="streams"):
        open_checkpoint(run)
