"""Plots of curves."""

from __future__ import annotations

import pytest

from tests.commands.inspect.artefacts import inspected, make_run, measured


@pytest.mark.parametrize("means", [(0.0, 0.0), (0.0, 3.0), (1e-9, 1e9), (2.0,)])
@pytest.mark.parametrize("eta", [1e-9, 1e9])
def test_plot_of_odd_losses(tmp_path, means, eta):
    """Catches: a zero on a logarithmic axis, or limits the wrong way round."""
    step = measured(make_run(tmp_path / "run"), "gvp", means=means)
    assert inspected(step, plot=True, eta=eta).path.exists()
