"""The text of an option becomes a value, or an error that names the option."""

from __future__ import annotations

import pytest

from sitcli.commands.parsing import (
    default_model,
    parse_checkpoint_blocks,
    parse_interval,
    parse_model_name,
    parse_shift,
    transformer_config,
)
from sitcli.core.times import natural_shift
from sitcli.errors import UsageError
from sitcli.model.config import PRESETS


def test_checkpoint_blocks_are_parsed() -> None:
    """Catches: every-0, which divides by zero, or a misspelling that means none."""
    texts = ["none", "all", "every-1", "every-12"]
    assert [*map(parse_checkpoint_blocks, texts)] == [0, 1, 1, 12]
    for text in ("", "every", "every-0", "every-", "2", "All", "every-1.5", "every--2"):
        with pytest.raises(ValueError, match="is not one of none, all, every-2"):
            parse_checkpoint_blocks(text)


def test_an_interval_is_two_times_in_order() -> None:
    """Catches: ends exchanged, a single time, or times beyond the range."""
    assert parse_interval("0,0.7") == (0.0, 0.7)
    assert parse_interval(" 0.25 , 1 ") == (0.25, 1.0)
    for text in ("", "0.5", "0.7,0", "0.5,0.5", "-0.1,1", "0,1.1", "0,nan", "a,b", "0,0.5,1"):
        with pytest.raises(UsageError, match="--cfg-interval"):
            parse_interval(text)


def test_a_shift_is_a_number_or_auto() -> None:
    """Catches: a shift of 0 or infinity, which sends all times to one end."""
    shape = (4, 64, 64)
    assert parse_shift(None, shape) == 1
    assert parse_shift("2.5", shape) == 2.5
    assert parse_shift("auto", shape) == natural_shift(shape)
    for text in ("", "0", "-2", "0.001", "1000", "nan", "inf", "much"):
        with pytest.raises(UsageError, match="--t-shift"):
            parse_shift(text, shape)


@pytest.mark.parametrize("side", [4, 8, 32, 7, 60])
def test_the_model_by_default_divides_the_latents(side: int) -> None:
    """Catches: a default that the first training refuses, or one that a CPU never finishes."""
    for small in (False, True):
        _, size, patch = parse_model_name(default_model(side, small=small))
        assert side % patch == 0
        assert size == ("Ti" if small else "XL")
        if small:
            assert side // patch <= 8
            assert all(side % finer or side // finer > 8 for finer in range(1, patch))


@pytest.mark.parametrize("size", PRESETS)
def test_overrides_replace_the_presets_parts(size: str) -> None:
    """Catches: depth, width and heads exchanged, or an override that is ignored."""
    shape = dict(input_size=32, channels=4, out_channels=8, num_classes=10)
    config = transformer_config(f"SiT-{size}/4", **shape)
    assert (config.depth, config.width, config.heads) == PRESETS[size]
    assert (config.patch, config.out_channels, config.num_classes) == (4, 8, 10)
    own = dict(depth=3, width=96, heads=2, patch=8, rope=True)
    changed = transformer_config(f"DiT-{size}/4", **shape, **own)
    assert {name: getattr(changed, name) for name in own} == own


def test_what_does_not_fit_names_the_options() -> None:
    """Catches: an assertion of the network in place of a line for the user."""
    shape = dict(input_size=32, channels=4, out_channels=8, num_classes=10)
    with pytest.raises(UsageError, match="heads do not divide") as caught:
        transformer_config("SiT-S/2", heads=5, **shape)
    assert "--heads" in caught.value.hint
    for name in ("SiT-Q/2", "XL/2", "SiT-XL", "SiT-XL/0", "UNet-S/2", ""):
        with pytest.raises(UsageError) as caught:
            transformer_config(name, **shape)
        assert "SIZE" in caught.value.hint
