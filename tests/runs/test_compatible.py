"""Whether a checkpoint and a store are of one space, and the labels they share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError, UsageError
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.compatible import (
    check_null_class,
    check_same_latents,
    difference_from_trained,
    known_labels,
)
from tests.tiny import make_run, make_store, write_meta


def changed(run: Path, **facts) -> Checkpoint:
    """The run's checkpoint with other facts of its latents."""
    file = open_checkpoint(run).path / "meta.json"
    meta = json.loads(file.read_text())
    meta["latents"] |= facts
    write_meta(file, meta)
    return open_checkpoint(run)


def test_the_runs_own_store_fits(run: Path) -> None:
    """Catches: a run that refuses the latents it was trained on."""
    check_same_latents(LatentStore.open(run.parents[1] / "tiny.h5"), open_checkpoint(run))


def test_latents_of_another_kind_are_refused(run: Path, tmp_path: Path) -> None:
    """Catches: a likelihood or an inversion of latents that the network has never seen."""
    store = LatentStore.open(tmp_path / "tiny.h5")
    checkpoint = open_checkpoint(run)
    large = make_store(tmp_path / "large.h5", side=16)
    with pytest.raises(SitError, match=r"3 x 16 x 16, but the run needs 3 x 8 x 8") as caught:
        check_same_latents(large, checkpoint)
    assert f"{tmp_path / 'tiny.h5'} was encoded" in caught.value.hint
    other = changed(run, autoencoder={**store.autoencoder, "hash": "0" * 64}, store=None)
    with pytest.raises(SitError, match="of another autoencoder, pixels") as caught:
        check_same_latents(store, other)
    assert "encode the images with --vae pixels" in caught.value.hint
    unknown = changed(run, autoencoder={**store.autoencoder, "hash": None})
    check_same_latents(store, unknown)  # imported weights do not say
    with pytest.raises(SitError, match=r"scaled by 1\.0, but the run needs 0\.5"):
        check_same_latents(store, changed(run, scaling=0.5))


@pytest.mark.parametrize(
    ("names", "numbers", "own"),
    [
        (["blue", "red"], [2, 0, 2, 0], True),  # the run's are red, green, blue
        (["green"], [1, 1, 1, 1], True),
        (["red", "pink"], [3, 3, 3, 3], False),
        (["0", "1", "2"], [0, 1, 2, 0], True),  # as a dataset.json calls them
        (["0", "1"], [3, 3, 3, 3], False),
        ([], [3, 3, 3, 3], False),
    ],
)
def test_classes_are_matched_by_name(run: Path, names, numbers, own: bool) -> None:
    """Catches: class 0 of the images read as the run's class 0 though it has another name."""
    labels = np.arange(4) % max(1, len(names))
    found, where = known_labels(labels, names, open_checkpoint(run))
    assert found.tolist() == numbers
    assert ("null class" in where) != own


def test_a_run_that_knows_no_names_has_its_classes_in_order(run: Path) -> None:
    """Catches: numbers given to as many classes as the run has refused, or any number accepted."""
    checkpoint = changed(run, class_names=[])
    labels = np.array([0, 2, 1])
    assert known_labels(labels, ["a", "b", "c"], checkpoint)[0].tolist() == [0, 2, 1]
    assert known_labels(labels % 2, ["a", "b"], checkpoint)[0].tolist() == [3, 3, 3]


def test_a_model_without_classes_takes_zeros(tmp_path: Path) -> None:
    """Catches: labels looked up in a table that an unconditional model does not have."""
    checkpoint = open_checkpoint(make_run(tmp_path, classes=False))
    numbers, where = known_labels(np.array([0, 1]), ["a", "b"], checkpoint)
    assert numbers.tolist() == [0, 0]
    assert "the model has none" in where
    check_null_class(checkpoint, "none", "")


def test_a_null_class_that_was_never_trained_is_refused(run: Path) -> None:
    """Catches: figures from an embedding that still has its first random values."""
    checkpoint = open_checkpoint(run)
    check_null_class(checkpoint, "the null class", "")
    checkpoint.meta["label_dropout"] = 0
    with pytest.raises(UsageError, match="--label-dropout 0 did not train"):
        check_null_class(checkpoint, "the null class", "")


def test_what_a_run_was_trained_on(run: Path, tmp_path: Path) -> None:
    """Catches: a changed store taken for the run's, or the run's own refused."""
    store = LatentStore.open(tmp_path / "tiny.h5")
    facts = dict(fingerprint=store.fingerprint, checksum=store.written_checksum)
    facts |= dict(scaling=1.0, autoencoder=store.autoencoder)
    assert difference_from_trained(store, facts) == ""
    first = {name: value for name, value in facts.items() if name != "checksum"}
    assert difference_from_trained(store, first) == ""  # of 0.7
    assert "scaled by 1.0, not 1.0, shift 0.5" in difference_from_trained(
        store, facts | {"shift": 0.5}
    )
    assert "checksum" in difference_from_trained(store, facts | {"checksum": "0" * 64})
    assert "other images" in difference_from_trained(store, facts | {"fingerprint": "0" * 64})
