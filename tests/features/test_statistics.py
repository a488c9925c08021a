"""Statistics files, as ADM names them."""

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.features.statistics import load_statistics, save_statistics
from sitcli.metrics.moments import gaussian_of
from tests.tiny import moments


def test_statistics_files_come_back_and_damage_is_one_line(tmp_path):
    """Catches: statistics that change on the way, and numpy's or zipfile's own errors."""
    path = tmp_path / "s.npz"
    gaussian = gaussian_of(moments(np.random.default_rng(6).normal(size=(20, 5))))
    save_statistics(path, gaussian, features="pixels")
    loaded = load_statistics(path)
    np.testing.assert_array_equal(loaded.gaussians["pool"].covariance, gaussian.covariance)
    assert loaded.gaussians["pool"].num == 20
    assert str(loaded.more["features"]) == "pixels"
    assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:100] + b"\xff" * 40 + whole[140:]):
        path.write_bytes(damaged)
        with pytest.raises(SitError) as caught:
            load_statistics(path)
        assert "\n" not in caught.value.message
