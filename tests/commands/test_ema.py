"""`sit ema`: an average nobody tracked, made of the snapshots of a training."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sitcli.commands.ema import average
from sitcli.commands.evaluate.likelihood import likelihood
from sitcli.commands.export import export
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.events import Warn
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir, snapshot_name
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.weights import EmaSettings, ExportSettings
from sitcli.storage.tensors import read_tensors, write_tensors
from tests.cli.terminal import sit
from tests.tiny import finish, train_settings, write_meta
from tests.whole.beyond import EVERYTHING, drawn, train_with_everything


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return train_with_everything(tmp_path_factory.mktemp("all"))


def test_averages_outlive_their_steps(trained: Path, tmp_path: Path) -> None:
    """Catches: snapshots that go with the checkpoints --keep removes."""
    run = RunDir(trained)
    assert run.steps() == [5, 6]
    assert sorted({s.step for s in run.snapshots()}) == [1, 2, 3, 4, 5, 6]
    out = tmp_path / "made"
    result = finish(average(EmaSettings(run=trained, std=0.07, out=out)))
    assert result.data["error"] < 0.2
    # Nothing trains on from an average, so it names no streams, and older versions may read it.
    assert "streams" in open_checkpoint(trained).meta
    assert "streams" not in open_checkpoint(out).meta
    assert open_checkpoint(out).meta["format_version"] == 2
    weights = open_checkpoint(out).weights("ema")
    made = {s: read_tensors(path) for s, path in run.snapshots().items()}
    factors = {(s["step"], s["std"]): s["factor"] for s in result.data["snapshots"]}
    key = "blocks.1.attn.qkv.weight"
    expected = sum(factors.get((s.step, s.std), 0.0) * made[s][key].double() for s in made)
    torch.testing.assert_close(weights[key], expected.float())
    assert torch.equal(weights["pos_embed"], made[next(iter(made))]["pos_embed"])
    again = finish(average(EmaSettings(run=trained, std=0.07, out=out)))
    assert again.path == result.path
    assert drawn(out, tmp_path / "drawn").complete
    assert finish(inspect(InspectSettings(path=out / "step-0000006", verify=True)))
    latents = Path(open_checkpoint(trained).latents["store"])
    with pytest.raises(UsageError, match="an average of another run"):
        finish(train(train_settings(latents, out, steps=9, **EVERYTHING)))


@pytest.mark.parametrize("step", [1, 2, 6])
@pytest.mark.parametrize("std", [0.07, 0.25])
def test_weights_that_never_moved_come_back(
    trained: Path, tmp_path: Path, step: int, std: float
) -> None:
    """Catches: factors of another sum than 1: 0.48 times the weights from step 1 alone at 0.25, and
    1.036 times at 0.07."""
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    for file in RunDir(copy).snapshots().values():
        write_tensors(
            file, {name: torch.full_like(t, 0.7) for name, t in read_tensors(file).items()}
        )
    settings = EmaSettings(run=copy, std=std, step=step, out=tmp_path / "made")
    result = finish(average(settings))
    for tensor in open_checkpoint(tmp_path / "made").weights("ema").values():
        # float32 rounds by 6e-8.
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.7), rtol=1e-6, atol=0)
    record = open_checkpoint(tmp_path / "made").meta["power_ema"]
    assert record["sum"] == pytest.approx(1, abs=1e-12) == result.data["sum"]
    assert sum(factor for _, _, factor in record["snapshots"]) == pytest.approx(1, abs=1e-12)


def test_an_average_of_an_earlier_version_says_that_it_is_none(
    trained: Path, tmp_path: Path
) -> None:
    """Catches: weights of the wrong size that are drawn from, measured or exported without a word,
    and a hint whose command does not mend them."""
    out = tmp_path / "made"
    finish(average(EmaSettings(run=trained, std=0.2, step=1, out=out)))
    file = out / "step-0000001" / "meta.json"
    meta = json.loads(file.read_text())
    assert open_checkpoint(out).weights_warning is None
    assert open_checkpoint(trained).weights_warning is None
    # As 0.7.0 wrote it: no sum, and factors of least squares alone.
    del meta["power_ema"]["sum"]
    meta["power_ema"]["snapshots"] = [[1, 0.05, -0.48], [1, 0.1, 1.15]]
    write_meta(file, meta)
    sample_settings = SampleSettings(checkpoint=out, out=tmp_path / "set", num=1, steps=1)
    store = Path(open_checkpoint(trained).latents["store"])
    nll = EvaluateSettings(samples=[out], reference=store, nll=True, num=2, steps=1, device="cpu")
    exported = ExportSettings(checkpoint=out, out=tmp_path / "x.safetensors", format="safetensors")
    for stage in (sample(sample_settings), likelihood(nll), export(exported)):
        warnings = [event.text for event in stage if isinstance(event, Warn)]
        assert any("every weight is 0.67 times" in text for text in warnings)
    described = finish(inspect(InspectSettings(path=out)))
    (said,) = [value for name, value in described.tables[0].rows if name == "warning"]
    command = shlex.split(said.split("again: ")[1])
    assert sit(*command[1:]).returncode == 0
    assert open_checkpoint(out).weights_warning is None
    assert open_checkpoint(out).meta["power_ema"]["sum"] == pytest.approx(1, abs=1e-12)


def test_average_refusals(trained: Path, tmp_path: Path, store: Path) -> None:
    """Catches: a run without averages, a step that is gone, or somebody's folder overwritten."""
    finish(train(train_settings(store, tmp_path / "plain", steps=1)))
    with pytest.raises(UsageError, match="keeps no averages"):
        finish(average(EmaSettings(run=tmp_path / "plain", std=0.1)))
    with pytest.raises(UsageError, match="no averages of that step"):
        finish(average(EmaSettings(run=trained, std=0.1, step=77)))
    with pytest.raises(UsageError, match="sit ema did not write it"):
        finish(average(EmaSettings(run=trained, std=0.1, out=tmp_path / "plain")))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    file = copy / "averages" / "step-0000002" / snapshot_name(0.05)
    file.unlink()
    file.write_bytes(b"no tensors")
    with pytest.raises(SitError, match="cannot read"):
        finish(average(EmaSettings(run=copy, std=0.07, out=tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_damaged_snapshots_are_not_averaged(trained: Path, tmp_path: Path) -> None:
    """Catches: damage that gets checksums of its own in what is made of it."""
    file = next((trained / "averages").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    copy = Path(shutil.copytree(trained, tmp_path / "copy"))
    content[-5] ^= 1
    (copy / file.relative_to(trained)).write_bytes(content)
    with pytest.raises(SitError, match=r"is damaged: .* is not what was written"):
        finish(average(EmaSettings(run=copy, out=tmp_path / "made", std=0.08)))
    assert not (tmp_path / "made").exists()
