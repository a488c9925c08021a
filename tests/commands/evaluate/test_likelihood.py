"""`sit evaluate --nll` end to end: the figure, its units and all it says it depends on."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.evaluate.stage import evaluate
from sitcli.core.likelihood import GREY_BITS
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import Philox, Stream
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.compatible import known_labels
from sitcli.settings.evaluate import EvaluateSettings
from tests.commands.evaluate.likelihoods import (
    SIZE,
    make_moments_store,
    make_run,
    measure,
    normal_nats,
    value,
    zero_network,
)
from tests.tiny import ENVIRONMENT, finish, make_store, pictures


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return make_store(tmp_path / "tiny.h5")


def test_a_network_of_zeros_leaves_the_prior(store: LatentStore) -> None:
    """Catches: bytes not spread over their own level, a unit, an image, or its error bar wrong:
    with v = 0 the likelihood is the normal density of the data, by hand."""
    run = make_run(store, network=zero_network())
    document = measure(run, num=24)
    images = torch.from_numpy(pictures(24)[0]).permute(0, 3, 1, 2)
    shift = Philox(0).draws(Stream.DEQUANTISATION, np.arange(24)).uniform(3, 8, 8)
    nats = normal_nats((images + shift - 0.5) / 127.5 - 1)
    np.testing.assert_allclose(document["nats"], nats, rtol=1e-5)
    assert value(document, "nats/image") == pytest.approx(float(nats.mean()))
    bits = float(nats.mean()) / SIZE / math.log(2)
    assert value(document, "bits/dim of the latent") == pytest.approx(bits)
    assert value(document, "bits/dim of the pixels") == pytest.approx(bits + GREY_BITS)
    error = float(nats.std()) / 24**0.5
    assert document["figures"][0]["std_error"] == pytest.approx(error)
    assert document["training_images"] is True
    assert document["read_as"] == "bytes, each spread over its grey level"


def test_no_image_depends_on_the_batch_or_on_how_many_there_are(store: LatentStore) -> None:
    """Catches: probes drawn per batch, or by place in the evaluation instead of by item."""
    run = make_run(store)
    whole = measure(run, num=24, batch_size=24)
    for size in (1, 5):
        parts = measure(run, num=24, batch_size=size)
        np.testing.assert_allclose(parts["nats"], whole["nats"], rtol=1e-4)
    half = measure(run, num=12)
    assert half["items"] == list(range(0, 24, 2))
    np.testing.assert_allclose(half["nats"], whole["nats"][::2], rtol=1e-4)
    other = measure(run, num=24, seed=1)
    assert np.abs(np.subtract(other["nats"], whole["nats"])).min() > 0


def test_posteriors_are_sampled_from_the_seed(tmp_path: Path) -> None:
    """Catches: the mode instead of a sample, or latents without their scaling."""
    run = make_run(make_moments_store(tmp_path / "moments.h5"), network=zero_network())
    document = measure(run, num=6)
    noise = Philox(0).draws(Stream.LIKELIHOOD_POSTERIOR, np.arange(6)).normal(3, 8, 8)
    nats = normal_nats(2.0 * (0.5 + 0.1 * noise))
    np.testing.assert_allclose(document["nats"], nats, rtol=1e-3)  # of float16
    assert [f["metric"] for f in document["figures"]] == ["nats/image", "bits/dim of the latent"]
    assert document["read_as"] == "a sample of the posterior"


def test_labels_are_the_images_own(tmp_path: Path, store: LatentStore) -> None:
    """Catches: every image under class 0, or class numbers of one store read in another."""
    run = make_run(store)
    conditional = measure(run)
    assert conditional["labels"] == "their own"
    path = store.path.with_name("unlabelled.h5")
    unlabelled = measure(run, reference=make_store(path, classes=False).path)
    assert unlabelled["labels"] == "the null class, as the images have none"
    assert unlabelled["training_images"] is False
    assert np.abs(np.subtract(unlabelled["nats"], conditional["nats"])).min() > 1e-3
    checkpoint = open_checkpoint(run)
    labels, policy = known_labels(np.array([0, 1, 1]), ["blue", "red"], checkpoint)
    assert (labels.tolist(), policy) == ([2, 0, 0], "their own")
    labels, policy = known_labels(np.array([0, 1]), ["blue", "teapot"], checkpoint)
    assert (labels.tolist(), policy) == ([3, 3], "the null class, as the images' are not the run's")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fid": True}, "--fid measures samples"),
        ({"reference_num": 4}, "--reference-num is for samples"),
        ({"features": "pixels"}, "--features is for samples"),
        ({"features_weights": Path("x")}, "--features-weights is for samples"),
        ({"solver": "dopri5"}, "chooses its own steps"),
        ({"rtol": 1e-4}, "--rtol is for --solver dopri5"),
        ({"num": 25}, "has 24 images"),
    ],
)
def test_bad_options(store: LatentStore, options: dict, message: str) -> None:
    """Catches: an option accepted and ignored, or a traceback."""
    with pytest.raises(UsageError, match=message):
        measure(make_run(store), **options)


@pytest.mark.parametrize("name", ["num", "probes", "solver", "steps", "rtol", "atol"])
def test_its_options_are_refused_without_it(name: str) -> None:
    """Catches: `sit evaluate --num 1000` measuring all samples without a word."""
    settings = EvaluateSettings(**{name: "rk4" if name == "solver" else 3})
    with pytest.raises(UsageError, match=f"--{name} is an option of --nll"):
        finish(evaluate(settings))


def test_stores_that_do_not_fit(tmp_path: Path, store: LatentStore) -> None:
    """Catches: latents of other sizes or autoencoders measured, or a missing store a traceback."""
    run = make_run(store, label_dropout=0)
    with pytest.raises(SitError, match="latents 3 x 4 x 4, but the run needs 3 x 8 x 8"):
        measure(run, reference=make_store(tmp_path / "small.h5", side=4).path)
    with pytest.raises(SitError, match="of another autoencoder"):
        measure(run, reference=make_moments_store(tmp_path / "moments.h5").path)
    with pytest.raises(UsageError, match="--label-dropout 0 did not train"):
        measure(run, reference=make_store(tmp_path / "plain.h5", classes=False).path)
    with pytest.raises(SitError, match="is a folder, not a latent store"):
        measure(run, reference=tmp_path)
    store.path.unlink()
    with pytest.raises(SitError, match="is not there any more"):
        measure(run)


def test_a_run_on_several_stores(tmp_path: Path, store: LatentStore) -> None:
    """Catches: the likelihood of the first store's images given for that of the training images."""
    other = make_store(tmp_path / "other.h5", number=8)
    run = make_run(open_stores([store.path, other.path]), network=zero_network())
    document = measure(run, num=32)
    assert (document["num_items"], document["training_images"]) == (32, True)
    one = measure(run, num=24, reference=store.path)
    assert one["training_images"] is False
    np.testing.assert_allclose(document["nats"][:24], one["nats"], rtol=1e-6)


def test_the_command(store: LatentStore) -> None:
    """Catches: a command line that takes the run for samples, or a plan that is not what
    happens."""
    run = make_run(store)
    words = ["evaluate", "--nll", "--num=4", "--steps=2", "--json", "--device=cpu"]

    def call(*more: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "sitcli", *words, *more],
            cwd=store.path.parent, env=ENVIRONMENT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    planned = call("--dry-run")
    assert not Path(planned["out"]).exists()
    result = call()
    assert result["evaluations_per_image"] == planned["evaluations"] == 8
    assert result["path"] == planned["out"]
    assert Path(result["path"]).match("runs/tiny/nll-step-0000007-tiny-??????.json")
    # Another measurement does not take its place.
    assert call("--seed=1")["path"] != call()["path"] == result["path"]
    assert len(list(run.glob("nll-*.json"))) == 2
