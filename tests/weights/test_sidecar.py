"""What lies beside weights in an official layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.settings.weights import ExportSettings, ImportSettings
from sitcli.weights.sidecar import sidecar_of
from tests.tiny import finish, make_run
from tests.weights.official_files import bring, draw_latents, equal, take


def test_the_runs_own_tensors_and_facts_return(tmp_path: Path) -> None:
    """Catches: a run that comes back with a turned time's rounding, without its step, classes or
    loss over t; and an official file that is another one for what lies beside it."""
    run = make_run(tmp_path, process=Flow(prediction="noise"))
    first = open_checkpoint(run)
    out = take(run, tmp_path / "x.pt", "official-sit")
    assert set(torch.load(out)) == set(first.weights("ema"))
    second = bring(out, tmp_path / "back")
    assert equal(first.weights("ema"), second.weights("ema"))
    forget = dict(weights_source=None, sit_version=None, checksum=None, lineage=None)
    assert first.meta | forget == second.meta | forget
    assert second.loss_curve is not None
    assert second.meta["weights_source"]["path"] == str(out.resolve())
    # A folder with the two files holds one file of weights.
    (tmp_path / "both").mkdir()
    for path in (out, sidecar_of(out)):
        path.rename(tmp_path / "both" / path.name)
    assert bring(tmp_path / "both", tmp_path / "again").step == 7
    with pytest.raises(SitError, match="beside the weights, not the weights") as caught:
        bring(sidecar_of(tmp_path / "both" / "x.pt"), tmp_path / "c")
    assert caught.value.hint == "name x.pt"


def test_a_file_without_it_says_what_it_lacks(tmp_path: Path) -> None:
    """Catches: a noise model that begins where its network knows nothing, and nobody told."""
    run = make_run(tmp_path, process=Flow(prediction="noise"))
    meta = open_checkpoint(run).path / "meta.json"
    facts = json.loads(meta.read_text())
    start = open_checkpoint(run).process.ode_interval(open_checkpoint(run).loss_curve).start
    assert start < 0.99
    told = finish(export(ExportSettings(checkpoint=run, out=tmp_path / "x.pt",
                                        format="official-sit")))  # fmt: skip
    assert any(f"--t-start {start:g}" in text for text in told.data["warnings"])
    sidecar_of(tmp_path / "x.pt").unlink()
    options = dict(lineage="official-sit", vae="pixels", heads=2, prediction="noise")
    again = bring(tmp_path / "x.pt", tmp_path / "back", **options)
    assert (again.loss_curve, again.step) == (None, 0)
    ours, theirs = (
        draw_latents(path, tmp_path / f"{i}.h5", num=2, steps=3, t_start=start)
        for i, path in enumerate((run, tmp_path / "back"))
    )
    assert abs(ours - theirs).max() < 1e-4 * abs(ours).max()
    assert facts["step"] == 7


def test_it_counts_for_its_own_file_alone(tmp_path: Path) -> None:
    """Catches: tensors of one run mixed with another's, a damaged file believed, and options that
    are silently not looked at."""
    out = take(make_run(tmp_path), tmp_path / "x.pt", "official-sit")
    options = dict(lineage="official-sit", vae="pixels", heads=2)
    said = finish(import_weights(ImportSettings(weights=out, out_dir=tmp_path / "a", **options)))
    assert said.data["step"] == 0
    state = torch.load(out)
    state["final_layer.linear.bias"] += 1
    torch.save(state, out)
    with pytest.raises(UsageError, match="cannot tell whether"):
        bring(out, tmp_path / "b")
    beside = sidecar_of(out)
    data = bytearray(beside.read_bytes())
    data[-1] ^= 1
    beside.write_bytes(data)
    with pytest.raises(SitError, match="damaged"):
        bring(out, tmp_path / "c")
    assert not (tmp_path / "c").exists()
