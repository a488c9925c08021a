"""Inception's weights, which are never fetched."""

import pytest
import torch

from sitcli.errors import SitError
from sitcli.features.extractors import choose_features
from sitcli.features.inception import INCEPTION_FILE


def test_missing_inception_weights_are_named_and_never_fetched(tmp_path, monkeypatch):
    """Catches: a silent download (or a hang offline), and an error that does not help."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(SitError) as caught:
        choose_features("inception")
    assert INCEPTION_FILE in caught.value.message
    assert str(tmp_path / "hub" / "checkpoints") in caught.value.message
    for help in ("curl -L", "--features-weights", "--features pixels"):
        assert help in caught.value.hint
