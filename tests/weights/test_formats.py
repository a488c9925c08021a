"""What each layout of exported weights can hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.latents.scaling import Scaling
from tests.tiny import make_run, normalise
from tests.weights.official_files import bring, take

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


@pytest.mark.parametrize(
    ("process", "format"), [(Flow(), "official-sit"), (Diffusion(), "official-dit")]
)
def test_channels_of_their_own_are_refused_where_one_number_is_expected(
    tmp_path: Path, process: Flow, format: str
) -> None:
    """Catches: weights whose latents the official sampler divides by its one number."""
    run = make_run(tmp_path, process=process)
    normalise(run, scaling=[1.0, 2.0, 3.0], shift=[0.5, 0.0, -0.5])
    with pytest.raises(UsageError, match="normalised per channel") as caught:
        take(run, tmp_path / "x.pt", format)
    assert "--format safetensors" in caught.value.hint
    back = bring(take(run, tmp_path / "x.safetensors", "safetensors"), tmp_path / "back")
    assert back.scaling == Scaling([1.0, 2.0, 3.0], [0.5, 0.0, -0.5])
    assert back.meta["format_version"] == 4
