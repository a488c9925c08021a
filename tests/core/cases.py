"""Products of three choices, of which the default run takes the pairs.

What a network predicts is converted by a formula of the path alone, and a solver or w_t is checked
against a formula of the path and itself: two products of two. Of the product of all three the
default run therefore takes every path with every prediction under one solver, and every path with
every solver under one prediction; the rest is slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

SLOW = pytest.mark.slow


def pairs_first(
    paths: Sequence, predictions: Sequence, solvers: Sequence, *, prediction: str, solver: str
) -> list:
    """(path, prediction, solver) of all; without the given prediction and the solver it is slow."""
    return [
        pytest.param(*case, marks=() if prediction == case[1] or solver == case[2] else SLOW)
        for case in itertools.product(paths, predictions, solvers)
    ]
