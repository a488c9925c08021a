"""Statistics files, as ADM names them."""

import numpy as np
import pytest

from sitcli.errors import SitError
from sitcli.features.base import Features, Layer
from sitcli.features.statistics import (
    Statistics,
    keep_statistics,
    load_kept_statistics,
    load_statistics,
    save_statistics,
)
from sitcli.metrics.moments import Gaussian, gaussian_of
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


PIXELS = Features(name="pixels", path=None, hash=None)


def test_adms_files_are_read(tmp_path):
    """Catches: the spatial features' statistics read as the pooled ones, or a file of images
    taken for one of statistics."""
    values = dict(mu=np.zeros(3), sigma=np.eye(3), mu_s=np.ones(2), sigma_s=2 * np.eye(2))
    np.savez(tmp_path / "adm.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8), **values)
    loaded = load_statistics(tmp_path / "adm.npz")
    assert {layer: len(g.mean) for layer, g in loaded.gaussians.items()} == {
        "pool": 3,
        "spatial": 2,
    }
    assert loaded.gaussians["spatial"].covariance[1, 1] == 2
    assert loaded.gaussians["pool"].num is None
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    assert load_statistics(tmp_path / "images.npz") is None


WRONG = [
    (dict(sigma=np.eye(2)), "do not fit together"),
    (dict(mu=np.zeros((1, 3))), "do not fit together"),
    (dict(mu=np.zeros(0), sigma=np.zeros((0, 0))), "do not fit together"),
    (dict(mu=np.zeros(3, int)), "are not floating point"),
    (dict(sigma=np.eye(3) * np.nan), "are not finite"),
    (dict(num=np.array(0)), "not a number of images"),
    (dict(num=np.array(1.5)), "not a number of images"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_statistics_of_nothing_are_named(tmp_path, change, message):
    """Catches: a distance to what is no mean and covariance."""
    values = dict(mu=np.zeros(3), sigma=np.eye(3), num=np.array(7)) | change
    np.savez(tmp_path / "a.npz", **values)
    with pytest.raises(SitError, match=message):
        load_statistics(tmp_path / "a.npz")


@pytest.mark.parametrize("distances", [{}, {10: 1.25, 500: 0.0}])
@pytest.mark.parametrize("name", ["pool", "spatial"])
def test_kept_statistics_come_back(tmp_path, name, distances):
    """Catches: distances under other numbers of images, or another layer's statistics."""
    kept = Statistics(Gaussian(np.arange(3.0), np.eye(3), 12), distances)
    layer, path = Layer(PIXELS, name), tmp_path / "new" / "a.npz"
    keep_statistics(path, kept, layer=layer, seed=3)
    found = load_kept_statistics(path, layer)
    assert found.real_distances == distances
    np.testing.assert_array_equal(found.gaussian.mean, kept.gaussian.mean)
    assert found.gaussian.num == 12
    other = Layer(PIXELS, "spatial" if name == "pool" else "pool")
    with pytest.raises(SitError, match="is not complete"):
        load_kept_statistics(path, other)
    for damaged in ("[]", "{", '{"a": 1}', '{"3": null}'):
        path.with_suffix(".real.json").write_text(damaged)
        assert load_kept_statistics(path, layer).real_distances == {}
    save_statistics(tmp_path / "b.npz", kept.gaussian, layer=name)
    with pytest.raises(SitError, match="is not complete"):
        load_kept_statistics(tmp_path / "b.npz", layer)


def test_a_distance_between_halves_of_an_older_version_is_left_out(tmp_path):
    """Catches: the distance between two halves, which 0.7.0 kept, as that of N images to others;
    and statistics measured again, for which a reference may take hours."""
    gaussian = Gaussian(np.arange(3.0), np.eye(3), 12)
    path, layer = tmp_path / "a.npz", Layer(PIXELS, "pool")
    save_statistics(path, gaussian, floor=1.5, seed=0, features="pixels")
    found = load_kept_statistics(path, layer)
    assert found.gaussian.num == 12
    assert found.real_distances == {}
