"""How latents are normalised, undone and kept."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.latents.scaling import Scaling, needs_shift, wrong_values

SPEC = {"shift": 0.25}


@pytest.mark.parametrize(
    "scaling", [Scaling(0.5, 0.25), Scaling([0.5, 2.0, 4.0], 0.25), Scaling(2, [1.0, 0.0, -2.0])]
)
def test_undo_inverts_normalise(scaling):
    """Catches: a shift after the factor, a number given to another channel, and two forms that
    differ."""
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    scaled = scaling.normalise(latents)
    for channel in range(3):
        factor, shift = (
            v[channel] if isinstance(v, tuple) else v for v in (scaling.factor, scaling.shift)
        )
        assert torch.equal(scaled[:, channel], (latents[:, channel] - shift) * factor)
    # All factors are powers of two, so that only the shift rounds: once there and once back.
    torch.testing.assert_close(scaling.undo(scaled), latents, rtol=0, atol=4 * 2.0**-23)
    assert torch.equal(scaling.normalise_(latents.clone()), scaled)


def test_facts_lead_back_to_the_scaling():
    """Catches: a shift that is lost, one of 0 taken for none, and old facts read differently."""
    for scaling in (Scaling(0.5, 0.25), Scaling(0.5), Scaling([1.0, 2.0], [3.0, 4.0])):
        facts = scaling.facts(SPEC) | {"autoencoder": SPEC}
        assert Scaling.of(facts) == scaling
        assert needs_shift(facts) == (scaling.shift != 0.25)
    assert Scaling(0.5, 0.25).facts(SPEC) == {"scaling": 0.5}
    assert Scaling.of({"scaling": 0.5, "autoencoder": SPEC}) == Scaling(0.5, 0.25)
    assert needs_shift({"autoencoder": {"shift": [0.0, 1.0]}})
    assert not needs_shift({})


def test_standardised_channels_have_mean_0_and_std_1():
    """Catches: a constant channel that is divided by its rounding."""
    latents = torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 3 + 2
    latents[:, 1] = 7
    std, mean = torch.std_mean(latents.double(), (0, 2, 3), correction=0)
    scaled = Scaling.standardising(mean, std).normalise(latents.double())
    std, mean = torch.std_mean(scaled, (0, 2, 3), correction=0)
    # Shift and factor are rounded to float32, and the mean is at most 7 times the std.
    torch.testing.assert_close(mean, torch.zeros(3).double(), rtol=0, atol=8 * 2.0**-24)
    torch.testing.assert_close(std, torch.tensor([1.0, 0, 1]).double(), rtol=2.0**-23, atol=0)


def test_wrong_values_are_found():
    """Catches: a damaged file whose scaling broadcasts, or makes every latent infinite."""
    for value in (0.0, [1.0, 2.0], math.nan, [1.0, 2.0, math.inf], "1", [True, 1.0, 1.0]):
        assert wrong_values(value, 3, zero=False)
    for value in (0.5, [0.5], [1, 2.0, 3.0], (1.0, 2.0, 3.0)):
        assert not wrong_values(value, 3, zero=False)
    assert not wrong_values([0.0, 0.0, 1.0], 3, zero=True)


def test_text_names_the_shift_and_shortens_long_lists():
    """Catches: a hundred numbers in a one-line error."""
    assert str(Scaling(0.18215)) == "0.18215"
    assert str(Scaling(0.3611, 0.1159)) == "0.3611, shift 0.1159"
    many = Scaling([float(i) for i in range(1, 129)], [0.0] * 128)
    assert str(many) == "per channel 1 to 128, shift per channel 0 to 0"
    assert not Scaling([1.0, 1.0], 1.0).is_identity
    assert Scaling([1.0, 1.0], [0.0, 0.0]).is_identity
