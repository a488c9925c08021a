"""Texts made of numbers."""

from __future__ import annotations

import pytest

from sitcli.text import spread


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([0.2, 0.25, 0.1], "rank 1 slowest: 0.25 s a step, 150% over rank 2"),
        ([0.1, 5.0], "rank 1 slowest: 5 s a step, 50 times rank 0"),
        ([0.5, 0.5004], "all ranks 0.5 s a step"),
        ([0.0, 0.0], "all ranks 0 s a step"),
    ],
)
def test_spread(seconds: list[float], text: str) -> None:
    """Catches: the fastest rank blamed, or a division by zero."""
    assert spread(seconds) == text
