"""Encoding, sampling and scoring by several processes: the same as by one, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.encode.stage import encode
from sitcli.commands.encode.stage import plan as plan_encoding
from sitcli.commands.evaluate.stage import evaluate
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.storage.rows import DONE, Rows
from tests.tiny import (
    ENVIRONMENT,
    finish,
    make_store,
    pictures,
    train_settings,
    write_folder,
    write_samples,
)

SIT = [sys.executable, "-m", "sitcli"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ENCODE = dict(vae="patch-pca", image_size=8, crop="none", batch_size=5, workers=0)
SAMPLE = dict(num=23, steps=3, batch_size=4, latents=True, device="cpu", precision="fp32")


def words(command: list[str], **options) -> list[str]:
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in options.items() if v is not True]
    return [*command, *flags, *(f"--{k}" for k, v in options.items() if v is True)]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def same_rows(a: Path, b: Path, *, but: tuple[str, ...] = ()) -> None:
    """Every dataset of two row files, to the last bit."""
    first, second = Rows(a), Rows(b)
    assert first.names == second.names
    for name in set(first.names) - set(but):
        np.testing.assert_array_equal(first.array(name), second.array(name), err_msg=name)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """103 pictures in three classes, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    drawn, labels = pictures(103)
    for label in range(3):
        write_folder(folder / f"c{label}", drawn[labels == label])
    (folder / "c1" / "004.png").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def encoded(images: Path, tmp_path_factory) -> Path:
    """The store of one process."""
    out = tmp_path_factory.mktemp("one") / "one.h5"
    finish(encode(EncodeSettings(source=images, out=out, **ENCODE)))
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    store = make_store(folder / "tiny.h5").path
    finish(train(train_settings(store, folder / "run", steps=2)))
    return folder / "run"


def test_three_processes_encode_the_same_store(images, encoded, tmp_path: Path) -> None:
    """Catches: rows encoded twice, padded, missed or shuffled; a line said by every process."""
    out = tmp_path / "three.h5"
    done = run(words([*SIT, "encode-latents", str(images), str(out)], procs=3, **ENCODE))
    assert done.returncode == 0, done.stderr
    same_rows(out, encoded)
    assert Rows(out).attrs["checksum"] == Rows(encoded).attrs["checksum"]
    assert done.stdout.splitlines() == [str(out)]
    assert done.stderr.count("fitting patch-pca") == 1
    assert "102 in 3 classes" in done.stderr
    assert done.stderr.count("c1/004.png") >= 1


def test_torchrun_samples_the_same_images(trained: Path, tmp_path: Path) -> None:
    """Catches: noise or labels that depend on the rank; evaluations counted twice."""
    finish(sample(SampleSettings(checkpoint=trained, out=tmp_path / "one", **SAMPLE)))
    command = words(
        [*TORCHRUN, "--nproc_per_node=2", "-m", "--", "sitcli", "sample", str(trained)],
        out=tmp_path / "two", **SAMPLE,
    )  # fmt: skip
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path / "two")]
    same_rows(tmp_path / "one" / "samples.h5", tmp_path / "two" / "samples.h5")
    one, two = (json.loads((tmp_path / name / "meta.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "two" / "grid.png").exists()


def begun(path: Path, number: int) -> bool:
    with contextlib.suppress(SitError):
        return int(np.count_nonzero(Rows(path).written)) >= number
    return False


def test_a_killed_rank_ends_all_and_another_number_goes_on(trained: Path, tmp_path: Path) -> None:
    """Catches: ranks that work on when one has died, its images lost, or a set bound to its N."""
    options = dict(SAMPLE, num=400, steps=20)
    command = words([*SIT, "sample", str(trained)], out=tmp_path / "set", procs=2, **options)
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    file = tmp_path / "set" / "samples.h5"
    while not begun(file, 8):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(ranks.stdout.split()[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors.count("error: ") == 1
    assert "of 2 was killed (SIGKILL), and the others were ended" in errors
    kept = Rows(file).written == DONE
    assert 8 <= kept.sum() < 400
    done = run(words([*SIT, "sample", str(trained)], out=tmp_path / "set", procs=3, **options))
    assert done.returncode == 0, done.stderr
    assert f"going on: {kept.sum()} of 400 images are there" in done.stderr
    finish(sample(SampleSettings(checkpoint=trained, out=tmp_path / "one", **options)))
    same_rows(file, tmp_path / "one" / "samples.h5")


def test_errors_are_said_once(trained: Path, images: Path, tmp_path: Path) -> None:
    """Catches: every rank's copy of an error, or a traceback of those that were left behind."""
    bad = [
        words([*SIT, "sample", str(trained)], procs=2, classes="purple"),
        words([*SIT, "sample", str(tmp_path / "none")], procs=2),
        words([*SIT, "encode-latents", str(images), str(tmp_path / "no" / "o.h5")], procs=2),
    ]
    for command in bad:
        done = run(command)
        assert done.returncode in (1, 2)
        assert len([x for x in done.stderr.splitlines() if x.startswith("error: ")]) == 1
        assert "Traceback" not in done.stderr


def test_plans_and_refusals(trained: Path, images: Path, tmp_path: Path) -> None:
    """Catches: a plan that starts processes, or --invert that ignores --procs."""
    s = EncodeSettings(source=images, out=tmp_path / "o.h5", procs=3, **ENCODE)
    assert plan_encoding(s).data["processes"] == 3
    done = run(words([*SIT, "sample", str(trained)], invert=images, procs=2))
    assert done.returncode == 2
    assert done.stderr.count("error: --invert runs in one process") == 1
    with pytest.raises(UsageError, match="both say how many"):
        plan_encoding(EncodeSettings(source=images, out=tmp_path / "o.h5", procs=3, gpus=2))


def test_two_processes_give_the_same_figures(tmp_path: Path) -> None:
    """Catches: blocks of features that a rank writes to another's rows, leaves out or repeats; sums
    of a rank that are counted twice; a table said by each."""
    samples = write_samples(tmp_path / "a", pictures(700)[0])
    np.savez(tmp_path / "real.npz", arr_0=pictures(600, seed=1)[0])
    shared = dict(reference=tmp_path / "real.npz", features="pixels", fid=True, kid=True)
    alone = finish(evaluate(EvaluateSettings(samples=[samples], device="cpu", **shared)))
    shutil.rmtree(samples / "stats")
    shutil.rmtree(tmp_path / "real.stats")
    command = words([*SIT, "evaluate", str(samples)], procs=2, json=True, **shared)
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["figures"] == alone.data["figures"]
    assert done.stderr.count("is not FID") == 1
