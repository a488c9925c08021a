"""What `sit encode-latents` says at its end."""

from pathlib import Path

from tests.commands.encode.pictures import encoded, settings_for


def test_next_is_plain_train_where_train_would_find_it(source, tmp_path, monkeypatch):
    """Catches: a suggestion that trains on another store."""
    monkeypatch.chdir(tmp_path)
    assert encoded(settings_for(source, Path("a.h5")))[0].next == "sit train"
    encoded(settings_for(source, Path("b.h5")))
    assert encoded(settings_for(source, Path("a.h5")))[0].next == "sit train --latents a.h5"
