"""Files of later versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sitcli.errors import SitError
from sitcli.latents.store import LatentStore
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.storage.rows import Rows
from tests.tiny import draw


def test_newer_formats_are_refused(run: Path) -> None:
    """Catches: an artefact of a later version read as if nothing had changed, or a traceback."""
    samples, store = draw(run, "set"), run.parents[1] / "tiny.h5"
    for path in (samples.path, store):
        with Rows(path, writable=True) as file:
            file.set_attrs(format_version=9)
    meta = open_checkpoint(run).path / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format_version": 9}))
    for read in (
        lambda: SampleSet.open(samples.path),
        lambda: LatentStore.open(store),
        lambda: open_checkpoint(run),
    ):
        with pytest.raises(SitError, match=r"has format 9, this version of sit reads up to \d"):
            read()
