"""`sit inspect --verify` finds a changed byte in every file of a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sitcli.commands.ema import average
from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.train.stage import train
from sitcli.errors import SitError
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir
from sitcli.settings.train import TrainSettings
from sitcli.settings.weights import EmaSettings, ExportSettings, ImportSettings
from sitcli.storage.tensors import read_tensors
from tests.commands.inspect.artefacts import facts, inspected, make_store
from tests.tiny import finish

STEP = "step-0000003"
IN_STEP = (
    "meta.json", "model.safetensors", "ema.safetensors", "autoencoder.safetensors",
    "ema-std0.050.safetensors", "ema-std0.100.safetensors",
    "state/rank-00000-of-00001.safetensors",
)  # fmt: skip
FILES = (
    *(f"{STEP}/{name}" for name in IN_STEP),
    "averages/step-0000001/ema-std0.050.safetensors", "config.yaml", "metrics.jsonl", "loss.png",
    f"samples/{STEP}.png",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with a run that has every kind of file, an average, an import and exports."""
    folder = tmp_path_factory.mktemp("trained")
    store = make_store(folder / "store.h5").path
    settings = TrainSettings(
        latents=[store], out=folder / "run", model="SiT-Mi/1", width=16, depth=1, heads=2, steps=3,
        save_every=1, keep=1, power_ema=True, log_every=1, sample_every=3, batch_size=4,
        precision="fp32", device="cpu",
    )  # fmt: skip
    finish(train(settings))
    finish(average(EmaSettings(run=folder / "run", std=0.1, out=folder / "average")))
    for form, name in (("safetensors", "a.safetensors"), ("official-sit", "a.pt")):
        finish(export(ExportSettings(checkpoint=folder / "run", out=folder / name, format=form)))
    finish(
        import_weights(ImportSettings(weights=folder / "a.safetensors", out_dir=folder / "import"))
    )
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def flip(path: Path, place: float = 0.5) -> None:
    """Change the lowest bit of one byte; in text a letter becomes another letter."""
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def test_the_list_of_files_is_complete(trained):
    """Catches: a file of a run that no test here damages."""
    found = {str(p.relative_to(trained / "run")) for p in (trained / "run").rglob("*")
             if p.is_file() and p.stat().st_size}  # fmt: skip
    others = {name for name in found if name.startswith(("tb/", "averages/"))}
    assert found - others == {name for name in FILES if not name.startswith("averages/")}


def test_a_sound_run_is_said_to_be_sound(trained):
    """Catches: a checksum that does not hold for what was just written."""
    for name in ("run", f"run/{STEP}", "average", "import"):
        result = inspected(trained / name, verify=True)
        assert result.summary["verified"] == "everything was read back and is sound", name
        assert result.data["without_checksums"] == []
    assert "tb" in inspected(trained / "run", verify=True).summary["not verified"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.5, 0.999])
def test_a_changed_byte_is_found(folder, name, place):
    """Catches: a damaged checkpoint that is said to be sound."""
    path = folder / "run" / name
    if name == "config.yaml" and place == 0.5:
        path.write_text(path.read_text().replace("keep: 1", "keep: 2"))
    else:
        flip(path, place)
    with pytest.raises(SitError) as failure:
        inspected(folder / "run", verify=True)
    assert path.name in failure.value.message
    assert failure.value.exit_code == 1


def test_the_tensor_is_named(folder):
    """Catches: a report that leaves open what can still be used."""
    path = folder / "run" / STEP / "ema.safetensors"
    tensors = read_tensors(path)
    content = path.read_bytes()
    wanted = tensors["blocks.0.attn.qkv.weight"].numpy().tobytes()
    start = content.index(wanted)
    path.write_bytes(content[: start + 9] + bytes([content[start + 9] ^ 1]) + content[start + 10 :])
    assert all(torch.isfinite(tensor).all() for tensor in read_tensors(path).values())
    message = r"step 3: ema.safetensors: 'blocks.0.attn.qkv.weight' is not what was written$"
    with pytest.raises(SitError, match=message):
        inspected(folder / "run", verify=True)


@pytest.mark.parametrize("name", ["average/{}/ema.safetensors", "import/{}/ema.safetensors",
                                  "average/{}/autoencoder.safetensors"])  # fmt: skip
def test_averages_and_imports_are_covered(folder, name):
    """Catches: checksums of trained checkpoints alone."""
    path = folder / name.format(STEP)
    flip(path, 0.9)
    with pytest.raises(SitError, match=f"{path.name}: '.*' is not what was written"):
        inspected(path.parents[1], verify=True)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_changed_export_is_not_imported(folder, name):
    """Catches: weights that were damaged on their way to another machine, taken for sound."""
    flip(folder / name)
    with pytest.raises(SitError, match=f"{name} is damaged|cannot read .*{name}"):
        finish(
            import_weights(
                ImportSettings(weights=folder / name, out_dir=folder / "again", model="SiT-Mi/1")
            )
        )
    assert not (folder / "again").exists()


def test_names_shapes_and_steps_are_verified_on_open(folder):
    """Catches: an optimizer's count of steps that is another, which no tensor shows."""
    path = folder / "run" / STEP / "state" / "rank-00000-of-00001.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"3.0"', b'"4.0"', 1))
    settings = dict(latents=[folder / "store.h5"], out=folder / "run", steps=4, device="cpu")
    with pytest.raises(SitError, match="its header is not what was written"):
        finish(train(TrainSettings(**settings)))


def test_an_edited_meta_is_refused_on_open(folder):
    """Catches: another scaling, or another direction of time, in a file that is read each time."""
    file = folder / "run" / STEP / "meta.json"
    meta = json.loads(file.read_text())
    meta["latents"]["scaling"] = 0.5
    file.write_text(json.dumps(meta))
    with pytest.raises(SitError, match="is not what sit wrote") as failure:
        open_checkpoint(folder / "run")
    assert "remove its line 'checksum'" in failure.value.hint
    del meta["checksum"]
    file.write_text(json.dumps(meta))
    assert open_checkpoint(folder / "run").latents["scaling"] == 0.5
    with pytest.raises(SitError, match=r"meta.json has no checksum, and .* has"):
        inspected(folder / "run", verify=True)


def test_a_checksum_that_an_older_version_copied_is_none(folder):
    """Catches: an average that `sit ema` of 0.7 made of a newer run, which nothing opens."""
    file = folder / "average" / STEP / "meta.json"
    meta = json.loads(file.read_text())
    copied = {"step": meta.pop("step"), **meta, "metrics": {"bytes": 9, "crc32": "0"}}
    del copied["sit_version"]
    copied["ema"] = "another"
    file.write_text(json.dumps({**copied, "sit_version": "0.7.0"}))
    path = folder / "average" / STEP / "ema.safetensors"
    tensors = read_tensors(path)
    save_file(tensors, path)
    (path.parent / "autoencoder.safetensors").unlink()
    result = inspected(folder / "average", verify=True)
    assert "no checksums recorded" in result.summary["verified"]


def test_older_checkpoints_are_not_called_sound():
    """Catches: "sound" for what nothing was compared with."""
    old = Path(__file__).parents[2] / "whole" / "artefacts" / "0.6.0" / "run"
    for path in (old, RunDir(old).newest()):
        result = inspected(path, verify=True)
        assert "no checksums recorded (written by 0.7 or older)" in result.summary["verified"]
        assert "step-0000002" in result.summary["verified"]
        assert "sound" not in result.summary["verified"]
        assert facts(result)["step"] == "2"


def test_a_run_that_goes_on_stays_sound(folder):
    """Catches: a log that a resume rewrites, and that its checkpoint then calls damaged."""
    run = folder / "run"
    finish(train(TrainSettings(latents=[folder / "store.h5"], out=run, steps=4, device="cpu",
                               save_every=10, log_every=1)))  # fmt: skip
    assert inspected(run, verify=True).data["verified"]
    shutil.rmtree(run / "step-0000004")
    finish(train(TrainSettings(latents=[folder / "store.h5"], out=run, steps=5, device="cpu")))
    assert inspected(run, verify=True).data["verified"]
