"""Names of the hub where a path is, without a network."""

from pathlib import Path

import pytest

from sitcli.errors import SitError, UsageError
from sitcli.storage.hub import local_path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """huggingface_hub's cache with one repository in it, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    snapshot = folder / "snapshots" / ("a" * 40)
    (snapshot / "inner").mkdir(parents=True)
    (snapshot / "inner" / "w.pt").write_bytes(b"weights")
    return snapshot


def test_what_is_cached_is_found_and_paths_are_left_alone(cache: Path) -> None:
    """Catches: a fetch for what is here, or a path that is taken for a name."""
    assert local_path("hf:owner/name") == cache
    assert local_path(Path("hf:owner/name/inner/w.pt")).read_bytes() == b"weights"
    assert local_path("runs/hf") == Path("runs/hf")


def test_what_cannot_be_had_is_one_line(cache: Path) -> None:
    """Catches: huggingface_hub's own traceback, or no way out offline."""
    with pytest.raises(SitError, match="cannot fetch hf:owner/other") as caught:
        local_path("hf:owner/other")
    assert "hf download" in caught.value.hint
    assert "\n" not in caught.value.message
    with pytest.raises(SitError, match="holds no"):
        local_path("hf:owner/name/absent.pt")
    with pytest.raises(UsageError, match="not a name"):
        local_path("hf:only-one")
