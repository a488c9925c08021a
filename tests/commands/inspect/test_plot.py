"""`sit inspect --plot`: the curves, their table, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sitcli import names
from sitcli.commands.inspect.plot import curves_of
from sitcli.commands.inspect.stage import inspect
from sitcli.core.interpolant import path_at
from sitcli.core.wt import LossCurve, wt_of
from sitcli.errors import SitError, UsageError
from sitcli.events import Warn
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.tools import InspectSettings
from tests.commands.inspect.artefacts import inspected, make_run, make_samples, measured


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_curves_are_what_the_sampler_uses(tmp_path, interpolant):
    """Catches: another interpolant's path, a w_t left out, and a loss read at the wrong times."""
    step = measured(make_run(tmp_path / "run"), interpolant)
    times = [0.02, 0.3, 0.5, 0.99]
    curves = curves_of(open_checkpoint(step), times, eta=0.02)
    t = torch.tensor(times)
    path, loss = path_at(interpolant, t, t), LossCurve(values=(1.0, 1.0, 4.0, 0.5))
    assert list(curves.wt) == list(names.WTS)
    for name, values in curves.wt.items():
        expected = wt_of(name, eta=0.02, loss_curve=loss)(t, path)
        assert values == pytest.approx(expected.tolist(), rel=1e-4)
    assert curves.loss == pytest.approx([1.0, 1.0, 2.5, 0.5])
    assert curves.means == [1.0, None, 4.0, 0.5]  # an empty bin is not called measured
    assert curves.counts == [8, 0, 8, 8]
    # sqrt(L_1 / 2 eta), lowered by the finite w_KL of vp alone, which is beta_1 = 20 at t = 1.
    inverse = 1 / 20 if interpolant == "vp" else 0
    assert curves.kl_eta_end == pytest.approx((0.5 / (0.5 * inverse**2 + 0.04)) ** 0.5, rel=1e-3)


def test_plot_and_table(tmp_path):
    """Catches: an eta that does not reach the picture, JSON's infinities, and an older step."""
    directory = make_run(tmp_path / "run")
    step = measured(directory, "linear")
    result = inspected(directory.path, plot=True)
    picture = result.path
    assert picture == directory.path / "w_t-step-0000020.png"
    first = picture.read_bytes()
    assert picture.read_bytes().startswith(b"\x89PNG")
    curves = result.data["curves"]
    facts = [curves[name] for name in ("step", "interpolant", "prediction", "eta")]
    assert facts == [20, "linear", "velocity", 0.1]
    assert len(curves["t"]) == len(curves["loss"]) == len(curves["wt"]["kl"]) > 100
    json.dumps(result.data, allow_nan=False)
    table = result.tables[-1]
    assert table.header == ["t", "L_t", *names.WTS]
    assert [float(line[0]) for line in table.rows] == [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
    assert table.rows[3][:3] == ["0.5", "2.5", "2"]

    again, other = (inspected(step, plot=True, eta=eta).path.read_bytes() for eta in (0.1, 0.01))
    assert again == first != other


def test_plot_without_a_measured_loss(tmp_path):
    """Catches: a failure, an invented curve or silence for an imported checkpoint, which has no
    curve."""
    directory = make_run(tmp_path / "run")
    stage = inspect(InspectSettings(path=directory.path, plot=True, device="cpu"))
    warning = next(stage)
    assert isinstance(warning, Warn)
    assert "no measured loss" in warning.text
    with pytest.raises(StopIteration) as end:
        next(stage)
    result = end.value.value
    assert result.tables[-1].header == ["t", *(name for name in names.WTS if name != "kl-eta")]
    curves = result.data["curves"]
    assert (curves["loss"], curves["kl_eta_end"], curves["eta"]) == ([], None, None)
    assert "kl-eta" not in curves["wt"]
    assert result.path.read_bytes().startswith(b"\x89PNG")


def test_plot_refusals(tmp_path):
    """Catches: an option that does nothing, or a traceback."""
    directory = make_run(tmp_path / "run")
    make_samples(tmp_path / "set")
    cases = [
        (tmp_path / "a.h5", dict(plot=True), "is no run or step"),
        (tmp_path / "set", dict(plot=True), "is no run or step"),
        (directory.path, dict(eta=0.1), "--eta has no effect without --plot"),
        (directory.path, dict(plot=True, eta=0.1), "no measured loss"),
    ]
    for eta in (0.0, float("inf"), float("nan")):
        cases.append((directory.path, dict(plot=True, eta=eta), "must be positive"))
    for path, options, message in cases:
        with pytest.raises(UsageError, match=message) as failure:
            inspected(path, **options)
        assert "\n" not in failure.value.message
    assert not list(directory.path.glob("*.png"))
    meta = measured(directory, "gvp") / "meta.json"
    meta.write_text(meta.read_text().replace('"sums"', '"sum"'))
    with pytest.raises(SitError, match="is damaged: no 'sums'"):
        inspected(meta.parent, plot=True)
    for step in directory.steps():
        shutil.rmtree(directory.step_path(step))
    with pytest.raises(SitError, match="no complete checkpoint"):
        inspected(directory.path, plot=True)
