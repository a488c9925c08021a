"""`sit inspect` on real, tiny artefacts of every kind: whole, unfinished and damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sitcli import names
from sitcli.autoencoders.base import to_signed
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.commands.inspect.plot import curves_of
from sitcli.commands.inspect.stage import inspect
from sitcli.core.flow import Flow
from sitcli.core.interpolant import path_at
from sitcli.core.wt import LossCurve, wt_of
from sitcli.engine.optimizer_state import MOMENTS, write_snapshot
from sitcli.errors import SitError, UsageError
from sitcli.events import Result, Warn
from sitcli.latents.layout import create_store, row_checksums
from sitcli.latents.readback import ReadBack
from sitcli.latents.store import LatentStore
from sitcli.model.config import TransformerConfig
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.runs.meta import checkpoint_meta, latent_facts
from sitcli.runs.run_dir import RunDir
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.tools import InspectSettings
from sitcli.storage.rows import BROKEN, DONE, Rows
from sitcli.storage.tensors import read_tensors, write_tensors

COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]], np.uint8)
NUM = 13  # image 4 is broken


def run(path: Path, **settings) -> Result:
    """The stage's result; its events are read and dropped, as a silent terminal would."""
    stage = inspect(InspectSettings(path=path, device="cpu", **settings))
    while True:
        try:
            next(stage)
        except StopIteration as end:
            return end.value


def facts(result: Result) -> dict[str, str]:
    return dict(result.tables[0].rows)


def make_store(path: Path, *, complete: bool = True, encoded: int = NUM) -> LatentStore:
    """patch-pca latents of one-coloured pictures, a colour per class, flips included."""
    labels = np.arange(NUM) % 3
    noise = np.random.default_rng(0).integers(0, 20, (NUM, 8, 8, 3), dtype=np.uint8)
    images = COLOURS[labels][:, None, None] + noise
    pca = fit_patch_pca(images, patch=4, channels=6)
    latents = pca.encode(to_signed(images)).half().numpy()
    create_store(
        path,
        paths=[f"{label}/{i}.png" for i, label in enumerate(labels)],
        labels=labels,
        class_names=["red", "green", "blue"],
        row_shape=latents.shape[1:],
        kind="latents",
        flips=True,
        autoencoder=pca.spec,
        autoencoder_arrays=pca.arrays,
        scaling=pca.scaling,
        image_size=8,
        crop="adm",
        source="/data/colours",
        source_fingerprint="f" * 64,
        vae="patch-pca",
        batch_size=4,
        precision="fp32",
    )
    status = np.where(np.arange(NUM) == 4, BROKEN, DONE)
    latents[4] = 0
    values = dict(latents=latents, latents_flipped=latents)
    values["crc32"] = row_checksums(latents, latents)
    values["problems"] = ["cut short" if flag == BROKEN else "" for flag in status]
    with Rows(path, writable=True) as file:
        rows = {name: value[:encoded] for name, value in values.items()}
        file.write(np.arange(encoded), status=status[:encoded], **rows)
        store = LatentStore.open(path, allow_incomplete=True)
        read = ReadBack(store)
        for _ in read:
            pass
        facts = dict(mean=read.mean, std=read.std, checksum=read.checksum)
        file.set_attrs(**facts, complete=complete)
    return LatentStore.open(path, allow_incomplete=True)


def overwrite(path: Path, name: str, row: int, value: float) -> None:
    """Damage one row of a row file past its flags, as a bad disk would."""
    with Rows(path, writable=True) as file:
        array = np.array(file.array(name)[row : row + 1])
        array[...] = value
        file.write([row], **{name: array})


def test_store_is_described(tmp_path):
    """Catches facts taken from the wrong attribute, and broken images left out."""
    store = make_store(tmp_path / "a.h5")
    result = run(tmp_path / "a.h5", verify=True)
    shown, data = facts(result), result.data
    assert "12, and their mirror images; 1 broken: 1/4.png" in shown["images"]
    assert "3 of 3 to 5 images: red, green, blue" in shown["classes"]
    assert shown["latents"] == "6 x 2 x 2 float16, deterministic"
    assert "/data/colours" in shown["source"]
    assert (data["num_items"], data["num_rows"], data["complete"]) == (12, NUM, True)
    assert data["broken"] == [{"name": "1/4.png", "reason": "cut short"}]
    assert data["class_counts"] == [5, 3, 4]
    assert data["autoencoder"] == store.autoencoder
    assert data["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert data["verified"]
    assert result.next == f"sit train --latents {tmp_path / 'a.h5'}"
    json.dumps(data)


def test_unfinished_store_is_described_too(tmp_path):
    """Refusing it would hide the very command that finishes it."""
    make_store(tmp_path / "a.h5", complete=False, encoded=8)
    result = run(tmp_path / "a.h5", verify=True, preview=tmp_path / "grid.png")
    assert facts(result)["complete"] == "no"
    assert "7 of 13 encoded" in facts(result)["images"]
    assert result.next.startswith("sit encode-latents /data/colours")
    assert (tmp_path / "grid.png").exists()


def test_preview_rows_are_the_classes(tmp_path):
    """Rows under another class's name, or a forgotten unscaling, would mislead every reader."""
    make_store(tmp_path / "a.h5")
    result = run(tmp_path / "a.h5", preview=tmp_path / "new" / "grid.png")
    assert result.path == tmp_path / "new" / "grid.png"
    picture = np.asarray(Image.open(result.path)).astype(int)
    assert picture.shape[0] == 3 * 66 + 2  # three rows of 64 pixels and their gaps
    for row, colour in enumerate(COLOURS):
        tile = picture[2 + row * 66 + 20 : 2 + row * 66 + 40, -40:-20]
        assert np.abs(tile.mean((0, 1)) - (colour + 9.5)).max() < 8


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda p: overwrite(p, "latents_flipped", 3, np.nan),
            "other latents than were written: 0/3.png; some latents are not fin",
        ),
        (
            lambda p: overwrite(p, "latents", 3, 0.5),
            "1 images have other latents than were written: 0/3.png",
        ),
        (lambda p: overwrite(p, "labels", 3, 7), "labels run from 0 to 7"),
        (lambda p: overwrite(p, "labels", 3, 1), "do not have the checksum"),
        (lambda p: overwrite(p, "autoencoder_basis", 0, 0), "basis does not have the hash"),
    ],
)
def test_verify_finds_damage(tmp_path, damage, message):
    """A check that reads the wrong rows, or compares a sum with itself, would pass all of these."""
    make_store(tmp_path / "a.h5")
    damage(tmp_path / "a.h5")
    run(tmp_path / "a.h5")  # without --verify nothing is read
    with pytest.raises(SitError, match=message):
        run(tmp_path / "a.h5", verify=True)


def test_verify_finds_a_store_that_is_not_complete_but_says_so(tmp_path):
    """`complete` set too early is what kill -9 tests look for."""
    make_store(tmp_path / "a.h5", encoded=9)
    with pytest.raises(SitError, match="marked complete, but 4 rows"):
        run(tmp_path / "a.h5", verify=True)


def test_what_is_not_ours(tmp_path):
    """Each of these used to be a traceback of h5py, json or yaml somewhere."""
    import h5py

    make_store(tmp_path / "cut.h5")
    with open(tmp_path / "cut.h5", "rb+") as file:
        file.truncate(3000)
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["x"] = np.zeros(3)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "meta.json").write_text("{}")
    make_store(tmp_path / "lost.h5")
    with h5py.File(tmp_path / "lost.h5", "r+") as file:
        del file.attrs["scaling"]
    expected = {
        "nothing": "there is no",
        "cut.h5": "cut.h5",
        "text.h5": "is not a file of sit's",
        "foreign.h5": "not one that sit wrote",
        "photos": "is not a folder of sit's",
        "lost.h5": "is damaged: no 'scaling'",
    }
    for name, message in expected.items():
        with pytest.raises(SitError, match=message) as failure:
            run(tmp_path / name)
        assert "\n" not in failure.value.message


def make_run(folder: Path) -> RunDir:
    """A run with checkpoints at steps 10 and 20 and one whose saving was interrupted."""
    store = make_store(folder.parent / "a.h5")
    config = TransformerConfig(
        input_size=2, patch=1, channels=6, out_channels=6, width=16, depth=1, heads=2, num_classes=3
    )
    directory = RunDir(folder)
    weights = Transformer(config).state_dict()
    for step in (10, 20):
        path = directory.begin_save(step)
        write_tensors(path / "model.safetensors", weights)
        write_tensors(path / "ema.safetensors", weights)
        arrays = {k: torch.from_numpy(v) for k, v in store.autoencoder_arrays.items()}
        write_tensors(path / "autoencoder.safetensors", arrays)
        parameters = list(Transformer(config).named_parameters())
        moments = {
            f"{moment} {name} 0": torch.zeros(parameter.numel())
            for name, parameter in parameters
            for moment in MOMENTS
        }
        write_snapshot(path, moments, {"step": "1.0"}, rank=0, world_size=1)
        bins = {"sums": [0.0], "counts": [0]}
        process = Flow(interpolant="gvp")
        meta = checkpoint_meta(config, process, latents=latent_facts(store), loss_by_t=bins)
        directory.commit_save(step, meta)
        directory.log_metrics({"step": step, "loss": 1 / step, "images_per_second": 5.0})
    directory.begin_save(30)
    directory.config.write_text("train:\n  model: SiT-Mi/1\n  steps: 40\n  lr: 0.0001\n")
    return directory


def test_run_and_step_are_described(tmp_path):
    """Catches an unfinished checkpoint counted, the oldest taken for the newest, and lost facts."""
    directory = make_run(tmp_path / "run")
    result = run(directory.path, verify=True)
    shown = facts(result)
    assert result.data["steps"] == [10, 20]
    assert result.data["interrupted"] == [".saving-step-0000030"]
    assert shown["step"] == "20"
    assert "gvp, velocity prediction" in shown["process"]
    assert "model SiT-Mi/1, steps 40, lr 0.0001" in shown["settings"]
    assert "step 20, loss 0.05" in shown["last logged"]
    assert result.tables[1].rows[0][:2] == ["10", "0.10000"]
    assert result.next == f"sit sample {directory.path}"
    json.dumps(result.data)

    step = run(directory.step_path(10), verify=True)
    assert facts(step)["step"] == "10"
    assert step.data["params"] == result.data["newest"]["params"] > 0
    with pytest.raises(UsageError, match="no pictures to preview"):
        run(directory.path, preview=tmp_path / "grid.png")


def test_run_without_checkpoints(tmp_path):
    """A run killed before its first save is not an error."""
    directory = make_run(tmp_path / "run")
    for step in directory.steps():
        shutil.rmtree(directory.step_path(step))
    result = run(directory.path, verify=True)
    assert facts(result)["checkpoints"] == "none"
    assert result.next == f"sit train --out {directory.path}"


def test_verify_reads_every_weight_of_every_step(tmp_path):
    """Looking at the newest, or at model but not ema, would miss each of these."""
    directory = make_run(tmp_path / "run")
    ema = directory.step_path(10) / "ema.safetensors"
    sound = read_tensors(ema)
    broken = {k: v.clone() for k, v in sound.items()}
    broken["x_embedder.proj.bias"][0] = torch.inf
    write_tensors(ema, broken)
    with pytest.raises(SitError, match=r"step 10: ema.safetensors is not finite: x_embedder"):
        run(directory.path, verify=True)
    write_tensors(ema, {k: v for k, v in sound.items() if k != "pos_embed"})
    with pytest.raises(SitError, match="does not fit the network: pos_embed"):
        run(directory.step_path(10), verify=True)
    ema.write_bytes(ema.read_bytes()[:-50])
    with pytest.raises(SitError, match="cannot read"):
        run(directory.path, verify=True)
    (directory.step_path(20) / "meta.json").write_text('{"format": "sit-checkpoint"}')
    with pytest.raises(SitError, match="is damaged: no 'format_version'"):
        run(directory.path)


def make_samples(folder: Path, *, done: int = 6) -> SampleSet:
    """Six one-coloured images of three classes, of which the last `done` are drawn."""
    labels = np.arange(6) % 3
    samples = SampleSet.create(
        folder / "samples.h5",
        labels=labels,
        seeds=np.arange(6),
        image_size=(8, 8),
        latent_shape=(2, 4, 4),
        meta={"class_names": ["red", "green", "blue"], "solver": "heun", "cfg_scale": 1.5},
    )
    noise = np.random.default_rng(0).integers(0, 20, (6, 8, 8, 3), dtype=np.uint8)
    images = COLOURS[labels][:, None, None] + noise
    latents = np.zeros((6, 2, 4, 4), np.float32)
    drawn = slice(6 - done, 6)
    arrays = dict(images=images[drawn], latents=latents[drawn])
    samples.write(np.arange(6)[drawn], evaluations=33 * done, **arrays)
    if done == 6:
        samples.finish()
    return samples


def test_samples_are_described(tmp_path):
    """Catches a sampler's settings left out, and an unfinished set called complete."""
    make_samples(tmp_path / "set")
    result = run(tmp_path / "set", verify=True, preview=tmp_path / "grid.png")
    shown = facts(result)
    assert shown["images"] == "6, 8 x 8 pixels, latents kept"
    assert (shown["solver"], shown["cfg scale"], shown["evaluations"]) == ("heun", "1.5", "198")
    assert shown["evaluations per image"] == "33.0"
    assert result.next == f"sit evaluate {tmp_path / 'set'}"
    picture = np.asarray(Image.open(tmp_path / "grid.png")).astype(int)
    assert picture[20, -30].argmax() == 0
    assert picture[20 + 66, -30].argmax() == 1

    make_samples(tmp_path / "part", done=4)
    part = run(tmp_path / "part" / "samples.h5", verify=True, preview=tmp_path / "part.png")
    assert np.asarray(Image.open(tmp_path / "part.png"))[20, 20].max() > 150  # no blank image
    assert "4 of 6 drawn" in facts(part)["images"]
    assert not part.data["complete"]


def test_verify_finds_damaged_samples(tmp_path):
    """Latents that are not numbers, labels of no class, and a meta.json of another set."""
    make_samples(tmp_path / "set")
    overwrite(tmp_path / "set" / "samples.h5", "latents", 2, np.nan)
    with pytest.raises(SitError, match="latents are not finite"):
        run(tmp_path / "set", verify=True)
    overwrite(tmp_path / "set" / "samples.h5", "latents", 2, 0)
    (tmp_path / "set" / "meta.json").write_text("{}")
    with pytest.raises(SitError, match=r"meta.json differs"):
        run(tmp_path / "set", verify=True)


def test_preview_that_cannot_be_written(tmp_path):
    """The system's error would be a traceback."""
    make_store(tmp_path / "a.h5")
    (tmp_path / "file").write_text("")
    for preview in (tmp_path / "file" / "grid.png", tmp_path, Path(".")):
        with pytest.raises(SitError, match="cannot write"):
            run(tmp_path / "a.h5", preview=preview)


def measured(directory: RunDir, interpolant: str, *, means=(1.0, None, 4.0, 0.5)) -> Path:
    """The newest step of `make_run`, as if these losses had been measured along that path."""
    step = directory.newest()
    meta = json.loads((step / "meta.json").read_text())
    meta["process"]["interpolant"] = interpolant
    counts = [0 if mean is None else 8 for mean in means]
    sums = [8 * (mean or 0) for mean in means]
    meta["loss_by_t"] = {"sums": sums, "counts": counts}
    (step / "meta.json").write_text(json.dumps(meta))
    return step


@pytest.mark.parametrize("interpolant", names.INTERPOLANTS)
def test_curves_are_what_the_sampler_uses(tmp_path, interpolant):
    """Catches another interpolant's path, a w_t left out, and a loss read at the wrong times."""
    step = measured(make_run(tmp_path / "run"), interpolant)
    times = [0.02, 0.3, 0.5, 0.99]
    curves = curves_of(open_checkpoint(step), times, eta=0.02)
    t = torch.tensor(times)
    path, loss = path_at(interpolant, t, t), LossCurve(values=(1.0, 1.0, 4.0, 0.5))
    assert list(curves.wt) == list(names.WTS)
    for name, values in curves.wt.items():
        expected = wt_of(name, eta=0.02, loss_curve=loss)(t, path)
        assert values == pytest.approx(expected.tolist(), rel=1e-4)
    assert curves.loss == pytest.approx([1.0, 1.0, 2.5, 0.5])
    assert curves.means == [1.0, None, 4.0, 0.5]  # an empty bin is not called measured
    assert curves.counts == [8, 0, 8, 8]
    # sqrt(L_1 / 2 eta), lowered by the finite w_KL of vp alone, which is beta_1 = 20 at t = 1.
    inverse = 1 / 20 if interpolant == "vp" else 0
    assert curves.kl_eta_end == pytest.approx((0.5 / (0.5 * inverse**2 + 0.04)) ** 0.5, rel=1e-3)


def test_plot_and_table(tmp_path):
    """Catches an eta that does not reach the picture, JSON's infinities, and an older step."""
    directory = make_run(tmp_path / "run")
    step = measured(directory, "linear")
    result = run(directory.path, plot=True)
    picture = result.path
    assert picture == directory.path / "w_t-step-0000020.png"
    first = picture.read_bytes()
    assert picture.read_bytes().startswith(b"\x89PNG")
    curves = result.data["curves"]
    facts = [curves[name] for name in ("step", "interpolant", "prediction", "eta")]
    assert facts == [20, "linear", "velocity", 0.1]
    assert len(curves["t"]) == len(curves["loss"]) == len(curves["wt"]["kl"]) > 100
    json.dumps(result.data, allow_nan=False)
    table = result.tables[-1]
    assert table.header == ["t", "L_t", *names.WTS]
    assert [float(line[0]) for line in table.rows] == [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95]
    assert table.rows[3][:3] == ["0.5", "2.5", "2"]

    again, other = (run(step, plot=True, eta=eta).path.read_bytes() for eta in (0.1, 0.01))
    assert again == first != other


def test_plot_without_a_measured_loss(tmp_path):
    """An imported checkpoint has none: no failure, no invented curve, no silence."""
    directory = make_run(tmp_path / "run")
    stage = inspect(InspectSettings(path=directory.path, plot=True, device="cpu"))
    warning = next(stage)
    assert isinstance(warning, Warn)
    assert "no measured loss" in warning.text
    with pytest.raises(StopIteration) as end:
        next(stage)
    result = end.value.value
    assert result.tables[-1].header == ["t", *(name for name in names.WTS if name != "kl-eta")]
    curves = result.data["curves"]
    assert (curves["loss"], curves["kl_eta_end"], curves["eta"]) == ([], None, None)
    assert "kl-eta" not in curves["wt"]
    assert result.path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("means", [(0.0, 0.0), (0.0, 3.0), (1e-9, 1e9), (2.0,)])
@pytest.mark.parametrize("eta", [1e-9, 1e9])
def test_plot_of_odd_losses(tmp_path, means, eta):
    """A zero on a logarithmic axis, or limits the wrong way round, warns or fails."""
    step = measured(make_run(tmp_path / "run"), "gvp", means=means)
    assert run(step, plot=True, eta=eta).path.exists()


def test_plot_refusals(tmp_path):
    """Each would be an option that does nothing, or a traceback."""
    directory = make_run(tmp_path / "run")
    make_samples(tmp_path / "set")
    cases = [
        (tmp_path / "a.h5", dict(plot=True), "is no run or step"),
        (tmp_path / "set", dict(plot=True), "is no run or step"),
        (directory.path, dict(eta=0.1), "--eta is of the plot's kl-eta"),
        (directory.path, dict(plot=True, eta=0.1), "no measured loss"),
    ]
    for eta in (0.0, float("inf"), float("nan")):
        cases.append((directory.path, dict(plot=True, eta=eta), "must be positive"))
    for path, options, message in cases:
        with pytest.raises(UsageError, match=message) as failure:
            run(path, **options)
        assert "\n" not in failure.value.message
    assert not list(directory.path.glob("*.png"))
    meta = measured(directory, "gvp") / "meta.json"
    meta.write_text(meta.read_text().replace('"sums"', '"sum"'))
    with pytest.raises(SitError, match="is damaged: no 'sums'"):
        run(meta.parent, plot=True)
    for step in directory.steps():
        shutil.rmtree(directory.step_path(step))
    with pytest.raises(SitError, match="no complete checkpoint"):
        run(directory.path, plot=True)
