"""The intervals of time on which a process trains and samples."""

from __future__ import annotations

from sitcli.core.intervals import train_interval


def test_train_intervals() -> None:
    """Catches: division by zero at an end of the training interval."""
    assert train_interval("linear", "velocity", "none") == (0.0, 1.0)
    assert train_interval("gvp", "score", "velocity") == (1e-3, 1 - 1e-3)
    assert train_interval("vp", "velocity", "none") == (1e-5, 1.0)
