"""The study of the design space: its tables, its verdicts, and a tiny one from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "design-space"


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))


@pytest.mark.parametrize("size", ["Mi", "Ti", "S"])
def test_the_tables_name_only_what_there_is(size: str) -> None:
    """Catches: a row or claim whose name is misspelt, lost or found after an hour."""
    from cells import SAMPLERS, runs, sections

    used = set()
    for section in sections(size):
        names = [row.name for row in section.rows]
        assert len(set(names)) == len(names)
        for row in section.rows:
            assert row.sampler in SAMPLERS
            used.add(row.run)
        for claim in section.claims:
            assert {claim.better, claim.worse} <= set(names)
    assert used == set(runs(size))


def test_every_choice_is_one_that_sit_takes() -> None:
    """Catches: an option that sit has renamed since."""
    from cells import SAMPLERS, Budget, runs

    from sitcli.settings.sample import SampleSettings
    from sitcli.settings.train import TrainSettings

    for size in ("Mi", "S"):
        for options in runs(size).values():
            TrainSettings(**Budget().options(), **options)
    for options in SAMPLERS.values():
        SampleSettings(**options)


@pytest.mark.parametrize(
    ("better", "worse", "tie", "verdict"),
    [
        ([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], False, "reproduced"),
        ([2.0, 2.2, 2.1], [1.0, 1.1, 0.9], False, "contradicted"),
        ([1.0, 2.0, 3.0], [3.0, 2.1, 1.2], False, "tie"),
        ([1.0, 2.0, 3.0], [3.0, 2.1, 1.2], True, "tie"),
        ([1.0, 1.1, 0.9], [2.0, 2.2, 2.1], True, "contradicted"),
        ([1.0], [2.0], False, "one seed"),
        # All seeds agree on what the seeds themselves do not: only the differences count.
        ([1.0, 5.0, 9.0], [2.0, 6.1, 10.0], False, "reproduced"),
    ],
)
def test_verdicts(better: list[float], worse: list[float], tie: bool, verdict: str) -> None:
    """Catches: a difference within the spread of the seeds told as a finding."""
    from cells import Claim, Row, Section
    from report import Results, judge

    cells = [
        dict(run=run, sampler="ode", seed=seed, fd=value)
        for run, values in (("a", better), ("b", worse))
        for seed, value in enumerate(values)
    ]
    section = Section("x", "", (Row("A", "a"), Row("B", "b")), (Claim("", "A", "B", tie=tie),))
    assert judge(Results(dict(cells=cells)), section, section.claims[0])[0] == verdict


def test_split_is_a_function_of_the_names(tmp_path: Path) -> None:
    """Catches: a held-out image that a network has seen, which would flatter the classifier."""
    from prepare import split

    from sitcli.images.source import open_source

    _write_pictures(tmp_path / "pictures", 20)
    parts = []
    for name in ("once", "again"):
        train, test = (tmp_path / f"{name}-{part}.tar" for part in ("train", "test"))
        split(open_source(tmp_path / "pictures"), train, test)
        parts.append([[item.name for item in open_source(p).items] for p in (train, test)])
    assert parts[0] == parts[1]
    train, test = map(set, parts[0])
    assert not train & test
    assert (len(train), len(test)) == (160, 40)


@pytest.mark.slow
def test_a_tiny_study_from_end_to_end(tmp_path: Path) -> None:
    """Catches: sections that do not fit together, or a second call that does work again."""
    _write_pictures(tmp_path / "pictures", 30)
    words = [sys.executable, str(EXAMPLE / "study.py"), "--data", str(tmp_path / "pictures")]
    words += ["--out", str(tmp_path / "out"), "--scale", "0.002", "--seeds", "1"]
    words += ["--only", "d", "e"]
    subprocess.run(words, check=True, timeout=900)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    cells = {(cell["run"], cell["sampler"]): cell for cell in results["cells"]}
    assert ("ddpm-noise", "ddpm") in cells
    assert cells["base", "ode"]["evaluations"] == 50
    assert all(np.isfinite(cell["fd"]) for cell in cells.values())
    assert "## (e) Interpolant" in (tmp_path / "out" / "RESULTS.md").read_text()
    listed = subprocess.run([*words, "--dry-run"], check=True, capture_output=True, text=True)
    assert "0 trainings, 0 cells" in listed.stdout


def _write_pictures(folder: Path, number: int) -> None:
    """`number` noisy 32 x 32 pictures in each of ten classes."""
    random = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for i in range(number):
            noise = random.integers(0, 60, (32, 32, 3))
            pixels = (noise + 19 * label).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{i:03d}.png")
