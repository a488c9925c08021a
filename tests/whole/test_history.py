"""`sit evaluate --history`: every checkpoint of a run, scored and plotted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sitcli.commands.evaluate.history import history, plan
from sitcli.commands.evaluate.stage import evaluate
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Warn
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.evaluate import EvaluateSettings
from tests.tiny import finish, make_run, pictures, write_meta


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with the checkpoints 7 and 9."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path)
    shutil.copytree(run / "step-0000007", run / "step-0000009")
    meta = run / "step-0000009" / "meta.json"
    write_meta(meta, json.loads(meta.read_text()) | {"step": 9})
    np.savez(tmp_path / "real.npz", arr_0=pictures(24, seed=1)[0])
    return run


def settings(run: Path, **more) -> EvaluateSettings:
    return EvaluateSettings(
        history=run, features="pixels", reference=Path("real.npz"), device="cpu", steps=2, num=6,
        **more,
    )  # fmt: skip


def test_each_checkpoint_is_drawn_from_and_scored(run: Path) -> None:
    """Catches: figures of the newest under every step; a table, plot or file that lacks one; the
    same warning said for each."""
    stage, told = history(settings(run, fid=True, kid=True)), []
    try:
        while True:
            event = next(stage)
            if isinstance(event, (Note, Warn)):
                told.append(event.text)
    except StopIteration as end:
        result = end.value
    assert len(told) == len(set(told))
    assert [text for text in told if text.startswith("step")] == ["step 7", "step 9"]
    (table,) = result.tables
    assert table.header == ["step", "FD[pixels]", "KD[pixels]"]
    assert [row[0] for row in table.rows] == ["7", "9"]
    document = json.loads((run / "history.json").read_text())
    assert (run / "history.png").stat().st_size > 10_000
    for entry in document["checkpoints"]:
        alone = finish(
            evaluate(
                EvaluateSettings(
                    samples=[Path(entry["samples"])], features="pixels", fid=True, kid=True,
                    reference=Path("real.npz"), device="cpu",
                )
            )
        )  # fmt: skip
        assert [f["value"] for f in entry["figures"]] == [f["value"] for f in alone.data["figures"]]
        assert open_checkpoint(run / f"step-000000{entry['step']}").step == entry["step"]
    # The two have the same weights and the same seed.
    assert table.rows[0][1:] == table.rows[1][1:]
    shutil.rmtree(run / "step-0000007")
    assert [row[0] for row in finish(history(settings(run))).tables[0].rows] == ["9"]


def test_what_it_would_do_and_what_it_cannot(run: Path) -> None:
    """Catches: a plan that draws, or options of another mode that are ignored."""
    before = sorted(run.parent.rglob("*"))
    assert plan(settings(run)).data["steps"] == RunDir(run).steps() == [7, 9]
    assert sorted(run.parent.rglob("*")) == before
    with pytest.raises(UsageError, match="--probes is an option of --nll"):
        finish(history(settings(run, probes=2)))
    with pytest.raises(UsageError, match="its own samples"):
        finish(history(settings(run, samples=[run])))
    with pytest.raises(SitError, match="is not there"):
        finish(history(settings(run.parent / "nothing")))
