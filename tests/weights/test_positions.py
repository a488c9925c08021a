"""Position embeddings of imported weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sitcli.commands.import_weights import import_weights
from sitcli.errors import UsageError
from sitcli.model.embed import position_embedding
from sitcli.settings.weights import ImportSettings
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
