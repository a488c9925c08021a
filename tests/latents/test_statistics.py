"""Files of latent statistics that other projects write."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling
from sitcli.latents.statistics import read_statistics, statistics_beside

EXPECTED = Scaling([0.5, 0.25], [1.0, -1.0])


def test_both_forms_say_the_same(tmp_path: Path) -> None:
    """Catches: a factor taken for a standard deviation, in either direction."""
    mean, std = torch.tensor([1.0, -1.0]), torch.tensor([2.0, 4.0])
    torch.save({"mean": mean.view(1, 2, 1, 1), "std": std.view(1, 2, 1, 1)}, tmp_path / "a.pt")
    torch.save({"latents_bias": mean, "latents_scale": 1 / std}, tmp_path / "b.pt")
    assert read_statistics(tmp_path / "a.pt", 2) == read_statistics(tmp_path / "b.pt", 2)
    assert read_statistics(tmp_path / "a.pt", 2) == EXPECTED


def test_the_file_beside_the_weights(tmp_path: Path) -> None:
    """Catches: statistics of another file in the same folder."""
    assert statistics_beside(tmp_path / "x.pt", 2) is None
    mean, std = torch.zeros(2), torch.ones(2)
    torch.save({"mean": mean, "std": std}, tmp_path / "latents_stats.pt")
    torch.save({"latents_bias": mean + 1, "latents_scale": std}, tmp_path / "y-latents-stats.pt")
    assert statistics_beside(tmp_path / "x.pt", 2) == Scaling([1.0, 1.0], [0.0, 0.0])
    assert statistics_beside(tmp_path / "y.pt", 2) == Scaling([1.0, 1.0], [1.0, 1.0])


@pytest.mark.parametrize(
    "content",
    [
        {"mean": torch.zeros(3), "std": torch.ones(3)},
        {"mean": torch.zeros(2), "std": torch.zeros(2)},
        {"mean": torch.zeros(2)},
        torch.zeros(2),
        {"mean": 1.0, "std": 2.0},
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, content) -> None:
    """Catches: a traceback, or latents divided by zero."""
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(SitError, match="does not hold a mean and a positive std for each of 2"):
        read_statistics(tmp_path / "a.pt", 2)
