"""`sit sample --invert` on small pictures."""

from __future__ import annotations

from pathlib import Path

from sitcli.commands.sample.invert import invert
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish, pictures, write_folder


def invert_settings(run: Path, images: Path, out: str = "out", **options) -> SampleSettings:
    options = {"steps": 10, "device": "cpu", **options}
    return SampleSettings(checkpoint=run, invert=images, out=run.parents[1] / out, **options)


def go(run: Path, images: Path, out: str = "out", **options) -> tuple[SampleSet, dict]:
    """The set, and its figures."""
    result = finish(invert(invert_settings(run, images, out, **options)))
    return SampleSet.open(result.path), result.data["figures"]


def class_folder(path: Path, number: int = 6) -> Path:
    """pictures() as PNG files in folders red, green, blue."""
    images, labels = pictures(number, seed=3)
    for label, name in enumerate(("red", "green", "blue")):
        write_folder(path / name, images[labels == label])
    return path
