"""Position embeddings of imported weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.import_weights import import_weights
from sitcli.errors import UsageError
from sitcli.model.embed import position_embedding
from sitcli.settings.weights import ImportSettings
from sitcli.weights.positions import POSITIONS, equal_to_rounding, grid_of, grid_or_none
from tests.tiny import finish
from tests.weights.official_files import CONFIG, bring, draw_latents, equal, official, save


def test_positions_are_kept_recomputed_or_refused(tmp_path: Path) -> None:
    """Catches: another size than asked, rows and columns exchanged, learned positions
    recomputed."""
    state = official()
    file = save(tmp_path / "SiT-Mi-2.pt", state)
    run = bring(file, tmp_path / "a", image_size="32x96")
    assert run.config.latent_shape == (4, 4, 12)
    assert run.image_size == (32, 96)
    torch.testing.assert_close(run.weights("ema")["pos_embed"], position_embedding(128, 2, 6))
    assert draw_latents(tmp_path / "a", tmp_path / "x.h5", num=2, steps=2).shape == (2, 4, 4, 12)
    # Bits of another sine are kept as they are.
    state["pos_embed"] = state["pos_embed"] + 3e-8
    save(file, state)
    assert equal(bring(file, tmp_path / "b").weights("ema"), state)
    assert equal(bring(file, tmp_path / "c", image_size="64").weights("ema"), state)
    learned = {**state, "pos_embed": state["pos_embed"] + 1}
    save(file, learned)
    result = finish(import_weights(ImportSettings(weights=file, out_dir=tmp_path / "d")))
    assert "not the standard one" in result.data["warnings"][0]
    with pytest.raises(UsageError, match="learned"):
        bring(file, tmp_path / "e", image_size="128")
    del state["pos_embed"]
    save(file, state)
    with pytest.raises(UsageError, match="no pos_embed"):
        bring(file, tmp_path / "e")
    assert bring(file, tmp_path / "f", image_size="64").config == CONFIG
    with pytest.raises(UsageError, match="multiples"):
        bring(file, tmp_path / "g", image_size="72")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("text", "grid"), [("512", (32, 32)), ("256x512", (16, 32)), ("16x32", (1, 2))]
)
def test_a_size_in_pixels_is_rows_and_columns(text: str, grid: tuple[int, int]) -> None:
    """Catches: width first, or pixels taken for tokens."""
    assert grid_of(text, 16) == grid


@pytest.mark.parametrize(
    "text", ["", "0", "500", "512x", "x512", "512x500", "-512", "1e3", "512.0"]
)
def test_sizes_that_are_none_are_refused(text: str) -> None:
    """Catches: a row of pixels that is cut off without a word."""
    with pytest.raises(UsageError, match=f"--image-size {text}"):
        grid_of(text, 16)


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (8, 2), (1, 16)])
def test_the_grid_is_read_from_the_values(grid: tuple[int, int]) -> None:
    """Catches: the first grid of so many tokens taken, with rows and columns exchanged."""
    assert grid_or_none(position_embedding(32, *grid)) == grid


def test_learned_positions_are_square_or_nothing() -> None:
    """Catches: a grid made up for values that no grid gives."""
    torch.manual_seed(0)
    assert grid_or_none(torch.randn(1, 16, 32)) == (4, 4)
    assert grid_or_none(torch.randn(1, 15, 32)) is None


def test_positions_are_near_up_to_rounding() -> None:
    """Catches: bits of another sine taken for learned positions, or learned ones for rounding."""
    given = position_embedding(32, 4, 4)
    assert equal_to_rounding(given, given + POSITIONS / 2)
    assert not equal_to_rounding(given, given + 2 * POSITIONS)
    assert not equal_to_rounding(given, position_embedding(32, 2, 8))
    assert not equal_to_rounding(given, given[:, :8])
