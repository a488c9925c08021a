"""What is beyond the papers, through the stages: it trains, resumes and samples."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sitcli.commands.ema import average
from sitcli.commands.encode.stage import encode
from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import plan, sample
from sitcli.commands.train.recipe import make_times
from sitcli.commands.train.stage import plan as plan_training
from sitcli.commands.train.stage import train
from sitcli.errors import SitError, UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.run_dir import RunDir, snapshot_name
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.encode import EncodeSettings
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.weights import EmaSettings, ExportSettings, ImportSettings
from sitcli.storage.rows import Rows
from sitcli.storage.tensors import read_tensors
from tests.stages.test_train import TINY, settings, store
from tests.tiny import ENVIRONMENT, finish, pictures, write_folder

__all__ = ["store"]  # the fixture

SIT = [sys.executable, "-m", "sitcli"]
ALL: dict[str, Any] = dict(
    depth=4, mlp="swiglu", norm="rms", rope=True, qk_norm=True, t_dist="logit-normal",
    t_dist_until=2, t_shift="0.5", direction_loss=0.5, layer_sync=0.2, internal_guidance=0.5,
    tread=0.5, power_ema=True,
)  # fmt: skip


def drawn(run: Path, out: Path, **options: Any) -> SampleSet:
    more = dict(num=4, steps=4, device="cpu", precision="fp32", latents=True) | options
    return SampleSet.open(finish(sample(SampleSettings(checkpoint=run, out=out, **more))).path)


def same_files(a: Path, b: Path) -> None:
    names = [file.name for file in a.glob("*.safetensors")]
    assert snapshot_name(0.05) in names
    for name in names:
        first, second = read_tensors(a / name), read_tensors(b / name)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run with everything, six steps, a checkpoint each."""
    from tests.tiny import make_store

    folder = tmp_path_factory.mktemp("all")
    latents = make_store(folder / "tiny.h5").path
    finish(train(settings(latents, folder / "run", steps=6, save_every=1, keep=2, **ALL)))
    return folder / "run"


def test_everything_resumes_to_the_last_bit(trained: Path, tmp_path: Path) -> None:
    """Fault: tracks that begin anew, a step's tokens drawn from a generator that is not the
    step's, terms of the log that are lost."""
    latents = Path(open_checkpoint(trained).latents["store"])
    for steps in (3, 6):
        run = settings(latents, tmp_path / "run", steps=steps, save_every=3, keep=2, **ALL)
        finish(train(run))
    same_files(trained / "step-0000006", tmp_path / "run" / "step-0000006")
    last = RunDir(trained).read_metrics()[-1]
    for name in ("loss_sync", "loss_internal"):
        assert np.isfinite(last[name])


@pytest.mark.parametrize("zero", ["1", "3"])
def test_two_processes_train_the_same(trained: Path, tmp_path: Path, zero: str) -> None:
    """Fault: routes drawn by rank, heads whose weights ZeRO 3 gathers too late, tracks of halves
    that are put together wrongly."""
    latents = open_checkpoint(trained).latents["store"]
    options = {**TINY, **ALL, "procs": 2, "steps": 6, "zero": zero, "save_every": 6}
    flags = [
        f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in options.items()
    ]
    command = [*SIT, "train", "--latents", latents, "--out", str(tmp_path / "run"), *flags]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", snapshot_name(0.10)):
        one = read_tensors(trained / "step-0000006" / name)
        two = read_tensors(tmp_path / "run" / "step-0000006" / name)
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, atol=2e-5, rtol=1e-3)


def test_averages_outlive_their_steps(trained: Path, tmp_path: Path) -> None:
    """Fault: snapshots that go with the checkpoints --keep removes."""
    run = RunDir(trained)
    assert run.steps() == [5, 6]
    assert sorted({s.step for s in run.snapshots()}) == [1, 2, 3, 4, 5, 6]
    out = tmp_path / "made"
    result = finish(average(EmaSettings(run=trained, std=0.07, out=out)))
    assert result.data["error"] < 0.2
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
        finish(train(settings(latents, out, steps=9, **ALL)))


def test_average_refusals(trained: Path, tmp_path: Path, store: Path) -> None:
    """Fault: a run without averages, a step that is gone, or somebody's folder overwritten."""
    finish(train(settings(store, tmp_path / "plain", steps=1)))
    with pytest.raises(UsageError, match="keeps no averages"):
        finish(average(EmaSettings(run=tmp_path / "plain", std=0.1)))
    with pytest.raises(UsageError, match="no averages of that step"):
        finish(average(EmaSettings(run=trained, std=0.1, step=77)))
    with pytest.raises(UsageError, match="not of sit ema"):
        finish(average(EmaSettings(run=trained, std=0.1, out=tmp_path / "plain")))
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    file = copy / "averages" / "step-0000002" / snapshot_name(0.05)
    file.unlink()
    file.write_bytes(b"no tensors")
    with pytest.raises(SitError, match="cannot read"):
        finish(average(EmaSettings(run=copy, std=0.07, out=tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_every_guidance_and_solver_of_one_run(trained: Path, tmp_path: Path) -> None:
    """Fault: an option that is taken and does nothing; evaluations that are planned and not
    spent."""
    seen = {}
    guide = trained / "step-0000005"
    for name, options in {
        "plain": {},
        "ab2": dict(solver="ab2"),
        "dpm": dict(solver="dpm++2m"),
        "shift": dict(t_shift="3"),
        "no-shift": dict(t_shift="1"),
        "cfg": dict(cfg_scale=3.0),
        "interval": dict(cfg_scale=3.0, cfg_interval="0.3,0.8"),
        "guide": dict(guide=guide, guide_scale=5.0),
        "internal": dict(internal_scale=3.0),
    }.items():
        samples = drawn(trained, tmp_path / name, **options)
        more = dict(num=4, steps=4, device="cpu") | options
        planned = plan(SampleSettings(checkpoint=trained, out=tmp_path / "plan", **more))
        assert planned.data["evaluations"] == samples.meta["evaluations_per_image"]
        seen[name] = samples.rows.array("latents").copy()
    for name, latents in seen.items():
        others = [other for key, other in seen.items() if key != name]
        assert not any(np.array_equal(latents, other) for other in others), name
    facts = SampleSet.open(tmp_path / "plain").meta
    assert facts["t_shift"] == "0.5"  # the training's
    assert SampleSet.open(tmp_path / "interval").meta["cfg_interval"] == [0.3, 0.8]
    assert SampleSet.open(tmp_path / "guide").meta["guide"] == str(guide.resolve())


def test_internal_guidance_is_the_formula(trained: Path, tmp_path: Path) -> None:
    """Fault: a scale at the wrong end: one Euler step from t = 1 is x - v."""
    one = dict(solver="euler", steps=1, num=2)
    drawn(trained, tmp_path / "a", **one)
    samples = drawn(trained, tmp_path / "b", internal_scale=2.5, **one)
    network: Transformer = open_checkpoint(trained).network("ema", torch.device("cpu"))
    plain = drawn(trained, tmp_path / "noise", **one, internal_scale=1.0)
    y = torch.from_numpy(np.array(samples.labels))
    x1 = torch.from_numpy(np.array(plain.rows.array("latents")))
    # Whatever the noise is, the two sets differ by the heads' difference there.
    from sitcli.machine.seeds import generator

    noise = torch.stack(
        [torch.randn(x1.shape[1:], generator=generator(0, "image", i)) for i in range(2)]
    )
    output, aux = network.two_headed(noise, torch.ones(2), y)
    expected = noise - (aux + 2.5 * (output - aux))
    found = torch.from_numpy(np.array(samples.rows.array("latents")))
    torch.testing.assert_close(found.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(cfg_interval="0,0.5"), "nothing without --cfg-scale"),
        (dict(cfg_scale=2.0, cfg_interval="0.5,0.2"), "0 <= LO < HI <= 1"),
        (dict(cfg_scale=2.0, cfg_interval="a"), "0 <= LO < HI <= 1"),
        (dict(guide_scale=2.0), "nothing without --guide"),
        (dict(t_shift="fast"), "is no shift"),
        (dict(t_shift="2", solver="dopri5", steps=None), "means nothing to --ode"),
        (dict(internal_scale=2.0), "has no second head"),
    ],
    ids=str,
)
def test_sampling_refusals(store: Path, tmp_path: Path, options: dict, message: str) -> None:
    """Fault: an option that is silently left out."""
    finish(train(settings(store, tmp_path / "run", steps=1)))
    with pytest.raises(UsageError, match=message):
        drawn(tmp_path / "run", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_guides_that_do_not_fit(store: Path, trained: Path, tmp_path: Path) -> None:
    """Fault: velocities of other latents, or of another path, taken for a guide's."""
    finish(train(settings(store, tmp_path / "gvp", steps=1, interpolant="gvp")))
    with pytest.raises(UsageError, match="other path"):
        drawn(trained, tmp_path / "out", guide=tmp_path / "gvp")
    with pytest.raises(UsageError, match="the checkpoint itself"):
        drawn(trained, tmp_path / "out", guide=trained)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(t_mean=1.0), "nothing without --t-dist"),
        (dict(sync_blocks="1,2"), "nothing without --layer-sync"),
        (dict(layer_sync=0.2, sync_blocks="2,1"), "not two blocks"),
        (dict(layer_sync=0.2, sync_blocks="1,9"), "not two blocks of 2"),
        (dict(internal_guidance=0.5, aux_block=2), "--aux-block 2"),
        (dict(tread=0.5, tread_blocks="x"), "--tread-blocks x"),
        (dict(repa="0.5,1"), "holds no features"),
        (dict(repa="0.5"), "LAMBDA is above 0"),
        (dict(t_shift="-1"), "is no shift"),
        (dict(rope=True, width=24, heads=4), "multiple of 4 channels"),
    ],
    ids=str,
)
def test_training_refusals(store: Path, tmp_path: Path, options: dict, message: str) -> None:
    """Fault: a recipe that begins, and fails or does nothing."""
    with pytest.raises(UsageError, match=message):
        finish(train(settings(store, tmp_path / "run", steps=1, depth=2, **options)))
    assert not (tmp_path / "run").exists()


def test_defaults_by_depth(store: Path) -> None:
    """Fault: blocks beyond a shallow network's end, or other pairs than the papers'."""

    def resolved(depth: int) -> str:
        more = dict(layer_sync=0.2, internal_guidance=0.5, tread=0.5)
        return plan_training(settings(store, None, steps=1, depth=depth, **more)).summary[
            "objective"
        ]

    for depth, sync, aux, tread in (
        (28, "8,16", 8, "2,24"), (24, "7,14", 8, "2,20"), (12, "3,7", 4, "2,8"),
        (4, "1,2", 1, "1,3"),
    ):  # fmt: skip
        text = resolved(depth)
        assert f"blocks {sync}" in text
        assert f"after block {aux}," in text
        assert f"between {tread}" in text


def test_times_change_when_they_should(store: Path) -> None:
    """Fault: an UNTIL that counts from the other end."""
    run = settings(store, None, t_dist="logit-normal", t_mean=0.0, t_std=1.0, t_dist_until=3)
    assert [make_times(run, step).distribution for step in (0, 2, 3, 9)] == [
        "logit-normal", "logit-normal", "uniform", "uniform",
    ]  # fmt: skip


def test_presets_give_way(tmp_path: Path) -> None:
    """Fault: a preset that beats a flag, or a file that a preset beats."""
    import json

    from tests.tiny import make_store

    latents = make_store(tmp_path / "tiny.h5").path
    (tmp_path / "c.yaml").write_text("train:\n  beta2: 0.9\n")
    command = [
        *SIT, "train", "--preset", "fast-sync", "--latents", str(latents), "--layer-sync", "0.7",
        "--config", str(tmp_path / "c.yaml"), "--steps", "1", "--out", str(tmp_path / "run"),
        "--batch-size", "4", "--precision", "fp32", "--sample-every", "0",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    import yaml

    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["train"]
    assert (kept["layer_sync"], kept["beta2"], kept["tread"], kept["lr"]) == (0.7, 0.9, 0.5, 2e-4)
    command = [
        *SIT, "sample", str(tmp_path / "run"), "--preset", "official-sit", "--ode", "--steps", "3",
        "--num", "2", "--dry-run", "--json",
    ]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    facts = json.loads(done.stdout)
    assert (facts["mode"], facts["steps"], facts["cfg_scale"]) == ("ode", 3, 1.5)
    assert "wt" not in facts


def test_export_of_what_is_beyond(trained: Path, store: Path, tmp_path: Path) -> None:
    """Fault: weights written in a layout whose code computes something else with them."""
    for layout in ("official-sit", "diffusers"):
        with pytest.raises(UsageError, match="no SwiGLU, RMSNorm, QK-norm, RoPE"):
            finish(export(ExportSettings(checkpoint=trained, out=tmp_path / "o", format=layout)))
    ours = tmp_path / "all.safetensors"
    finish(export(ExportSettings(checkpoint=trained, out=ours, format="safetensors")))
    finish(import_weights(ImportSettings(weights=ours, out_dir=tmp_path / "again")))
    again = open_checkpoint(tmp_path / "again")
    assert again.config == open_checkpoint(trained).config
    a = drawn(trained, tmp_path / "a", internal_scale=2.0)
    b = drawn(tmp_path / "again", tmp_path / "b", internal_scale=2.0)
    np.testing.assert_array_equal(a.rows.array("latents"), b.rows.array("latents"))
    # A second head and a projector stay behind; the network is the official one without them.
    finish(train(settings(store, tmp_path / "head", steps=1, depth=2, internal_guidance=0.5)))
    official = tmp_path / "sit.pt"
    finish(
        export(ExportSettings(checkpoint=tmp_path / "head", out=official, format="official-sit"))
    )
    keys = torch.load(official, weights_only=True)
    assert not [key for key in keys if key.startswith("aux_")]


def test_checkpoints_without_it_read_as_before(store: Path, tmp_path: Path) -> None:
    """Fault: fields in every meta.json that older versions do not know."""
    finish(train(settings(store, tmp_path / "run", steps=1)))
    meta = open_checkpoint(tmp_path / "run").meta
    assert meta["process"].keys() == {"interpolant", "prediction", "loss_weight"}
    assert not {"rope", "aux_block", "mlp"} & meta["transformer"].keys()
    assert "t_shift" not in meta


# --- features ------------------------------------------------------------------------------------


class Halves(nn.Module):
    """A map of 2 x 2 averages, and their squares."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255
        means = nn.functional.adaptive_avg_pool2d(x, (2, 2))
        return torch.cat([means, means * means], dim=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[Path, Path]:
    """21 pictures in three classes, one broken, and an encoder's file."""
    folder = tmp_path_factory.mktemp("features")
    drawn_, labels = pictures(21)
    for label in range(3):
        write_folder(folder / "images" / f"c{label}", drawn_[labels == label])
    (folder / "images" / "c1" / "003.png").write_bytes(b"no picture")
    torch.jit.save(torch.jit.script(Halves()), str(folder / "halves.pt"))
    return folder / "images", folder / "halves.pt"


def encoding(images: tuple[Path, Path], out: Path, **changes: Any) -> EncodeSettings:
    source, encoder = images
    options = dict(source=source, out=out, vae="pixels", image_size=8, batch_size=5, workers=0)
    return EncodeSettings(**options | dict(align_features=str(encoder)) | changes)


def test_features_are_of_their_images(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Fault: features of other rows, of the image where the mirrored one is meant, or in a broken
    image's row."""
    result = finish(encode(encoding(images, tmp_path / "a.h5")))
    assert result.data["align"]["shape"] == [6, 2, 2]
    opened = LatentStore.open(tmp_path / "a.h5")
    assert (opened.align_width, opened.num_items) == (6, 20)
    items = np.array([0, 7, 19, 3])
    flip = np.array([False, True, False, True])
    pixels = (opened.batch(items, flip=flip) + 1) * 127.5
    expected = Halves()(pixels.round().to(torch.uint8))
    found = torch.from_numpy(opened.features(items, flip=flip)).float()
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    assert finish(inspect(InspectSettings(path=tmp_path / "a.h5", verify=True)))
    joined = JoinedStores([opened, opened])
    again = joined.features(np.array([20, 7]), flip=np.array([False, True]))
    np.testing.assert_array_equal(again, opened.features(np.array([0, 7]), flip=flip[:2]))


def test_interrupted_features_go_on(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Fault: rows flagged before their features are there."""
    finish(encode(encoding(images, tmp_path / "whole.h5")))
    cut = encode(encoding(images, tmp_path / "cut.h5"))
    for _ in range(4):
        next(cut)
    cut.close()
    assert not Rows(tmp_path / "cut.h5").attrs["complete"]
    finish(encode(encoding(images, tmp_path / "cut.h5")))
    whole, parts = Rows(tmp_path / "whole.h5"), Rows(tmp_path / "cut.h5")
    assert whole.names == parts.names
    for name in whole.names:
        np.testing.assert_array_equal(whole.array(name), parts.array(name), err_msg=name)


def test_damaged_features_are_found(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Fault: a store whose features have rotted, and that says it is whole."""
    finish(encode(encoding(images, tmp_path / "a.h5")))
    with Rows(tmp_path / "a.h5", writable=True) as file:
        row = np.array(file.array("features_flipped")[4:5])
        row[0, 0, 0, 0] += 1
        file.write([4], features_flipped=row)
    with pytest.raises(SitError, match=r"c0/004\.png"):
        finish(inspect(InspectSettings(path=tmp_path / "a.h5", verify=True)))


def test_repa_learns_the_features(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Fault: a projection that is not trained, or features of other images than the batch's."""
    finish(encode(encoding(images, tmp_path / "a.h5")))
    more = dict(repa="1,1", depth=2, steps=60, lr=3e-3, log_every=10, save_every=30)
    finish(train(settings(tmp_path / "a.h5", tmp_path / "run", **more)))
    curve = [entry["loss_repa"] for entry in RunDir(tmp_path / "run").read_metrics()]
    assert curve[-1] < 0.5 * curve[0]
    config = open_checkpoint(tmp_path / "run").config
    assert (config.align_block, config.align_width) == (1, 6)
    assert drawn(tmp_path / "run", tmp_path / "drawn").complete


def test_feature_refusals(images: tuple[Path, Path], tmp_path: Path, store: Path) -> None:
    """Fault: a hub asked in vain with a traceback, a vector taken for a map, a store without."""
    with pytest.raises(SitError, match="weights") as missing:
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="dinov2",
                               align_weights=tmp_path / "none.pth")))  # fmt: skip
    assert "no such file" in missing.value.message
    with pytest.raises(UsageError, match="timm has no model"):
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="timm:nothing")))
    with pytest.raises(UsageError, match="neither dinov2"):
        finish(encode(encoding(images, tmp_path / "b.h5", align_features="halvs.pt")))

    class Vector(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    torch.jit.save(torch.jit.script(Vector()), str(tmp_path / "vector.pt"))
    with pytest.raises(SitError, match="rows, columns"):
        finish(
            encode(encoding(images, tmp_path / "b.h5", align_features=str(tmp_path / "vector.pt")))
        )
    assert not (tmp_path / "b.h5").exists()
    finish(encode(encoding(images, tmp_path / "a.h5")))
    with pytest.raises(UsageError, match="--align-features"):
        finish(encode(encoding(images, tmp_path / "a.h5", align_features=None)))


def test_timm_features_need_their_weights(images: tuple[Path, Path], tmp_path: Path) -> None:
    """Fault: prefix tokens taken for places, or a convolutional map turned round."""
    import timm

    for name, shape in (("vit_tiny_patch16_224", (192, 14, 14)), ("resnet10t", (512, 6, 6))):
        torch.manual_seed(0)
        network = timm.create_model(name, pretrained=False)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
        options = dict(align_features=f"timm:{name}", align_weights=tmp_path / f"{name}.pth")
        result = finish(encode(encoding(images, tmp_path / f"{name}.h5", flip=False, **options)))
        assert tuple(result.data["align"]["shape"]) == shape
