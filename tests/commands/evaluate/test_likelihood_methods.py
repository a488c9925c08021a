"""The likelihood's two methods: the exact one with its probes, and the chain's bound."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.evaluate.likelihood import plan
from sitcli.core.diffusion import Diffusion
from sitcli.errors import UsageError
from sitcli.latents.store import LatentStore
from sitcli.settings.evaluate import EvaluateSettings
from tests.commands.evaluate.likelihoods import SIZE, make_run, measure, value
from tests.tiny import CONFIG, make_store


@pytest.fixture
def store(tmp_path: Path) -> LatentStore:
    return make_store(tmp_path / "tiny.h5")


def test_probes_average_to_the_exact_trace(store: LatentStore) -> None:
    """Catches: one probe used for all, or --probes 0 meaning none."""
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


def test_a_discrete_model_has_its_bound(store: LatentStore) -> None:
    """Catches: a bound reported as the likelihood, in other units, or that depends on the batch."""
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
