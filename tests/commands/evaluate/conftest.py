"""Images, a latent store and samples for the tests of `sit evaluate`."""

import pytest

from tests.commands.evaluate.measuring import make_pipeline


@pytest.fixture
def pipeline(tmp_path, monkeypatch):
    """A class folder, its latent store and a sample set that names the store, where we are."""
    monkeypatch.chdir(tmp_path)
    return make_pipeline(tmp_path)
