"""The log of a training: each figure is what its name says."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sitcli.commands.train import logbook
from sitcli.commands.train.recipe import learning_rate
from sitcli.commands.train.stage import train
from sitcli.images.grid import save_grid
from sitcli.runs.run_dir import RunDir
from tests.tiny import finish, train_settings


def test_log_lines(store: Path, tmp_path: Path) -> None:
    """Catches: a mean over other steps than those since the last line, and figures of another
    step: the learning rate before the update, the epoch after it."""
    more = dict(steps=6, layer_sync=0.2, warmup=4, save_every=6)
    options = train_settings(store, tmp_path / "a", log_every=3, **more)
    result = finish(train(options))
    finish(train(train_settings(store, tmp_path / "b", log_every=1, **more)))
    lines, steps = (RunDir(tmp_path / name).read_metrics() for name in ("a", "b"))
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        window = steps[line["step"] - 3 : line["step"]]
        for name in ("loss", "loss_sync"):
            mean = np.mean([step[name] for step in window])
            assert line[name] == pytest.approx(mean, rel=1e-5)
        assert line["grad_norm"] == pytest.approx(window[-1]["grad_norm"], rel=1e-6)
        assert line["lr"] == learning_rate(options, line["step"] - 1)
        assert line["epoch"] == line["step"] * 8 / 24
        assert 0 <= line["data_seconds"] <= max(line["rank_seconds"])
        assert line["images_per_second"] > 0
        assert line["mfu"] > 0
    assert result.data["loss"] == lines[-1]["loss"]
    assert result.data["processes"] == 1
    assert result.summary["loss"].endswith("over the last 3 steps")


def test_the_grid_shows_classes_that_have_images(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: rows of a class of which nothing was learned."""
    with h5py.File(store, "r+") as file:
        labels = file["labels"][...]
        file["labels"][...] = np.where(labels == 0, 1, labels)
    shown = []

    def save(path: Path, images: np.ndarray, **more) -> None:
        shown.append(more["row_labels"])
        save_grid(path, images, **more)

    monkeypatch.setattr(logbook, "save_grid", save)
    finish(train(train_settings(store, tmp_path / "run", steps=1, sample_every=1)))
    assert shown == [["green", "blue"]]
