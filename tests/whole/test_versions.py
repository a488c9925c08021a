"""Files of earlier and of later versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

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
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import read_tensors
from tests.tiny import draw, finish, write_meta


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
    for kind, weights in before.items():
        expected = read_tensors(old / "after" / f"{kind}.safetensors")
        ours = torch.cat([(t - weights[k]).flatten() for k, t in after.weights(kind).items()])
        theirs = torch.cat([(expected[k] - weights[k]).flatten() for k in after.weights(kind)])
        assert float(theirs.norm()) > 0
        assert float((ours - theirs).norm()) < 0.01 * float(theirs.norm())


def test_the_samples_of_0_6_0_are_drawn_again(old: Path) -> None:
    """Catches: other noise or labels for the same seed, or another sampler of the same name."""
    finish(sample(SampleSettings(checkpoint=old / "run", out=old / "again", **DRAWN)))
    again, before = (SampleSet.open(old / name / "samples.h5") for name in ("again", "set"))
    assert again.labels.tolist() == before.labels.tolist()
    difference = np.abs(again.images.astype(int) - before.images.astype(int))
    assert difference.max() <= 1  # a grey level, where rounding falls on the other side
