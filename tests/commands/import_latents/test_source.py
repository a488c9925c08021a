"""Values that cannot be stored, and what tells two sources apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.commands.import_latents.source import Source
from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling
from tests.commands.import_latents.others import normal


def source_of(values: np.ndarray, **more) -> Source:
    rows = torch.from_numpy(values)
    facts = dict(
        path=Path("a.npy"), layout="an array", names=[f"a.npy:{i}" for i in range(len(rows))],
        labels=None, labels_from="none", row_shape=tuple(rows.shape[1:]), moments=False,
        reads=[lambda start, stop: rows[start:stop]], identity=["a"],
    )  # fmt: skip
    return Source(**facts | more)


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "no number"), (-np.inf, "-inf, more"), (70000.0, "70000, more than float16")],
)
def test_a_value_that_cannot_be_stored_is_named(value: float, message: str) -> None:
    """Catches: a network trained on a NaN, and a row that has to be searched for."""
    values = normal(6, 2, 3, 3)
    values[4, 1, 0, 2] = value
    source = source_of(values)
    assert torch.equal(source.read(0, 0, 4, given=None), torch.from_numpy(values[:4]))
    with pytest.raises(SitError, match=f"a.npy:4 holds .*{message}"):
        source.read(0, 2, 6, given=None)


def test_scaled_values_are_unscaled_first() -> None:
    """Catches: a value that float16 holds scaled, and not as it is stored."""
    values = normal(6, 2, 3, 3)
    given = Scaling(0.5, 1.0)
    expected = torch.from_numpy(values) / 0.5 + 1
    assert torch.equal(source_of(values).read(0, 0, 6, given=given), expected)
    values[5] = 40000
    with pytest.raises(SitError, match=r"a\.npy:5 holds 80001"):
        source_of(values).read(0, 0, 6, given=given)


def test_fingerprints_tell_sources_apart() -> None:
    """Catches: a store that goes on with other files or other labels."""
    values = normal(6, 2, 3, 3)
    labels = np.arange(6)
    prints = {
        source_of(values, **more).fingerprint
        for more in ({}, dict(identity=["b"]), dict(labels=labels), dict(labels=labels[::-1]),
                     dict(labels=labels, num_classes=9))
    }  # fmt: skip
    assert len(prints) == 5
