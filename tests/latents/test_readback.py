"""A store read back: its statistics, and rows that were damaged."""

import numpy as np

from sitcli.latents.readback import ReadBack
from sitcli.latents.store import LatentStore
from sitcli.storage.rows import Rows
from tests.latents.stores import NUM, SIDE, SPEC, C, make_store


def test_statistics_are_those_of_the_latents_training_draws(tmp_path):
    """Catches: broken rows counted, the posterior's spread or the scaling left out."""
    scale = np.array([0.5, 2.0, 3.0])
    data = make_store(tmp_path / "a.h5", scaling=scale.tolist())
    check = ReadBack(LatentStore.open(tmp_path / "a.h5"))
    assert list(check)[-1] == NUM
    # A draw is (m + s z - shift) scale with z ~ N(0, 1): its variance is Var m + E s^2.
    good = np.delete(data.astype(np.float64), 4, axis=1)
    means, stds = good[:, :, :C], good[:, :, C:]
    axes = (0, 1, 3, 4)
    expected = np.sqrt(means.var(axes) + np.square(stds).mean(axes)) * scale
    # The store sums float16 values in float64 after squaring them in float32: 2^-24 each.
    np.testing.assert_allclose(check.mean, (means.mean(axes) - SPEC["shift"]) * scale, rtol=1e-6)
    np.testing.assert_allclose(check.std, expected, rtol=1e-6)


def test_reading_back_finds_damaged_rows(tmp_path, monkeypatch):
    """Catches: a verification that compares a file with itself, or looks at one copy only."""
    monkeypatch.setattr("sitcli.latents.store.READ_BYTES", 1000)  # several pieces
    path = tmp_path / "a.h5"
    make_store(path)
    check = ReadBack(LatentStore.open(path))
    for _ in check:
        pass
    assert check.damaged == set()
    assert check.checksum == LatentStore.open(path).checksum()
    with Rows(path, writable=True) as file:
        file.write([3], latents=np.ones((1, 2 * C, SIDE, SIDE), np.float16))
        file.write([9], latents_flipped=np.ones((1, 2 * C, SIDE, SIDE), np.float16))
    check = ReadBack(LatentStore.open(path))
    for _ in check:
        pass
    assert check.damaged == {3, 9}
