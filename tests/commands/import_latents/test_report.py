"""What `sit import-latents` says at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.import_latents.others import NUM, imported, write_fast_dit


def test_the_facts_are_those_of_the_store(tmp_path: Path) -> None:
    """Catches: statistics or a scaling that the store does not have."""
    write_fast_dit(tmp_path / "f")
    result, _ = imported(tmp_path / "f", tmp_path / "a.h5")
    data = result.data
    assert (data["images"], data["num_classes"], data["kind"]) == (NUM, 3, "latents")
    assert (data["scaling"], data["scaled_before"], data["flips"]) == (0.18215, True, False)
    assert data["std"] == pytest.approx([1] * 4, abs=0.2)
    assert data["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert data["bytes_per_second"] > 0
    assert "fast-DiT's features, 12 images, 3 classes" in result.summary["source"]
    assert result.next == f"sit train --latents {tmp_path / 'a.h5'}"
