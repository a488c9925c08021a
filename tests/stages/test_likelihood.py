"""`sit evaluate --nll` end to end: the figure, its units and all it says it depends on."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.evaluate.likelihood import likelihood, plan
from sitcli.commands.evaluate.stage import evaluate
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.core.likelihood import GREY_BITS
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import open_stores
from sitcli.latents.layout import create_store
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import generator
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.compatible import known_labels
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import write_tensors
from tests.stages.test_sample import CONFIG, random_network
from tests.tiny import ENVIRONMENT, finish, make_store, pictures

SIZE = 3 * 8 * 8


def make_run(
    store: LatentStore,
    *,
    process: Flow | None = None,
    config: TransformerConfig = CONFIG,
    network: Transformer | None = None,
    **meta,
) -> Path:
    """A run with one checkpoint, of random weights unless a network is given."""
    run = RunDir(store.path.parent / "runs" / "tiny")
    step = run.begin_save(7)
    network = network or random_network(config)
    for name in ("model", "ema"):
        write_tensors(step / f"{name}.safetensors", network.state_dict())
    facts = dict(model="SiT-Mi/2", ema=0.9999, label_dropout=0.1) | meta
    curve = dict(sums=[1.0], counts=[1.0])
    run.commit_save(
        7,
        checkpoint_meta(
            config, process or Flow(), latents=latent_facts(store), loss_by_t=curve, **facts
        ),
    )
    return run.path


def zero_network(config: TransformerConfig = CONFIG) -> Transformer:
    """As it is initialised, adaLN-Zero: its output is 0 everywhere."""
    return Transformer(config)


def make_moments_store(path: Path, number: int = 6) -> LatentStore:
    """A store of posteriors, of mean 0.5 and std 0.1."""
    spec = make_store(path.parent / "pixels.h5").autoencoder
    create_store(
        path,
        paths=[f"{i}.png" for i in range(number)],
        labels=np.zeros(number, np.int64),
        class_names=[],
        row_shape=(6, 8, 8),
        kind="moments",
        flips=False,
        autoencoder={**spec, "kind": "kl", "deterministic": False, "hash": "k" * 64},
        autoencoder_arrays={},
        scaling=2.0,
        image_size=8,
        crop="none",
        source="s",
        source_fingerprint="s",
        vae="x",
        batch_size=8,
        precision="fp32",
    )
    latents = np.full((number, 6, 8, 8), 0.5, np.float16)
    latents[:, 3:] = 0.1
    with Rows(path, writable=True) as file:
        file.write(range(number), latents=latents)
        file.set_attrs(complete=True)
    return LatentStore.open(path)


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return make_store(tmp_path / "tiny.h5")


def measure(run: Path, **options) -> dict:
    """The document that is written."""
    options = dict(num=6, solver="heun", steps=4) | options
    settings = EvaluateSettings(samples=[run], nll=True, device="cpu", **options)
    return json.loads(finish(likelihood(settings)).path.read_text())


def value(document: dict, name: str) -> float:
    return next(f["value"] for f in document["figures"] if f["metric"] == name)


def normal_nats(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * (x.double().square() + math.log(2 * math.pi)).flatten(1).sum(1)


def test_a_network_of_zeros_leaves_the_prior(store: LatentStore) -> None:
    """Fault: bytes not spread over their own level, a unit, an image, or its error bar wrong: with
    v = 0 the likelihood is the normal density of the data, by hand."""
    run = make_run(store, network=zero_network())
    document = measure(run, num=24)
    images = torch.from_numpy(pictures(24)[0]).permute(0, 3, 1, 2)
    shift = [torch.rand(3, 8, 8, generator=generator(0, "dequantise", i)) for i in range(24)]
    nats = normal_nats((images + torch.stack(shift) - 0.5) / 127.5 - 1)
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
    """Fault: probes drawn per batch, or by place in the evaluation instead of by item."""
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


def test_probes_average_to_the_exact_trace(store: LatentStore) -> None:
    """Fault: one probe used for all, or --probes 0 meaning none."""
    run = make_run(store)
    exact, one, many = (measure(run, num=2, probes=p) for p in (0, 1, 64))
    assert exact["backward_passes_per_evaluation"] == SIZE
    assert exact["divergence"] == "exact trace"
    assert many["evaluations_per_image"] == one["evaluations_per_image"] == 8
    error = many["std_error_of_probes"]
    distance = abs(value(many, "nats/image") - value(exact, "nats/image"))
    assert error > 0
    assert distance < 4 * error
    assert "std_error_of_probes" not in one


def test_posteriors_are_sampled_from_the_seed(tmp_path: Path) -> None:
    """Fault: the mode instead of a sample, or latents without their scaling."""
    run = make_run(make_moments_store(tmp_path / "moments.h5"), network=zero_network())
    document = measure(run, num=6)
    noise = [torch.randn(3, 8, 8, generator=generator(0, "posterior", i)) for i in range(6)]
    nats = normal_nats(2.0 * (0.5 + 0.1 * torch.stack(noise)))
    np.testing.assert_allclose(document["nats"], nats, rtol=1e-3)  # of float16
    assert [f["metric"] for f in document["figures"]] == ["nats/image", "bits/dim of the latent"]
    assert document["read_as"] == "a sample of the posterior"


def test_labels_are_the_images_own(tmp_path: Path, store: LatentStore) -> None:
    """Fault: every image under class 0, or class numbers of one store read in another."""
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


def test_a_discrete_model_has_its_bound(store: LatentStore) -> None:
    """Fault: a bound reported as the likelihood, in other units, or that depends on the batch."""
    config = dataclasses.replace(CONFIG, out_channels=6)
    run = make_run(store, process=Diffusion(), config=config, model="DiT-Mi/2")
    document = measure(run, solver=None, steps=10, batch_size=6)
    names = [figure["metric"] for figure in document["figures"]]
    assert names == ["nats/image (variational bound)", "bits/dim (variational bound)"]
    nats, bits = (figure["value"] for figure in document["figures"])
    assert bits == pytest.approx(nats / SIZE / math.log(2))
    assert document["evaluations_per_image"] == 10
    again = measure(run, solver=None, steps=10, batch_size=4)
    np.testing.assert_allclose(again["nats"], document["nats"], rtol=1e-4)
    full = plan(EvaluateSettings(samples=[run], nll=True, device="cpu"))
    assert full.data["evaluations"] == 1000
    for options in ({"probes": 2}, {"solver": "rk4"}, {"rtol": 1e-3}):
        with pytest.raises(UsageError, match="is for the ODE of a SiT model"):
            measure(run, **{"solver": None, "steps": None, **options})
    with pytest.raises(UsageError, match="the model's chain has 1000"):
        measure(run, solver=None, steps=1001)


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
    """Fault: an option accepted and ignored, or a traceback."""
    with pytest.raises(UsageError, match=message):
        measure(make_run(store), **options)


@pytest.mark.parametrize("name", ["num", "probes", "solver", "steps", "rtol", "atol"])
def test_its_options_are_refused_without_it(name: str) -> None:
    """Fault: `sit evaluate --num 1000` measuring all samples without a word."""
    settings = EvaluateSettings(**{name: "rk4" if name == "solver" else 3})
    with pytest.raises(UsageError, match=f"--{name} is an option of --nll"):
        finish(evaluate(settings))


def test_stores_that_do_not_fit(tmp_path: Path, store: LatentStore) -> None:
    """Fault: latents of other sizes or autoencoders measured, or a missing store a traceback."""
    run = make_run(store, label_dropout=0)
    with pytest.raises(SitError, match="latents 3 x 4 x 4, and the run's 3 x 8 x 8"):
        measure(run, reference=make_store(tmp_path / "small.h5", side=4).path)
    with pytest.raises(SitError, match="of another autoencoder"):
        measure(run, reference=make_moments_store(tmp_path / "moments.h5").path)
    with pytest.raises(UsageError, match="--label-dropout 0 never trained"):
        measure(run, reference=make_store(tmp_path / "plain.h5", classes=False).path)
    with pytest.raises(SitError, match="is a folder, not a latent store"):
        measure(run, reference=tmp_path)
    store.path.unlink()
    with pytest.raises(SitError, match="is not there any more"):
        measure(run)


def test_a_run_on_several_stores(tmp_path: Path, store: LatentStore) -> None:
    """Fault: the likelihood of the first store's images given for that of the training images."""
    other = make_store(tmp_path / "other.h5", number=8)
    run = make_run(open_stores([store.path, other.path]), network=zero_network())
    document = measure(run, num=32)
    assert (document["num_items"], document["training_images"]) == (32, True)
    one = measure(run, num=24, reference=store.path)
    assert one["training_images"] is False
    np.testing.assert_allclose(document["nats"][:24], one["nats"], rtol=1e-6)


def test_the_command(store: LatentStore) -> None:
    """Fault: a command line that takes the run for samples, or a plan that is not what happens."""
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
