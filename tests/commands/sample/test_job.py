"""What `sit sample` is asked to draw, and where to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sitcli.errors import SitError, UsageError
from tests.tiny import draw, use_patch_pca


def test_guided_channels(run: Path) -> None:
    """Catches: --cfg-channels accepted and ignored, or other channels than the first three."""
    use_patch_pca(run)
    plain, everything, three = (
        draw(
            run, name, steps=1, solver="euler", latents=True, cfg_scale=scale, cfg_channels=channels
        ).rows.array("latents")
        for name, scale, channels in [("a", 1.0, None), ("b", 4.0, "all"), ("c", 4.0, "3")]
    )
    assert np.array_equal(three[:, :3], everything[:, :3])
    assert np.allclose(three[:, 3], plain[:, 3], atol=1e-5)
    assert np.abs(everything - plain).max(axis=(0, 2, 3)).min() > 0.01


def test_a_run_is_no_place_for_samples(run: Path) -> None:
    """Catches: a sample set within a run, after which the folder is taken for neither."""
    with pytest.raises(UsageError, match="is a run"):
        draw(run, "runs/tiny")
    (run.parents[1] / "file").write_text("")
    with pytest.raises(SitError, match="cannot make the folder"):
        draw(run, "file")
