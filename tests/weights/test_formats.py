"""What each layout of exported weights can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from tests.tiny import make_run
from tests.weights.official_files import take

REFUSED = [
    (Flow(), "official-dit", "trained with SiT's flow"),
    (Flow(prediction="data"), "official-sit", "lacks data prediction"),
    (Diffusion(), "official-sit", "trained with DiT's diffusion"),
    (Diffusion(betas="cosine"), "official-dit", "needs betas linear"),
    (Diffusion(variance="fixed-small"), "official-dit", "needs variance learned-range"),
    (Diffusion(prediction="velocity"), "diffusers", "chain lacks velocity prediction"),
]


@pytest.mark.parametrize(("process", "format", "message"), REFUSED)
def test_what_a_layout_cannot_hold_is_refused(
    tmp_path: Path, process: Flow, format: str, message: str
) -> None:
    """Catches: weights that load elsewhere and draw noise."""
    run = make_run(tmp_path, process=process)
    with pytest.raises(UsageError, match=message):
        take(run, tmp_path / "x", format)
    assert not (tmp_path / "x").exists()
