"""`sit flops`: training and sampling, the paper's figures, and the check against torch."""

import pytest

from sitcli.commands.flops import count
from sitcli.errors import SitError
from sitcli.events import Progress
from sitcli.model.blocks import BLOCKS
from sitcli.model.flops import Cost, measure_cost, total_cost
from sitcli.settings.tools import FlopsSettings
from tests.model.networks import preset


def test_training_and_guided_sampling():
    """Catches: a lost factor: 3 for the backward pass, 2 for guidance, 2 for FLOPs."""
    common = dict(model="SiT-S/8", train_steps=7, batch_size=5, sampling_steps=11)
    *events, model = _run(FlopsSettings(**common, guidance=True))
    forward = total_cost(preset("S", 8))
    assert all(isinstance(event, Progress) for event in events)
    assert model["gmacs"] == forward.macs / 1e9
    assert model["gflops"] == pytest.approx(2 * forward.macs / 1e9)
    assert model["gflops_of_training"] == pytest.approx(2 * 3 * 35 * forward.macs / 1e9)
    assert model["gflops_per_sample"] == pytest.approx(2 * 2 * 11 * forward.macs / 1e9)
    assert model["check_difference"] == 0
    *_, unguided = _run(FlopsSettings(**common, check=False))
    assert unguided["network_evaluations_per_sample"] == 11
    assert unguided["check_difference"] is None


def _run(settings):
    """The events of a count, then the first model's data."""
    *events, result = _finish(count(settings))
    yield from (*events, result.data["models"][0])


def _finish(stage):
    """The events of a stage, then its result."""
    while True:
        try:
            yield next(stage)
        except StopIteration as end:
            yield end.value
            return


def test_the_four_designs_stand_beside_the_paper():
    """Catches: the comparison missing where all models are listed, taken at another block than
    each row names, or set beside the wrong figure."""
    *events, result = _finish(count(FlopsSettings(block="adaln", check=False)))
    assert [model["block"] for model in result.data["models"]] == ["adaln"] * 12
    blocks = {model["block"]: model for model in result.data["blocks"]}
    assert list(blocks) == list(BLOCKS)
    assert all(abs(model["params_difference"]) < 1e-3 for model in blocks.values())
    assert (
        blocks["in-context"]["gmacs"] == total_cost(preset("XL", 2, block="in-context")).macs / 1e9
    )
    assert [row[0] for row in result.tables[-1].rows] == list(BLOCKS)
    assert events[-1].done + 1 == events[-1].total == 16
    paper = [row[1] for row in result.tables[1].rows]
    assert paper == ["-"] * 11 + ["600"]


def test_one_design_stands_beside_the_paper():
    """Catches: `--block` left out of the count, its name or the paper's figure."""
    *_, model = _run(FlopsSettings(model="DiT-XL/2", block="in-context"))
    assert model["model"] == "DiT-XL/2 (block in-context)"
    assert (model["paper_params"], model["paper_gmacs"]) == (449e6, 119.37)
    assert model["check_difference"] == 0


def test_check_refuses_a_wrong_formula(monkeypatch):
    """Catches: a check that compares nothing: a network one parameter off must stop it."""
    measured = measure_cost(preset("S", 8))
    wrong = Cost(measured.params + 1, measured.macs)
    monkeypatch.setattr("sitcli.commands.flops.measure_cost", lambda config: wrong)
    with pytest.raises(SitError, match="torch counts"):
        list(_run(FlopsSettings(model="SiT-S/8")))
