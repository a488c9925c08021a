"""`sit import-latents` from the files to a trained run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.import_latents.stage import plan
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.events import Note
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from tests.autoencoders.files import tiny_kl
from tests.commands.import_latents.others import (
    NUM,
    imported,
    normal,
    settings_for,
    store_of,
    write_fast_dit,
    write_repa,
    write_shards,
)
from tests.tiny import ENVIRONMENT, finish, train_settings


def test_a_second_time_nothing_is_done(tmp_path: Path) -> None:
    """Catches: a complete store that is written again."""
    write_repa(tmp_path / "r")
    imported(tmp_path / "r", tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    result, events = imported(tmp_path / "r", tmp_path / "a.h5")
    assert [e.text for e in events if isinstance(e, Note)] == [
        f"{tmp_path / 'a.h5'} is complete already"
    ]
    assert (tmp_path / "a.h5").read_bytes() == before
    assert result.data["images"] == NUM


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    """Catches: a plan that creates the store, or says other facts than the command."""
    write_shards(tmp_path / "l")
    planned = plan(settings_for(tmp_path / "l", tmp_path / "a.h5"))
    assert not (tmp_path / "a.h5").exists()
    result, _ = imported(tmp_path / "l", tmp_path / "a.h5")
    assert planned.data["num_classes"] == result.data["num_classes"] == 3
    assert planned.summary["state"] == "new"


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """Catches: a kill -9 that leaves a store nobody can go on with, or rows of zeros."""
    np.save(tmp_path / "z.npy", normal(4000, 4, 16, 16))
    np.save(tmp_path / "y.npy", np.arange(4000) % 7)
    out = tmp_path / "a.h5"
    options = ["--scaling=1", f"--labels={tmp_path / 'y.npy'}"]
    slow = (
        "import sys, time\n"
        "from sitcli.commands.import_latents import fill\n"
        "from sitcli.storage.rows import Rows\n"
        "fill.BATCH_BYTES = 400_000\n"
        "write = Rows.write\n"
        "Rows.write = lambda *a, **k: (time.sleep(0.05), write(*a, **k))[1]\n"
        "from sitcli.__main__ import main\n"
        f"sys.argv = ['sit', 'import-latents', {str(tmp_path / 'z.npy')!r}, {str(out)!r}, "
        f"*{options!r}]\n"
        "main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], env=ENVIRONMENT, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline
        if out.exists():
            written = np.count_nonzero(LatentStore.open(out, allow_incomplete=True).rows.written)
            if written:
                break
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(SitError, match="is not complete"):
        LatentStore.open(out)
    command = [sys.executable, "-m", "sitcli", "import-latents", tmp_path / "z.npy", out, *options]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "going on with" in done.stderr
    other = store_of(tmp_path / "z.npy", tmp_path / "b.h5", scaling="1",
                     labels=str(tmp_path / "y.npy"))  # fmt: skip
    assert LatentStore.open(out).written_checksum == other.written_checksum


def test_imported_latents_train_and_draw(tmp_path: Path, monkeypatch) -> None:
    """Catches: a run that cannot be sampled because nobody named the autoencoder in time."""
    monkeypatch.chdir(tmp_path)
    tiny_kl().save_pretrained(tmp_path / "vae")  # 4 channels, 2 pixels a latent position
    write_shards(tmp_path / "l", channels=4)
    out = tmp_path / "a.h5"
    imported(tmp_path / "l", out, image_size=8)
    assert finish(inspect(InspectSettings(path=out, verify=True))).data["verified"]
    told = finish(inspect(InspectSettings(path=out)))
    assert told.data["imported"]["layout"] == "LightningDiT's shards"
    finish(train(train_settings(out, tmp_path / "run", steps=2, model="SiT-Mi/2")))
    base = dict(checkpoint=tmp_path / "run", num=2, steps=2, device="cpu", precision="fp32")
    with pytest.raises(SitError, match="nobody said which autoencoder") as caught:
        finish(sample(SampleSettings(out=tmp_path / "s", **base)))
    assert "--vae NAME" in caught.value.hint
    assert not (tmp_path / "s").exists()
    finish(sample(SampleSettings(out=tmp_path / "s", latents_only=True, **base)))
    finish(sample(SampleSettings(out=tmp_path / "t", vae=str(tmp_path / "vae"), **base)))
    assert SampleSet.open(tmp_path / "t").images.shape == (2, 8, 8, 3)
    imported(tmp_path / "l", tmp_path / "b.h5", image_size=16)
    finish(train(train_settings(tmp_path / "b.h5", tmp_path / "other", steps=1, model="SiT-Mi/2")))
    with pytest.raises(SitError, match="makes 2 pixels of a latent position"):
        finish(sample(SampleSettings(out=tmp_path / "u", vae=str(tmp_path / "vae"),
                                     **base | {"checkpoint": tmp_path / "other"})))  # fmt: skip


def test_stores_of_one_import_are_read_as_one(tmp_path: Path) -> None:
    """Catches: an autoencoder without a hash that nothing can be joined with."""
    write_fast_dit(tmp_path / "f")
    write_fast_dit(tmp_path / "g")
    np.save(tmp_path / "g" / "imagenet256_labels" / "0.npy", np.array([2]))
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for source, out in zip("fg", paths, strict=True):
        imported(tmp_path / source, out)
    assert open_stores(paths).num_items == 2 * NUM
