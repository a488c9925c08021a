"""One process killed at random moments: the same command again gives the same result."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.train.stage import train
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.storage.rows import Rows
from tests.commands.encode.pictures import encoded, make_images, settings_for, texts
from tests.tiny import (
    ENVIRONMENT,
    draw,
    finish,
    losses,
    train_command,
    train_settings,
    wait_for_steps,
)


def kill_training(store: Path, tmp_path: Path, kills: int, steps: int, seed: int) -> None:
    """Kill a trainer `kills` times at random moments; the run must equal an unbroken one."""
    random = np.random.default_rng(seed)
    finish(train(train_settings(store, tmp_path / "whole", steps=steps)))
    words = [sys.executable, *train_command(store, tmp_path / "killed", steps=steps)]
    for _ in range(kills):
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        before = len(RunDir(tmp_path / "killed").read_metrics())
        if before < steps:
            wait_for_steps(tmp_path / "killed", min(before + 1, steps), process)
            time.sleep(random.uniform(0, 0.3))
        process.kill()
        process.wait()
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True)
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    for which in ("model", "ema"):
        whole = open_checkpoint(tmp_path / "whole").weights(which)
        killed = open_checkpoint(tmp_path / "killed").weights(which)
        assert all(torch.equal(whole[key], killed[key]) for key in whole)


def test_training_killed_once(store: Path, tmp_path: Path) -> None:
    """Catches: a checkpoint or a log that a kill -9 leaves unreadable or out of step."""
    kill_training(store, tmp_path, kills=1, steps=12, seed=0)


@pytest.mark.slow
def test_training_killed_five_times(store: Path, tmp_path: Path) -> None:
    """Catches: as above, at five random moments."""
    kill_training(store, tmp_path, kills=5, steps=60, seed=1)


def kill_sampling(run: Path, kills: int) -> None:
    """Kill `sit sample` at random moments; the set must equal an unbroken one."""
    random = np.random.default_rng(0)
    whole = draw(run, "whole", num=64, batch_size=4, steps=25)
    words = ["--num=64", "--batch-size=4", "--steps=25", "--precision=fp32", "--device=cpu"]
    out = run.parents[1] / "killed"
    words = [sys.executable, "-m", "sitcli", "sample", str(run), f"--out={out}", *words]
    for _ in range(kills):
        process = subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not (out / "samples.h5").exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.6))
        process.kill()
        process.wait()
    subprocess.run(words, env=ENVIRONMENT, check=True, capture_output=True)
    assert np.array_equal(SampleSet.open(out).images, whole.images)


def test_sampling_killed_once(run: Path) -> None:
    """Catches: a sample set that a kill -9 leaves unreadable or with wrong images."""
    kill_sampling(run, kills=1)


@pytest.mark.slow
def test_sampling_killed_five_times(run: Path) -> None:
    """Catches: as above, at five random moments."""
    kill_sampling(run, kills=5)


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)


def kill_once(command, out, moment):
    """Run `command` and kill -9 it once `moment` rows are written (-1: while OUT is made)."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    if moment < 0:
        hidden = out.with_name(f".{out.name}.creating")
        wait_for(lambda: hidden.exists() or out.exists(), process)
    else:
        wait_for(out.exists, process)
        file = Rows(out)
        wait_for(lambda: np.count_nonzero(file.array("written")) >= moment, process)
    process.send_signal(signal.SIGKILL)
    process.wait()


def check_kills(tmp_path, moments):
    # Batches of two: many writes, so that there are many moments between them.
    source = make_images(tmp_path / "images", num=300, side=33)
    shutil.copy(__file__, source / "cat" / "broken.png")
    options = ["--vae", "patch-pca", "--batch-size", "2", "--workers", "1", "--device", "cpu"]
    unbroken, out = tmp_path / "unbroken.h5", tmp_path / "out.h5"
    settings = dict(vae="patch-pca", batch_size=2, workers=1)
    expected = encoded(settings_for(source, unbroken, **settings))[0].data
    command = [sys.executable, "-m", "sitcli", "encode-latents", str(source), str(out), *options]
    for moment in moments:
        kill_once(command, out, moment)
        if moment >= 0:
            written = np.count_nonzero(Rows(out).written)
            assert moment <= written < 301
    result, events = encoded(settings_for(source, out, **settings))
    assert any("going on with" in text for text in texts(events))
    assert result.data["checksum"] == expected["checksum"]
    assert LatentStore.open(out).checksum() == expected["checksum"]
    assert [b["name"] for b in result.data["broken"]] == ["cat/broken.png"]
    leftovers = {path.name for path in tmp_path.iterdir()} - {"images"}
    assert leftovers == {"unbroken.h5", "out.h5"}


def test_killed_once_and_the_same_command_again(tmp_path):
    """Catches: a store that kill -9 breaks, or that ends up different from an unbroken one."""
    check_kills(tmp_path, [random.randrange(1, 150)])


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path):
    """Catches: what one kill leaves for the next, and a kill while the file is laid out."""
    check_kills(tmp_path, [-1, *sorted(random.sample(range(220), 4))])
