"""Kill every stage at random moments, many times: nothing may be lost, nothing corrupt.

    pytest -m slow tests/test_kills.py [SIT_KILLS=100]

Each test kills SIT_KILLS times (20), then lets the same command finish and compares with a run
that nobody touched, to the last bit; what is on the disk is read back after every kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.engine.optimizer_state import StateFiles
from sitcli.errors import SitError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.storage.rows import Rows
from tests.tiny import ENVIRONMENT, TRAINING, make_store, pictures, write_folder

pytestmark = pytest.mark.slow


KILLS = int(os.environ.get("SIT_KILLS", 20))
SIT = [sys.executable, "-m", "sitcli"]
STEPS = 4 * KILLS


def flags(**options: object) -> list[str]:
    return [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]


def train_command(store: Path, out: Path, **more: object) -> list[str]:
    options = {**TRAINING, "steps": STEPS, "procs": 2, "save_every": 2, **more}
    return [*SIT, "train", *flags(latents=store, out=out, **options)]


def finish(command: list[str]) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def children(pid: int) -> list[int]:
    """The ranks that a starter started: the processes whose parent it is."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return sorted(found)


def kill_at(
    command: list[str], now: Callable[[], bool], *, whom: str, random: np.random.Generator
) -> str:
    """Start the command, wait for now(), kill -9 `whom` ("rank", "all"); its stderr.

    The starter must be gone within 30 s, and with it every rank.
    """
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while process.poll() is None and not now():
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.002)
    ranks = children(process.pid)
    victims = [random.choice(ranks)] if whom == "rank" and ranks else [process.pid, *ranks]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(victim), signal.SIGKILL)
    killed = time.monotonic()
    _, errors = process.communicate(timeout=30)
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() - killed < 30, "a rank outlived the others"
        time.sleep(0.05)
    assert "Traceback" not in errors, errors
    return errors


def beyond(number: Callable[[], int], margin: float) -> Callable[[], bool]:
    """Whether number() has grown by more than `margin` since now."""
    start = number()
    return lambda: number() > start + margin


def saving(run: RunDir) -> Callable[[], bool]:
    """Whether the run has gone on, and a checkpoint is being written."""
    gone_on = beyond(lambda: len(run.read_metrics()), 0)
    return lambda: gone_on() and any(run.path.glob(".saving-*/*"))


def finished(path: Path) -> int:
    """Rows of a row file that are flagged; 0 while there is none."""
    with contextlib.suppress(SitError):
        return int(np.count_nonzero(Rows(path).written))
    return 0


def check_run(run: RunDir) -> None:
    """Every checkpoint that counts is whole."""
    for step in run.steps():
        checkpoint = open_checkpoint(run.step_path(step))
        network = checkpoint.network("model", torch.device("cpu"))
        assert checkpoint.weights("ema").keys() == network.state_dict().keys()
        with contextlib.ExitStack() as stack:
            files = StateFiles(checkpoint.path, stack)
            for name, parameter in network.named_parameters():
                assert torch.isfinite(files.read("exp_avg_sq", name, 0, parameter.numel())).all()


def same_runs(a: RunDir, b: RunDir) -> None:
    first, second = (
        [(e["step"], e["loss"], e["grad_norm"]) for e in run.read_metrics()] for run in (a, b)
    )
    assert first == second
    for which in ("model", "ema"):
        x, y = (open_checkpoint(run.path).weights(which) for run in (a, b))
        assert all(torch.equal(x[name], y[name]) for name in x)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("store") / "tiny.h5").path


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory) -> RunDir:
    """The run nobody touches."""
    run = RunDir(tmp_path_factory.mktemp("whole") / "run")
    finish(train_command(store, run.path))
    return run


@pytest.mark.parametrize(
    ("whom", "moment"),
    [("rank", "step"), ("all", "step"), ("rank", "save"), ("all", "save")],
)
def test_training(store: Path, whole: RunDir, tmp_path: Path, whom: str, moment: str) -> None:
    """Catches: a checkpoint that counts and is not whole, steps lost or counted twice, a rank that
    goes on alone; at a random step, or while a checkpoint is being written."""
    random = np.random.default_rng([len(whom), len(moment)])
    run = RunDir(tmp_path / "run")
    command = train_command(store, run.path)
    for _ in range(KILLS):
        if moment == "step":
            now = beyond(lambda: len(run.read_metrics()), random.uniform(0, 8))
        else:
            now = saving(run)
        errors = kill_at(command, now, whom=whom, random=random)
        if whom == "rank" and run.steps()[-1:] != [STEPS]:
            assert "was killed (SIGKILL)" in errors
        check_run(run)
        if run.steps()[-1:] == [STEPS]:
            # It was through before it could be killed: again, from the beginning.
            same_runs(whole, run)
            shutil.rmtree(run.path)
    finish(command)
    check_run(run)
    same_runs(whole, run)


def encode_command(images: Path, out: Path) -> list[str]:
    options = dict(vae="pixels", image_size=8, crop="none", batch_size=4, procs=2, workers=0)
    return [*SIT, "encode-latents", str(images), str(out), *flags(**options)]


@pytest.mark.parametrize("whom", ["rank", "all"])
def test_encoding(tmp_path: Path, whom: str) -> None:
    """Catches: rows flagged and not written, rows lost, or a store that cannot be opened."""
    random = np.random.default_rng(len(whom))
    images = write_folder(tmp_path / "images", pictures(4000)[0])
    finish(encode_command(images, tmp_path / "whole.h5"))
    whole, out = Rows(tmp_path / "whole.h5"), tmp_path / "out.h5"
    for _ in range(KILLS):
        now = beyond(lambda: finished(out), random.uniform(0, 60))
        kill_at(encode_command(images, out), now, whom=whom, random=random)
        file = Rows(out)
        done = file.written == 1
        assert done.any()
        for name in ("latents", "latents_flipped", "crc32"):
            np.testing.assert_array_equal(file.array(name)[done], whole.array(name)[done])
        if file.attrs["complete"]:
            out.unlink()
    finish(encode_command(images, out))
    assert Rows(out).attrs["checksum"] == whole.attrs["checksum"]


def sample_command(run: Path, out: Path) -> list[str]:
    options = dict(num=800, steps=4, batch_size=4, procs=2, device="cpu", precision="fp32")
    return [*SIT, "sample", str(run), *flags(out=out, **options)]


@pytest.mark.parametrize("whom", ["rank", "all"])
def test_sampling(whole: RunDir, tmp_path: Path, whom: str) -> None:
    """Catches: images flagged and not drawn, drawn with other noise, lost, or drawn twice."""
    random = np.random.default_rng(len(whom))
    finish(sample_command(whole.path, tmp_path / "whole"))
    expected, out = SampleSet.open(tmp_path / "whole"), tmp_path / "out"
    for _ in range(KILLS):
        now = beyond(lambda: finished(out / "samples.h5"), random.uniform(0, 12))
        kill_at(sample_command(whole.path, out), now, whom=whom, random=random)
        drawn = SampleSet.open(out)
        np.testing.assert_array_equal(drawn.images[drawn.done], expected.images[drawn.done])
        if drawn.complete:
            shutil.rmtree(out)
    finish(sample_command(whole.path, out))
    np.testing.assert_array_equal(SampleSet.open(out).images, expected.images)
    assert SampleSet.open(out).meta["evaluations"] == expected.meta["evaluations"]


@pytest.mark.parametrize("whom", ["rank", "all"])
def test_scoring(tmp_path: Path, whom: str) -> None:
    """Catches: features flagged and not written, or of another image; figures that tell of a
    kill."""
    random = np.random.default_rng(len(whom))
    for number, name in enumerate(("samples", "real")):
        np.savez(tmp_path / f"{name}.npz", arr_0=pictures(6000, seed=number)[0])
    options = dict(reference=tmp_path / "real.npz", features="pixels", batch_size=2, procs=2)
    command = [*SIT, "evaluate", str(tmp_path / "samples.npz"), "--fid", "--prc", *flags(**options)]
    written, stats = tmp_path / "samples.metrics.json", tmp_path / "samples.stats"

    def figures() -> list[float]:
        return [figure["value"] for figure in json.loads(written.read_text())["figures"]]

    def forget() -> None:
        for folder in (stats, tmp_path / "real.stats"):
            shutil.rmtree(folder, ignore_errors=True)
        written.unlink(missing_ok=True)

    def done() -> int:
        return sum(finished(path) for path in tmp_path.glob("*.stats/*.features"))

    finish(command)
    expected = figures()
    forget()
    for _ in range(KILLS):
        kill_at(command, beyond(done, random.uniform(0, 1500)), whom=whom, random=random)
        if written.exists():
            assert figures() == expected
            forget()
    finish(command)
    assert figures() == expected


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A filesystem of `size` bytes of its own at `folder`; skips where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def enlarge(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def test_training_on_a_full_disk(store: Path, tmp_path: Path) -> None:
    """Catches: the last good checkpoint lost when the next does not fit, or a half-written one that
    counts; the disk fills at another byte every time."""
    random = np.random.default_rng(0)
    whole = RunDir(tmp_path / "whole")
    options = dict(steps=12, procs=1, keep=0)
    finish(train_command(store, whole.path, **options))
    size = sum(p.stat().st_size for p in whole.path.rglob("*") if p.is_file())
    with small_disk(tmp_path / "disk", 2 * size) as disk:
        for _ in range(KILLS):
            enlarge(disk, int(random.uniform(0.25, 0.95) * size))
            run = RunDir(disk / "run")
            command = train_command(store, run.path, **options)
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
            assert "Traceback" not in done.stderr, done.stderr
            assert done.returncode == 1
            assert len(re.findall("^error: ", done.stderr, re.M)) == 1
            check_run(run)
            enlarge(disk, 4 * size)
            finish(command)
            check_run(run)
            same_runs(whole, run)
            shutil.rmtree(run.path)


def test_encoding_on_a_full_disk(tmp_path: Path) -> None:
    """Catches: a store begun that cannot be finished, a traceback, or room not given back."""
    random = np.random.default_rng(0)
    images = write_folder(tmp_path / "images", pictures(400)[0])
    finish(encode_command(images, tmp_path / "whole.h5"))
    whole = Rows(tmp_path / "whole.h5")
    size = whole.path.stat().st_size
    with small_disk(tmp_path / "disk", 2 * size) as disk:
        for _ in range(KILLS):
            enlarge(disk, int(random.uniform(0.05, 0.95) * size))
            command = encode_command(images, disk / "out.h5")
            done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
            assert "Traceback" not in done.stderr, done.stderr
            assert done.returncode == 1
            assert len(re.findall("^error: ", done.stderr, re.M)) == 1
            assert not list(disk.iterdir())
            enlarge(disk, 4 * size)
            finish(command)
            assert Rows(disk / "out.h5").attrs["checksum"] == whole.attrs["checksum"]
            (disk / "out.h5").unlink()
