"""What `sit sample` says at its end."""

from __future__ import annotations

from pathlib import Path

from sitcli.commands.sample.stage import sample
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish


def test_next_names_a_set_that_is_not_the_newest(run: Path, tmp_path: Path, monkeypatch) -> None:
    """Catches: a `next` command that would evaluate other samples than these."""
    monkeypatch.chdir(tmp_path)
    first, second = (SampleSettings(checkpoint=run, num=n, steps=1) for n in (2, 3))
    assert finish(sample(first)).next == "sit evaluate --fid"
    assert finish(sample(second)).next == "sit evaluate --fid"
    again = finish(sample(first))
    assert again.next == f"sit evaluate {again.path} --fid"
