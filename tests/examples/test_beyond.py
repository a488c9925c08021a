"""The study of what is beyond the papers: its tables, its verdicts, and a tiny one end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "beyond"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "design-space"))
    monkeypatch.syspath_prepend(str(EXAMPLE))


def test_every_choice_is_one_that_sit_takes() -> None:
    """Catches: an option that the settings do not have, or a name that is there twice."""
    from mechanisms import BASE, BY_NAME, DRAWINGS, MECHANISMS

    from sitcli.settings.sample import SampleSettings
    from sitcli.settings.train import TrainSettings

    assert len(BY_NAME) == len(MECHANISMS)
    for mechanism in MECHANISMS:
        TrainSettings(**BASE, **mechanism.options)
    assert len({drawing.name for drawing in DRAWINGS}) == len(DRAWINGS)
    for drawing in DRAWINGS:
        SampleSettings(**drawing.options)
        assert drawing.run in BY_NAME


@pytest.mark.parametrize("name", ["fast", "fast-sync", "lightning"])
def test_a_preset_is_measured_as_it_is(name: str) -> None:
    """Catches: a preset changed in more than its learning rate and beta2, which are the base's."""
    from mechanisms import BY_NAME

    from sitcli.settings.presets import TRAIN

    mechanisms = {k: v for k, v in TRAIN[name].items() if k not in ("lr", "beta2")}
    assert BY_NAME[name].options == mechanisms


@pytest.mark.parametrize(
    ("values", "base", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], "helps"),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 0.9], "hurts"),
        ([1.0, 2.0, 3.0], [3.0, 2.1, 1.2], "within the spread"),
        ([2.0, 6.1, 10.0], [1.0, 5.0, 9.0], "hurts"),  # the seeds differ, the differences do not
        ([1.0, 1.01, 1.02], [1.01, 1.02, 1.03], "none"),
        ([1.0], [2.0], "one seed"),
    ],
)
def test_verdicts(values: list[float], base: list[float], verdict: str) -> None:
    """Catches: a difference within the spread of the seeds told as a finding."""
    from report import difference

    cells = [dict(enumerate(dict(fd=v) for v in row)) for row in (values, base)]
    assert difference(*cells)[1] == verdict


def test_equal_time_is_another_checkpoint_where_there_is_one() -> None:
    """Catches: figures at equal steps given for figures at equal time."""
    from report import Results

    cells = {
        "fast-s0-100": dict(fd=2.0, step=100),
        "fast-s0-120": dict(fd=1.0, step=120),
        "fast-sync-s0-100": dict(fd=9.0, step=100),
    }
    results = Results(dict(cells=cells, budget=dict(steps=100, seeds=1)))
    assert results.trained("fast", equal="steps")[0]["fd"] == 2.0
    assert results.trained("fast", equal="time")[0]["fd"] == 1.0
    assert results.trained("fast-sync", equal="time")[0]["fd"] == 9.0


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path) -> None:
    """Catches: a study whose parts do not fit together, or that measures again what it has."""
    random = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "pictures" / str(label)
        folder.mkdir(parents=True)
        for i in range(30):
            noise = random.integers(0, 60, (32, 32, 3))
            Image.fromarray((noise + 19 * label).astype(np.uint8)).save(folder / f"{i:03d}.png")
    words = [sys.executable, str(EXAMPLE / "study.py"), "--data", str(tmp_path / "pictures")]
    words += ["--out", str(tmp_path / "out"), "--scale", "0.01", "--seeds", "1"]
    subprocess.run(words, check=True, timeout=1800)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(np.isfinite(cell["fd"]) for cell in results["cells"].values())
    assert results["cells"]["draw-guide2-s0"]["evaluations"] == 40
    assert "TREAD" in (tmp_path / "out" / "RESULTS.md").read_text()
