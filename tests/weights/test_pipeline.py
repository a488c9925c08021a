"""The pipeline delivered with an export: diffusers draws what we draw."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from sitcli.autoencoders.base import decode_latents
from sitcli.autoencoders.diffusers_vae import load_folder
from sitcli.autoencoders.load import load_autoencoder
from sitcli.commands.sample.stage import sample
from sitcli.machine.hashed_seeds import Hashed, generator
from sitcli.machine.seeds import NEW, STREAMS
from sitcli.runs.checkpoint import open_checkpoint
from sitcli.samples.sample_set import SampleSet
from sitcli.settings.sample import SampleSettings
from tests.tiny import finish, make_run, normalise, write_meta
from tests.weights.official_files import bring, draw_latents, official, save, take

CPU = torch.device("cpu")


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).normal(size=(4, 4, 8, 8)).astype("f4"))
    return tmp_path / "noise.npy"


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
    tmp_path: Path,
    noise: Path,
    file: str,
    more: dict,
    options: dict,
    told: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches: diffusers' frequencies, LayerNorms, guidance or steps, not ours, beyond 1e-5."""
    monkeypatch.setitem(STREAMS, NEW, Hashed)  # diffusers draws from torch's generators
    bring(save(tmp_path / file, official()), tmp_path / "run", **more)
    pipe = pipeline_of(take(tmp_path / "run", tmp_path / "folder", "diffusers"))
    told = dict(told)
    start: dict = dict(latents=torch.from_numpy(np.load(noise)))
    given: dict = dict(noise=noise)
    if told.pop("drawn", False):  # noise in every step: from the same generators
        start = dict(generator=[generator(0, "image", i) for i in range(4)])
        given = dict(num=4)
    ours = draw_latents(tmp_path / "run", tmp_path / "x.h5", classes="3,0", **given, **options)
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


def test_a_runs_time_shift_goes_with_it(tmp_path: Path) -> None:
    """Catches: a pipeline whose steps are equal where `sit sample` follows the run's shift."""
    run = make_run(tmp_path)
    meta = open_checkpoint(run).path / "meta.json"
    write_meta(meta, json.loads(meta.read_text()) | {"t_shift": 3.0})
    pipe = pipeline_of(take(run, tmp_path / "folder", "diffusers"))
    noise = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype("f4")
    np.save(tmp_path / "n.npy", noise)
    ours = draw_latents(run, tmp_path / "x.h5", noise=tmp_path / "n.npy", steps=4, classes="0")
    found = pipe([0, 0], num_inference_steps=4, latents=torch.from_numpy(noise),
                 output_type="latent").images  # fmt: skip
    np.testing.assert_allclose(found.numpy(), ours, atol=1e-5 * max(1, np.abs(ours).max()))
    plain = draw_latents(run, tmp_path / "y.h5", noise=tmp_path / "n.npy", steps=4, classes="0",
                         t_shift="1")  # fmt: skip
    assert np.abs(plain - ours).max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(interpolant="cosine"), "not interpolant cosine"),
        (dict(prediction="flow"), "not prediction flow"),
        (dict(time_convention="backwards"), "not time_convention backwards"),
        (dict(guided_channels="5"), "not guided_channels 5"),
        (dict(second_network="x"), "says second_network, unknown"),
        (dict(scaling=None, drop="scaling"), "lacks scaling, needed"),
        (dict(interval=[1.0, 0.0]), "an interval unknown"),
    ],
)
def test_the_pipeline_refuses_what_it_does_not_know(tmp_path: Path, change, message) -> None:
    """Catches: pictures drawn by half of what a newer export says."""
    folder = take(make_run(tmp_path), tmp_path / "folder", "diffusers")
    index = json.loads((folder / "model_index.json").read_text())
    index["sit"] |= change
    index["sit"].pop(index["sit"].pop("drop", None), None)
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=message):
        pipeline_of(folder)


def test_pixels_become_pictures_in_diffusers(tmp_path: Path) -> None:
    """Catches: a folder without a vae that gives no images where the latents are the image."""
    pipe = pipeline_of(take(make_run(tmp_path), tmp_path / "folder", "diffusers"))
    images = pipe(class_labels=[0, 2], num_inference_steps=2).images
    assert [image.size for image in images] == [(8, 8), (8, 8)]
    with pytest.raises(ValueError, match="not for this model"):
        pipe(class_labels=[0], solver="ddim")


def test_channels_of_their_own_are_undone_in_diffusers(tmp_path: Path) -> None:
    """Catches: a pipeline that forgets a channel's shift, or divides along another axis."""
    run = make_run(tmp_path)
    normalise(run, scaling=[1.0, 2.0, 4.0], shift=[0.5, 0.0, -0.5])
    pipe = pipeline_of(take(run, tmp_path / "folder", "diffusers"))
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels = load_autoencoder("pixels", device=CPU, dtype=torch.float32)
    ours = decode_latents(pixels, latents, open_checkpoint(run).scaling).numpy()
    np.testing.assert_array_equal(np.stack([np.asarray(p) for p in pipe.decode(latents)]), ours)
    assert len(np.unique(ours)) > 10


def vae_of(name: str):
    """A small autoencoder of this class, of 4 channels as training sees them, and statistics."""
    made = getattr(diffusers, name, None)
    if made is None:
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    if name == "AutoencoderKLFlux2":
        vae = made(
            down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
            block_out_channels=[8, 8], norm_num_groups=4, latent_channels=1, layers_per_block=1,
        )  # fmt: skip
        vae.bn.running_mean.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
        vae.bn.running_var.copy_(torch.tensor([1.0, 4.0, 0.5, 2.0]))
        return vae
    return made(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
        temperal_downsample=[False, True], latents_mean=[0.5, -1.0, 0.0, 2.0],
        latents_std=[1.0, 2.0, 0.5, 1.5],
    )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["AutoencoderKLWan", "AutoencoderKLQwenImage", "AutoencoderKLFlux2"]
)
def test_a_vae_that_leaves_its_latents_to_the_pipeline(tmp_path: Path, name: str) -> None:
    """Catches: an exported pipeline that decodes them unscaled, unpatched or without a frame."""
    vae_of(name).save_pretrained(tmp_path / "vae")
    run = bring(
        save(tmp_path / "SiT-Mi-2-64x64.pt", official()), tmp_path / "run",
        vae=str(tmp_path / "vae"),
    )  # fmt: skip
    assert run.scaling.per_channel
    pipe = pipeline_of(take(tmp_path / "run", tmp_path / "folder", "diffusers"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = decode_latents(
        load_autoencoder(str(tmp_path / "vae"), device=CPU, dtype=torch.float32),
        latents, run.scaling,
    ).numpy().astype(int)  # fmt: skip
    theirs = np.stack([np.asarray(picture) for picture in pipe.decode(latents)]).astype(int)
    # Ours has colours side by side in memory: a convolution sums in another order, which moves a
    # value on the border of two bytes by one.
    assert np.abs(theirs - ours).max() <= 1
    assert len(np.unique(ours)) > 10
    pipe.vae = torch.nn.Identity()
    pipe.vae.dtype = torch.float32
    with pytest.raises(ValueError, match="does not know how Identity decodes"):
        pipe.decode(latents)


def test_a_vae_goes_with_the_folder(tmp_path: Path) -> None:
    """Catches: an exported folder that cannot decode, or a vae of another kind than the run's."""
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
