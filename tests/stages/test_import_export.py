"""`sit import` and `sit export`: weights both ways, bit for bit, and what is refused."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sitcli import names
from sitcli.autoencoders.diffusers_vae import load_folder
from sitcli.commands.evaluate.likelihood import likelihood
from sitcli.commands.export import export
from sitcli.commands.import_weights import import_weights, plan
from sitcli.commands.inspect.stage import inspect
from sitcli.commands.sample.stage import sample
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import position_embedding
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.evaluate import EvaluateSettings
from sitcli.settings.sample import SampleSettings
from sitcli.settings.tools import InspectSettings
from sitcli.settings.weights import ExportSettings, ImportSettings
from sitcli.storage.tensors import read_tensors, write_tensors
from sitcli.weights.formats import FORMATS
from sitcli.weights.lineages import LINEAGES
from tests.stages.test_sample import make_run, random_network
from tests.tiny import finish, make_store

CPU = torch.device("cpu")
# Width 128 is a preset's, so that heads are known: 4 of them.
CONFIG = TransformerConfig(
    input_size=8, patch=2, channels=4, out_channels=8, width=128, depth=4, heads=4, num_classes=5
)


def official(config: TransformerConfig = CONFIG) -> dict[str, Tensor]:
    """Random weights as the official trainers save them: positions first."""
    state = random_network(config).state_dict()
    return {"pos_embed": state.pop("pos_embed"), **state}


def save(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def bring(weights: Path, out: Path, **more):
    finish(import_weights(ImportSettings(weights=weights, out_dir=out, **more)))
    return open_checkpoint(out)


def take(run: Path, out: Path, format: str, **more) -> Path:
    finish(export(ExportSettings(checkpoint=run, out=out, format=format, **more)))
    return out


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def draw(run: Path, out: Path, **more) -> np.ndarray:
    settings = SampleSettings(
        checkpoint=run, out=out, latents_only=True, device="cpu", precision="fp32", **more
    )
    finish(sample(settings))
    return np.array(SampleSet.open(out).rows.array("latents"))


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(4, 4, 8, 8)).astype("f4"))
    return tmp_path / "noise.npy"


def test_lists_are_their_tables() -> None:
    """Fault: a lineage or format that no option names, or one that does nothing."""
    assert tuple(LINEAGES) == names.LINEAGES
    assert tuple(FORMATS) == names.EXPORT_FORMATS


@pytest.mark.parametrize(
    ("file", "format"),
    [("SiT-Mi-2-64x64.pt", "official-sit"), ("DiT-Mi-2-64x64.pt", "official-dit")],
)
def test_official_weights_come_back_bit_for_bit(tmp_path: Path, file: str, format: str) -> None:
    """Fault: any tensor touched, lost, renamed or reordered between import and export."""
    state = official()
    checkpoint = bring(save(tmp_path / file, state), tmp_path / "run")
    assert checkpoint.config == CONFIG
    assert checkpoint.kinds == ["ema"]
    assert checkpoint.meta["lineage"] == format
    assert checkpoint.meta["guided_channels"] == "3"
    reverse = format == "official-sit"
    assert checkpoint.meta["time_convention"] == ("reversed" if reverse else "paper")
    assert isinstance(checkpoint.process, Flow if reverse else Diffusion)
    back = torch.load(take(tmp_path / "run", tmp_path / "back.pt", format), weights_only=True)
    assert list(back) == list(state)
    assert equal(back, state)
    told = finish(inspect(InspectSettings(path=tmp_path / "run", verify=True, device="cpu")))
    assert told.data["verified"]


@pytest.mark.parametrize("layout", ["safetensors", "diffusers"])
@pytest.mark.parametrize("file", ["SiT-Mi-2-64x64.pt", "DiT-Mi-2-64x64.pt"])
def test_everything_returns_from_our_own_formats(tmp_path: Path, file: str, layout: str) -> None:
    """Fault: a bit or a fact that is lost on the way, and with it what the samples would be."""
    first = bring(save(tmp_path / file, official()), tmp_path / "a")
    out = tmp_path / ("x.safetensors" if layout == "safetensors" else "x")
    second = bring(take(tmp_path / "a", out, layout), tmp_path / "b")
    assert equal(first.weights("ema"), second.weights("ema"))
    forget = dict(weights_source=None, sit_version=None)
    assert first.meta | forget == second.meta | forget
    if layout == "safetensors":
        plain = read_tensors(out)
        assert equal(plain, official())


def test_a_run_of_ours_returns_with_its_autoencoder(tmp_path: Path) -> None:
    """Fault: a run that can be exported but not used again."""
    run = make_run(tmp_path, process=Flow(interpolant="gvp"))
    again = bring(take(run, tmp_path / "x.safetensors", "safetensors"), tmp_path / "again")
    assert again.step == 7
    options = dict(num=3, steps=4)
    np.testing.assert_array_equal(
        draw(run, tmp_path / "1.h5", **options),
        draw(tmp_path / "again", tmp_path / "2.h5", **options),
    )


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise"])
def test_our_weights_run_in_the_official_convention(
    tmp_path: Path, prediction: str, noise: Path
) -> None:
    """Fault: a time that is not turned, or turned without its sign: our network of t and the
    exported one of 1 - t must say the same, and twice the channels are there as the official
    sampler at 256 builds them."""
    run = make_run(tmp_path, process=Flow(prediction=prediction))
    ours = open_checkpoint(run)
    state = torch.load(take(run, tmp_path / "x.pt", "official-sit"), weights_only=True)
    assert state["final_layer.linear.weight"].shape == (2 * 2 * 6, 32)
    config = dataclasses.replace(ours.config, out_channels=6)
    network = random_network(config)
    network.load_state_dict(state, strict=True)
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    for t in (0.0, 0.013, 0.4, 1.0):
        times = torch.full((4,), t)
        with torch.no_grad():
            expected = ours.network("ema", CPU)(x, times, y)
            found = network(x, 1 - times, y)
        sign = -1 if prediction == "velocity" else 1
        torch.testing.assert_close(sign * found[:, :3], expected, atol=3e-5, rtol=1e-4)
        assert not found[:, 3:].any()
    again = bring(
        tmp_path / "x.pt", tmp_path / "b", lineage="official-sit", vae="pixels", heads=2,
        prediction=prediction,
    )  # fmt: skip
    assert again.meta["time_convention"] == "reversed"
    pair = [
        draw(path, tmp_path / f"{i}.h5", num=3, steps=5)
        for i, path in enumerate((run, tmp_path / "b"))
    ]
    np.testing.assert_allclose(*pair, atol=2e-5 * np.abs(pair[0]).max())


def test_an_official_loop_draws_what_we_draw(tmp_path: Path, noise: Path) -> None:
    """Fault: any disagreement with the official sampler on its own weights: its Euler steps with
    guidance on three channels, from the same noise, written out."""
    weights = save(tmp_path / "SiT-Mi-2-64x64.pt", official())
    bring(weights, tmp_path / "run")
    ours = draw(
        tmp_path / "run", tmp_path / "x.h5", noise=noise, solver="euler", steps=10, cfg_scale=2.0,
        classes="3,0",
    )  # fmt: skip
    network = random_network(CONFIG)
    network.load_state_dict(torch.load(weights, weights_only=True))
    x = torch.from_numpy(np.load(noise))
    y = torch.tensor([3, 0, 3, 0, 5, 5, 5, 5])
    with torch.no_grad():
        for k in range(10):
            out = network(torch.cat([x, x]), torch.full((8,), k / 10), y)[:, :4]
            c, u = out.chunk(2)
            x = x + torch.cat([u[:, :3] + 2.0 * (c[:, :3] - u[:, :3]), c[:, 3:]], dim=1) / 10
    np.testing.assert_allclose(ours, x.numpy(), atol=5e-6)


def pipeline_of(folder: Path):
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(folder), trust_remote_code=True
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


PARITY = [
    ("SiT-Mi-2-64x64.pt", {}, dict(solver="heun", steps=6), {}),
    ("SiT-Mi-2-64x64.pt", dict(interpolant="gvp"),
     dict(solver="euler", steps=6, cfg_scale=1.5), {}),
    ("SiT-Mi-2-64x64.pt", dict(interpolant="vp", prediction="score"),
     dict(solver="heun", steps=4), {}),
    ("SiT-Mi-2-64x64.pt", dict(prediction="noise"), dict(solver="euler", steps=4), {}),
    ("SiT-Mi-2-64x64.pt", dict(prediction="data"), dict(solver="heun", steps=4), {}),
    ("DiT-Mi-2-64x64.pt", {}, dict(ddim=True, steps=7, cfg_scale=1.5), dict(solver="ddim")),
    ("DiT-Mi-2-64x64.pt", {}, dict(ddim=True, steps=5, eta=1.0),
     dict(solver="ddim", eta=1.0, drawn=True)),
    ("DiT-Mi-2-64x64.pt", {}, dict(ddpm=True, steps=6), dict(solver="ddpm", drawn=True)),
]  # fmt: skip


@pytest.mark.parametrize(("file", "more", "options", "told"), PARITY)
def test_diffusers_draws_what_we_draw(
    tmp_path: Path, noise: Path, file: str, more: dict, options: dict, told: dict
) -> None:
    """Fault: diffusers' frequencies, LayerNorms, guidance or steps, not ours, beyond 1e-5."""
    from sitcli.machine.seeds import generator

    bring(save(tmp_path / file, official()), tmp_path / "run", **more)
    pipe = pipeline_of(take(tmp_path / "run", tmp_path / "folder", "diffusers"))
    told = dict(told)
    start: dict = dict(latents=torch.from_numpy(np.load(noise)))
    given: dict = dict(noise=noise)
    if told.pop("drawn", False):  # noise in every step: from the same generators
        start = dict(generator=[generator(0, "image", i) for i in range(4)])
        given = dict(num=4)
    ours = draw(tmp_path / "run", tmp_path / "x.h5", classes="3,0", **given, **options)
    images = pipe(
        class_labels=[3, 0, 3, 0],
        guidance_scale=options.get("cfg_scale", 1.0),
        num_inference_steps=options["steps"],
        output_type="latent",
        **{"solver": options.get("solver"), **told},
        **start,
    ).images
    scale = max(1.0, float(np.abs(ours).max()))
    np.testing.assert_allclose(images.numpy() / scale, ours / scale, atol=1e-5)


def test_pixels_become_pictures_in_diffusers(tmp_path: Path) -> None:
    """Fault: a folder without a vae that gives no images where the latents are the image."""
    pipe = pipeline_of(take(make_run(tmp_path), tmp_path / "folder", "diffusers"))
    images = pipe(class_labels=[0, 2], num_inference_steps=2).images
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    with pytest.raises(ValueError, match="not for this model"):
        pipe(class_labels=[0], solver="ddim")


def test_a_vae_goes_with_the_folder(tmp_path: Path) -> None:
    """Fault: an exported folder that cannot decode, or a vae of another kind than the run's."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, layers_per_block=1,
    )  # fmt: skip
    vae.save_pretrained(tmp_path / "vae")
    run = bring(
        save(tmp_path / "SiT-Mi-2-16x16.pt", official()),
        tmp_path / "run",
        vae=str(tmp_path / "vae"),
    )
    spec = load_folder(tmp_path / "vae", device=CPU, dtype=torch.float32).spec
    assert run.latents["autoencoder"]["hash"] == spec["hash"]
    assert run.image_size == (16, 16)
    pipe = pipeline_of(take(tmp_path / "run", tmp_path / "folder", "diffusers"))
    (image,) = pipe(class_labels=[1], num_inference_steps=2).images
    assert image.size == (16, 16)
    settings = SampleSettings(
        checkpoint=tmp_path / "run", out=tmp_path / "s", num=2, steps=2, device="cpu"
    )
    finish(sample(settings))
    assert SampleSet.open(tmp_path / "s").images.shape == (2, 16, 16, 3)


def trainer(**args) -> dict:
    """What the official trainers save, optimizer and all."""
    model, ema = official(), official()
    ema["x_embedder.proj.bias"] = ema["x_embedder.proj.bias"] + 1
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    return dict(model=model, ema=ema, opt=optimizer.state_dict(), args=argparse.Namespace(**args))


def test_a_trainers_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    """Faults: a Namespace refused; the model taken for the average; path or prediction lost; a step
    that is forgotten."""
    args = dict(path_type="GVP", prediction="score", loss_weight="velocity", model="SiT-Mi/2")
    content = trainer(**args)
    run = bring(save(tmp_path / "0400000.pt", content), tmp_path / "a")
    assert run.step == 400_000
    assert run.process == Flow(interpolant="gvp", prediction="score", loss_weight="velocity")
    assert run.kinds == ["model", "ema"]
    assert equal(run.weights("model"), content["model"])
    assert equal(run.weights("ema"), content["ema"])
    # fast-DiT's, from a wrapper of DDP's; a size of its own says nothing.
    content = trainer(model="DiT-Tiny/2", global_batch_size=256, num_classes=5)
    content["ema"] = {f"module.{key}": value for key, value in content["ema"].items()}
    run = bring(save(tmp_path / "x.pt", content), tmp_path / "b")
    assert run.meta["lineage"] == "official-dit"
    assert run.process == Diffusion()


def test_repas_projectors_are_set_aside(tmp_path: Path) -> None:
    """Fault: REPA's weights refused for their projectors, or run in the official direction."""
    state = official(dataclasses.replace(CONFIG, out_channels=4))
    extra = {"projectors.0.0.weight": torch.ones(3, 3)}
    run = bring(save(tmp_path / "last.pt", {**state, **extra}), tmp_path / "run")
    assert (run.meta["lineage"], run.meta["time_convention"]) == ("repa", "paper")
    assert run.meta["guided_channels"] == "all"
    assert equal(run.weights("ema"), state)
    assert equal(read_tensors(run.path / "set-aside.safetensors"), extra)


def test_diffusers_own_folder(tmp_path: Path) -> None:
    """Fault: a stock folder, without our notes, that is not read, or read under other keys."""
    first = bring(save(tmp_path / "DiT-Mi-2-64x64.pt", official()), tmp_path / "a")
    folder = take(tmp_path / "a", tmp_path / "folder", "diffusers")
    (folder / "sit.safetensors").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"class {i}, other name" for i in range(5)}
    (folder / "model_index.json").write_text(json.dumps(index))
    run = bring(folder, tmp_path / "b")
    assert run.meta["lineage"] == "diffusers"
    assert run.latents["class_names"][2] == "class 2"
    assert run.config == CONFIG
    assert equal(run.weights("ema"), first.weights("ema"))
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = read_tensors(file)
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        bring(folder, tmp_path / "c", interpolant="gvp")
    write_tensors(file, {**tensors, key: tensors[key] + 1})
    with pytest.raises(SitError, match=r"transformer_blocks\.1.*differs from block 0"):
        bring(folder, tmp_path / "c")


def test_positions_are_kept_recomputed_or_refused(tmp_path: Path) -> None:
    """Faults: another size than asked, rows and columns exchanged, learned positions recomputed."""
    state = official()
    file = save(tmp_path / "SiT-Mi-2.pt", state)
    run = bring(file, tmp_path / "a", image_size="32x96")
    assert run.config.latent_shape == (4, 4, 12)
    assert run.image_size == (32, 96)
    torch.testing.assert_close(run.weights("ema")["pos_embed"], position_embedding(128, 2, 6))
    assert draw(tmp_path / "a", tmp_path / "x.h5", num=2, steps=2).shape == (2, 4, 4, 12)
    # Bits of another sine are kept as they are.
    state["pos_embed"] = state["pos_embed"] + 3e-8
    save(file, state)
    assert equal(bring(file, tmp_path / "b").weights("ema"), state)
    assert equal(bring(file, tmp_path / "c", image_size="64").weights("ema"), state)
    learned = {**state, "pos_embed": state["pos_embed"] + 1}
    save(file, learned)
    result = finish(import_weights(ImportSettings(weights=file, out_dir=tmp_path / "d")))
    assert "not the standard one" in result.data["warnings"][0]
    with pytest.raises(UsageError, match="learned"):
        bring(file, tmp_path / "e", image_size="128")
    del state["pos_embed"]
    save(file, state)
    with pytest.raises(UsageError, match="no pos_embed"):
        bring(file, tmp_path / "e")
    assert bring(file, tmp_path / "f", image_size="64").config == CONFIG
    with pytest.raises(UsageError, match="multiples"):
        bring(file, tmp_path / "g", image_size="72")
    assert not (tmp_path / "e").exists()


def broken(key: str, change) -> dict[str, Tensor]:
    state = official()
    if change is None:
        del state[key]
    else:
        state[key] = change(state[key]) if callable(change) else change
    return state


WRONG = [
    (broken("blocks.1.mlp.fc1.weight", None), "no 'blocks.1.mlp.fc1.weight' (512 x 128)"),
    (broken("blocks.1.mlp.fc1.weight", lambda w: w[:, :7]),
     "'blocks.1.mlp.fc1.weight' is 512 x 7, not 512 x 128"),
    (broken("x_embedder.proj.weight", None), "no 'x_embedder.proj.weight'"),
    (broken("x_embedder.proj.weight", lambda w: w[..., 0]), "not width x channels x patch x patch"),
    (broken("final_layer.linear.bias", lambda b: b * float("nan")), "is not finite"),
    (broken("final_layer.linear.bias", lambda b: b.long()), "not floating point"),
    (broken("blocks.0.extra", torch.zeros(2, 3)), "known design"),
    (broken("extra", torch.zeros(2, 3)), "holds 'extra' (2 x 3)"),
    (broken("blocks.700.attn.qkv.bias", torch.zeros(3)), "too few for 701 blocks"),
    (broken("pos_embed", torch.zeros(1, 15, 128)), "no known grid"),
    ({}, "it holds no tensors"),
    ([1, 2], "it holds no tensors"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_wrong_file_is_one_line_that_names_the_key(tmp_path: Path, content, message: str) -> None:
    """Fault: torch's page of keys, or a network that is not the file's."""
    file = save(tmp_path / "SiT-x.pt", content)
    with pytest.raises(SitError) as caught:
        bring(file, tmp_path / "run")
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert not (tmp_path / "run").exists()


def test_what_nothing_tells_is_asked(tmp_path: Path) -> None:
    """Fault: a guess between two networks that look alike, whose samples would be noise."""
    file = save(tmp_path / "weights.pt", official())
    with pytest.raises(UsageError, match="look alike") as caught:
        bring(file, tmp_path / "run")
    assert "--model" in caught.value.hint
    assert bring(file, tmp_path / "a", model="DiT-Mi/2").meta["lineage"] == "official-dit"
    assert bring(file, tmp_path / "b", model="SiT-Mi/2").meta["model"] == "SiT-Mi/2"
    with pytest.raises(UsageError, match="has 12 blocks of width 768 and patch 2"):
        bring(file, tmp_path / "c", model="SiT-B/2")
    half = save(tmp_path / "half.pt", official(dataclasses.replace(CONFIG, out_channels=4)))
    with pytest.raises(UsageError, match="opposite directions"):
        bring(half, tmp_path / "c", model="SiT-Mi/2")
    odd = dataclasses.replace(CONFIG, width=96, heads=3)
    with pytest.raises(UsageError, match="leave no trace"):
        bring(save(tmp_path / "SiT-odd.pt", official(odd)), tmp_path / "c")
    assert bring(tmp_path / "SiT-odd.pt", tmp_path / "d", heads=3).config == odd
    three = dataclasses.replace(CONFIG, channels=3, out_channels=6)
    with pytest.raises(UsageError, match="of 3 channels"):
        bring(save(tmp_path / "SiT-3.pt", official(three)), tmp_path / "c")
    with pytest.raises(UsageError, match="4 channels, and pixels has 3"):
        bring(file, tmp_path / "c", model="SiT-Mi/2", vae="pixels")
    with pytest.raises(UsageError, match="a run already"):
        bring(file, tmp_path / "a", model="SiT-Mi/2")
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        bring(file, tmp_path / "c", model="DiT-Mi/2", interpolant="gvp")
    with pytest.raises(UsageError, match="--model is a DiT"):
        bring(file, tmp_path / "c", model="DiT-Mi/2", lineage="official-sit")
    settings = ImportSettings(weights=file, out_dir=tmp_path / "c", model="SiT-Mi/2")
    assert plan(settings).data["dry_run"]
    assert not (tmp_path / "c").exists()


class Touch:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_files_code_is_never_run(tmp_path: Path) -> None:
    """Fault: arbitrary unpickling, of a trainer's arguments or of a bare pickle."""
    marker = tmp_path / "ran"
    content = trainer(path_type="Linear", evil=Touch(marker))
    save(tmp_path / "SiT-a.pt", content)
    (tmp_path / "SiT-b.pt").write_bytes(pickle.dumps(Touch(marker)))
    for name in ("SiT-a.pt", "SiT-b.pt"):
        with pytest.raises(SitError, match=r"could run its code|cannot read"):
            bring(tmp_path / name, tmp_path / "run")
    assert not marker.exists()
    assert not (tmp_path / "run").exists()


REFUSED = [
    (Flow(), "official-dit", "its process is a flow"),
    (Flow(prediction="data"), "official-sit", "no data prediction"),
    (Diffusion(), "official-sit", "its process is DiT's"),
    (Diffusion(betas="cosine"), "official-dit", "linear betas"),
    (Diffusion(variance="fixed-small"), "official-dit", "learned sigma"),
    (Diffusion(prediction="velocity"), "diffusers", "its chain predicts velocity"),
]


@pytest.mark.parametrize(("process", "format", "message"), REFUSED)
def test_what_a_layout_cannot_hold_is_refused(
    tmp_path: Path, process: Flow, format: str, message: str
) -> None:
    """Fault: weights that load elsewhere and draw noise."""
    run = make_run(tmp_path, process=process)
    with pytest.raises(UsageError, match=message):
        take(run, tmp_path / "x", format)
    assert not (tmp_path / "x").exists()


def test_export_replaces_only_its_own(tmp_path: Path) -> None:
    """Fault: a user's folder removed by --overwrite, or a file lost to a mistyped name."""
    run = make_run(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match="no folder of sit export's"):
        take(run, tmp_path / "mine", "diffusers", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()
    out = take(run, tmp_path / "x.safetensors", "safetensors")
    with pytest.raises(UsageError, match="there already"):
        take(run, out, "safetensors")
    take(run, out, "safetensors", overwrite=True)
    folder = take(run, tmp_path / "folder", "diffusers")
    take(run, folder, "diffusers", overwrite=True)
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_the_likelihood_of_imported_weights_needs_a_store(tmp_path: Path) -> None:
    """Fault: a traceback where the run knows no store, or a store of unseen weights refused."""
    state = official(dataclasses.replace(CONFIG, channels=3, out_channels=3))
    file = save(tmp_path / "SiT-Mi-2.pt", state)
    bring(file, tmp_path / "run", vae="pixels")
    options = dict(samples=[tmp_path / "run"], nll=True, num=2, steps=2, device="cpu")
    with pytest.raises(UsageError, match="imported weights") as caught:
        finish(likelihood(EvaluateSettings(**options)))
    assert "--reference" in caught.value.hint
    store = make_store(tmp_path / "tiny.h5").path
    told = finish(likelihood(EvaluateSettings(**options, reference=store)))
    assert all(np.isfinite(figure["value"]) for figure in told.data["figures"])
    meta = open_checkpoint(tmp_path / "run").path / "meta.json"
    facts = json.loads(meta.read_text())
    facts["latents"]["autoencoder"]["hash"] = None
    meta.write_text(json.dumps(facts))
    finish(likelihood(EvaluateSettings(**options, reference=store)))


def test_training_does_not_go_on_from_imported_weights(tmp_path: Path) -> None:
    """Fault: a traceback, or moments made up, where the optimizer's state is missing."""
    from sitcli.commands.train.stage import train
    from sitcli.settings.train import TrainSettings

    run = make_run(tmp_path)
    take(run, tmp_path / "x.safetensors", "safetensors")
    bring(tmp_path / "x.safetensors", tmp_path / "runs" / "b")
    settings = TrainSettings(
        latents=[tmp_path / "tiny.h5"], out=tmp_path / "runs" / "b", device="cpu", steps=10
    )
    with pytest.raises(SitError, match="imported weights"):
        finish(train(settings))
