"""Autoencoders: exactness, interfaces, identity of weights, and errors that can be acted on."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from sitcli.autoencoders import base, diffusers_vae
from sitcli.autoencoders.base import decode_latents, to_signed, to_uint8
from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.autoencoders.patch_pca import fit_patch_pca
from sitcli.errors import SitError, UsageError

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def smooth_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random low-frequency pictures (N, size, size, 3) uint8: compressible, as photographs are."""
    coarse = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1)
    return fine.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def test_every_byte_survives_pixels_through_float16():
    """A rounding that floors, or a scale of 255/256, would shift some of the 256 grey levels."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    pixels = load_autoencoder("pixels", **FP32)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        latents = pixels.encode(to_signed(images)).to(dtype)
        assert np.array_equal(decode_latents(pixels, latents, 1.0).numpy(), images)


def test_to_uint8_clamps_overshoot():
    """Without the clamp a decoder's overshoot wraps around: white turns black."""
    assert to_uint8(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_patch_pca_latents_are_white_and_complete_basis_is_lossless():
    """A wrong patch order, mean or whitening shows as correlated channels or a lossy round trip."""
    images = smooth_images(40, 16)
    images ^= np.random.default_rng(0).integers(0, 8, images.shape, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=2, channels=12)
    latents = pca.encode(to_signed(images))
    assert latents.shape == (40, 12, 8, 8)
    assert latents.is_contiguous()
    flat = latents.permute(1, 0, 2, 3).flatten(1).double()
    torch.testing.assert_close(
        flat @ flat.T / flat.shape[1], torch.eye(12).double(), atol=1e-3, rtol=0
    )
    assert np.array_equal(decode_latents(pca, latents, 1.0).numpy(), images)
    assert pca.spec["explained_variance"] == pytest.approx(1.0)


def test_patch_pca_keeps_the_components_that_matter():
    """Keeping the smallest eigenvalues instead of the largest gives a grey reconstruction."""
    images = smooth_images(20, 32)
    pca = fit_patch_pca(images, patch=4, channels=12)
    decoded = decode_latents(pca, pca.encode(to_signed(images)).half(), 1.0).numpy()
    error = np.square(decoded.astype(float) - images).mean()
    assert error < 0.01 * images.var()
    assert pca.spec["explained_variance"] > 0.99


def test_patch_pca_does_not_depend_on_order_or_batching():
    """Sums in arrival order would give each number of workers another basis, and another store."""
    images = smooth_images(30, 16)
    whole = fit_patch_pca([images], patch=4, channels=6)
    single = fit_patch_pca(images[::-1], patch=4, channels=6)
    assert whole.spec == single.spec


def test_patch_pca_of_flat_pictures_stays_finite():
    """Whitening a component of no variance divides by zero."""
    images = np.full((3, 8, 8, 3), 77, dtype=np.uint8)
    pca = fit_patch_pca(images, patch=4, channels=5)
    latents = pca.encode(to_signed(images))
    assert latents.abs().max() < 1e-3
    assert np.array_equal(decode_latents(pca, latents, 1.0).numpy(), images)


def test_patch_pca_comes_back_from_its_spec():
    """A store whose spec loses the patch size or the arrays could never be decoded."""
    images = smooth_images(10, 16)
    pca = fit_patch_pca(images, patch=4, channels=6)
    again = from_spec(pca.spec, pca.arrays, **FP32)
    latents = pca.encode(to_signed(images))
    assert torch.equal(pca.decode(latents), again.decode(latents))
    damaged = {**pca.arrays, "std": pca.arrays["std"] * 2}
    with pytest.raises(SitError, match="damaged"):
        from_spec(pca.spec, damaged, **FP32)


def test_embedded_errors():
    """Each of these would otherwise end in a shape error deep inside torch."""
    images = smooth_images(2, 16)
    with pytest.raises(UsageError, match="only 12 components"):
        fit_patch_pca(images, patch=2, channels=13)
    with pytest.raises(UsageError, match="no images"):
        fit_patch_pca([], patch=2, channels=3)
    pca = fit_patch_pca(images, patch=4, channels=6)
    with pytest.raises(UsageError, match="multiple of 4"):
        pca.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(UsageError, match="fitted on the images"):
        load_autoencoder("patch-pca", **FP32)
    with pytest.raises(UsageError, match="built in"):
        from_spec(pca.spec, pca.arrays, override="pixels", **FP32)
    for name in ("pixel", "no/such/../folder", "/nowhere/vae", "vae.safetensors"):
        with pytest.raises(UsageError, match="no autoencoder"):
            load_autoencoder(name, **FP32)


def test_scaling_per_channel_and_shift_are_undone():
    """Dividing along the wrong axis, or forgetting the shift, tints every decoded picture."""
    images = smooth_images(2, 8)
    pixels = load_autoencoder("pixels", **FP32)
    pixels.shift = 0.25
    scaling = [0.5, 2.0, 4.0]
    scaled = (to_signed(images) - 0.25) * torch.tensor(scaling).reshape(3, 1, 1)
    assert np.array_equal(decode_latents(pixels, scaled, scaling).numpy(), images)


def tiny_kl(**config) -> torch.nn.Module:
    """A random AutoencoderKL of two stages: downsample 2, 4 latent channels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        norm_num_groups=4,
        latent_channels=4,
        **config,
    ).eval()


def test_diffusers_kl_folder(tmp_path):
    """Catches the log-variance taken for the std, the config's scaling or shift lost, a wrong
    downsample, and a spec that does not find its weights again."""
    network = tiny_kl(scaling_factor=0.3, shift_factor=0.1)
    network.save_pretrained(tmp_path / "vae")
    vae = load_autoencoder(str(tmp_path / "vae"), **FP32)
    assert (vae.latent_channels, vae.downsample, vae.deterministic) == (4, 2, False)
    assert (vae.scaling, vae.shift) == (0.3, 0.1)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = network.encode(images).latent_dist
        pictures = network.decode(posterior.mean).sample
    encoded = vae.encode(images)
    torch.testing.assert_close(encoded, torch.cat([posterior.mean, posterior.std], 1))
    torch.testing.assert_close(vae.decode(encoded[:, :4]), pictures)

    assert from_spec(vae.spec, {}, **FP32).spec == vae.spec
    # A whole pipeline's folder works too, and so does a moved copy.
    moved = from_spec(vae.spec, {}, override=str(tmp_path), **FP32)
    assert moved.spec["hash"] == vae.spec["hash"]
    tiny_kl().save_pretrained(tmp_path / "other")
    with pytest.raises(SitError, match="other weights"):
        from_spec(vae.spec, {}, override=str(tmp_path / "other"), **FP32)
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    with pytest.raises(SitError, match="is gone") as failure:
        from_spec(vae.spec, {}, **FP32)
    assert "--vae" in failure.value.hint


def test_diffusers_folder_without_some_weights_is_refused(tmp_path):
    """Diffusers leaves what is missing at random and only logs it."""
    tiny_kl().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["decoder.conv_out.bias"]
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SitError, match=r"do not fit its config.json|cannot load"):
        load_autoencoder(str(tmp_path), **FP32)


def test_diffusers_tiny_and_dc_folders(tmp_path):
    """Their encoders answer under other names, and are deterministic."""
    from diffusers import AutoencoderDC, AutoencoderTiny

    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    dc = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    ).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    for network, downsample, scaling in ((tiny, 2, 1.0), (dc, 4, 0.41)):
        folder = tmp_path / type(network).__name__
        network.save_pretrained(folder)
        vae = load_autoencoder(str(folder), **FP32)
        assert (vae.downsample, vae.deterministic, vae.scaling) == (downsample, True, scaling)
        latents = vae.encode(images)
        assert latents.shape == (2, 4, 16 // downsample, 16 // downsample)
        with torch.no_grad():
            torch.testing.assert_close(vae.decode(latents), network.decode(latents).sample)


def test_decoding_in_slices_is_decoding_at_once(tmp_path, monkeypatch):
    """A slice that is dropped, repeated or out of order would mislabel samples."""
    tiny_kl().save_pretrained(tmp_path)
    vae = load_autoencoder(str(tmp_path), **FP32)
    latents = torch.randn(5, 4, 4, 4)
    whole = vae.decode(latents)
    monkeypatch.setitem(base.PIXELS_PER_CALL, "cpu", 2 * 8 * 8)
    torch.testing.assert_close(vae.decode(latents), whole)


def test_hub_name_is_taken_from_the_cache(tmp_path, monkeypatch):
    """Offline clusters copy the cache: reaching for the network first would fail there."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--owner--some-vae"
    tiny_kl().save_pretrained(repo / "snapshots" / "0" / "inner")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0")
    vae = load_autoencoder("owner/some-vae/inner", **FP32)
    assert vae.spec["name"] == "owner/some-vae/inner"
    assert from_spec(vae.spec, {}, **FP32).spec == vae.spec
    with pytest.raises(SitError, match=r"not in the hub's cache") as failure:
        load_autoencoder("owner/some-vae", **FP32)
    assert "hf download owner/some-vae" in failure.value.hint
    assert "--vae pixels" in failure.value.hint


def test_hub_that_does_not_answer_fails_soon():
    """A connection that is accepted and never answered would hang for minutes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = (
            "import torch\n"
            "from sitcli.autoencoders import diffusers_vae\n"
            "from sitcli.errors import SitError\n"
            "diffusers_vae.HUB_TIMEOUT = 1.0\n"
            "try: diffusers_vae.load_hub('a/b', device=torch.device('cpu'), dtype=torch.float32)\n"
            "except SitError as error: print(error.message)\n"
        )
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.getsockname()[1]}",
            "HF_HUB_OFFLINE": "0",
        }
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60
        )
    assert b"a/b is not in the hub's cache" in run.stdout
    assert run.stderr == b""


def original_keys(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A diffusers KL state dict under CompVis's names, attention as 1x1 convolutions."""
    stages = 1 + max(int(key.split(".")[2]) for key in weights if "up_blocks" in key)
    renamed = {}
    for key, value in weights.items():
        key = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{stages - 1 - int(m[1])}", key)
        key = key.replace("down_blocks", "down").replace("samplers.0.conv", "sample.conv")
        key = key.replace("mid_block.resnets.0", "mid.block_1").replace(
            "conv_shortcut", "nin_shortcut"
        )
        key = key.replace("mid_block.resnets.1", "mid.block_2").replace("resnets", "block")
        key = key.replace("mid_block.attentions.0", "mid.attn_1").replace("to_out.0", "proj_out")
        key = key.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
        key = re.sub(r"attn_1\.to_([qkv])", r"attn_1.\1", key)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", key):
            value = value[..., None, None]
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("form", ["plain.pt", "wrapped.ckpt", "whole.safetensors"])
def test_original_checkpoints_equal_the_diffusers_folder(tmp_path, monkeypatch, form):
    """Catches keys left at random, a file that needs unsafe unpickling, and a call to the hub."""
    from diffusers import AutoencoderKL

    config = {**diffusers_vae.SD_VAE, "block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}
    monkeypatch.setattr(diffusers_vae, "SD_VAE", config)
    network = AutoencoderKL.from_config(config)
    network.save_pretrained(tmp_path / "folder")
    weights = original_keys(network.state_dict())
    path = tmp_path / form
    if form == "plain.pt":
        torch.save(weights, path)
    elif form == "wrapped.ckpt":
        averaged = {f"model_ema.{key.replace('.', '')}": value for key, value in weights.items()}
        torch.save({"state_dict": {**weights, **averaged}, "global_step": 5}, path)
    else:
        other = {"model.diffusion_model.out.weight": torch.zeros(3)}
        whole = {f"first_stage_model.{k}": v.contiguous() for k, v in weights.items()}
        safetensors.torch.save_file({**whole, **other}, path)
    vae = load_autoencoder(str(path), **FP32)
    assert vae.scaling == 0.18215
    assert vae.spec["hash"] == load_autoencoder(str(tmp_path / "folder"), **FP32).spec["hash"]


def test_original_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    """Diffusers would leave what is missing at random and say so in a log nobody reads."""
    weights = original_keys(tiny_kl().state_dict())
    torch.save(weights, tmp_path / "other-shape.pt")
    config = {**diffusers_vae.SD_VAE, "block_out_channels": [8, 16], "norm_num_groups": 4}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1}
    config |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    with pytest.raises(SitError, match="not a Stable Diffusion 1 or 2 VAE"):
        load_autoencoder(str(tmp_path / "other-shape.pt"), **FP32)
    monkeypatch.setattr(diffusers_vae, "SD_VAE", config)
    load_autoencoder(str(tmp_path / "other-shape.pt"), **FP32)
    del weights["encoder.conv_in.bias"]
    torch.save(weights, tmp_path / "incomplete.pt")
    with pytest.raises(SitError, match="not a Stable Diffusion 1 or 2 VAE"):
        load_autoencoder(str(tmp_path / "incomplete.pt"), **FP32)


def write_taesd(folder: Path, network: torch.nn.Module, name: str = "taesd") -> tuple[Path, Path]:
    """An AutoencoderTiny's weights as TAESD's own pair of files; its decoder begins at layer 1."""
    paths = folder / f"{name}_encoder.pth", folder / f"{name}_decoder.pth"
    torch.save(network.encoder.layers.state_dict(), paths[0])
    decoder = network.decoder.layers.state_dict()
    shifted = {re.sub(r"^\d+", lambda m: str(int(m[0]) + 1), k): v for k, v in decoder.items()}
    torch.save(shifted, paths[1])
    return paths


@pytest.mark.parametrize("channels", [4, 16])
def test_taesd_files_equal_diffusers(tmp_path, channels):
    """An independent implementation: a missed ReLU, stride or clamp, or [0, 1] pictures, show."""
    from diffusers import AutoencoderTiny

    network = AutoencoderTiny(latent_channels=channels).eval()
    encoder, decoder = write_taesd(tmp_path, network)
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = network.encode(images).latents
        pictures = network.decode(5 * latents).sample
    hashes = set()
    for path in (tmp_path, encoder, decoder):
        vae = load_autoencoder(str(path), **FP32)
        assert (vae.latent_channels, vae.downsample, vae.deterministic) == (channels, 8, True)
        torch.testing.assert_close(vae.encode(images), latents)
        torch.testing.assert_close(vae.decode(5 * latents), pictures)
        assert from_spec(vae.spec, {}, **FP32).spec == vae.spec
        hashes.add(vae.spec["hash"])
    assert len(hashes) == 1


def test_taesd_errors(tmp_path):
    """Half a pair, two pairs, or two halves that do not match must not load as something else."""
    from diffusers import AutoencoderTiny

    encoder, decoder = write_taesd(tmp_path, AutoencoderTiny())
    other = tmp_path / "other"
    other.mkdir()
    _, decoder16 = write_taesd(other, AutoencoderTiny(latent_channels=16))
    weights = torch.load(encoder)
    (tmp_path / "x_encoder.pth").write_bytes(encoder.read_bytes())
    with pytest.raises(SitError, match=r"x_decoder\.pth is not beside it"):
        load_autoencoder(str(tmp_path / "x_encoder.pth"), **FP32)
    (tmp_path / "x_decoder.pth").write_bytes(decoder16.read_bytes())
    with pytest.raises(SitError, match="do not belong together"):
        load_autoencoder(str(tmp_path / "x_decoder.pth"), **FP32)
    with pytest.raises(UsageError, match="several autoencoders"):
        load_autoencoder(str(tmp_path), **FP32)
    torch.save({k: v for k, v in weights.items() if k != "5.conv.2.bias"}, encoder)
    with pytest.raises(SitError, match="not laid out as"):
        load_autoencoder(str(decoder), **FP32)


def test_files_that_are_not_autoencoders(tmp_path):
    """Each ends in one line; a pickle that could run code is refused, not run."""
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": torch.zeros(2)}, tmp_path / "tensors.pt")
    torch.save({"f": subprocess.Popen}, tmp_path / "code.pt")
    (tmp_path / "bad.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "empty").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    expected = {
        "text.pt": "cannot read",
        "bad.safetensors": "cannot read",
        "tensors.pt": "does not hold autoencoder weights",
        "code.pt": "could run its code",
        "empty": "holds no autoencoder",
        "unet": "holds a 'UNet2DModel'",
        "broken": "cannot load the autoencoder",
    }
    for name, message in expected.items():
        with pytest.raises(SitError, match=message) as failure:
            load_autoencoder(str(tmp_path / name), **FP32)
        assert "\n" not in failure.value.message


SHARED = Path(__file__).parents[3] / "shared"


@pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="needs ../shared/weights (TAEF2)")
def test_taef2_on_photographs():
    """The GroupNorm branch left out, or in 8 groups (25.2 dB) instead of 4 (26.4 dB), shows."""
    from PIL import Image

    archive = SHARED / "data" / "imagenet-sample-160.tar"
    vae = load_autoencoder(str(SHARED / "weights" / "taef2_decoder.pth"), **FP32)
    assert (vae.latent_channels, vae.downsample) == (32, 8)
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile()][::40]
        images = np.stack(
            [
                np.asarray(Image.open(tar.extractfile(m)).convert("RGB").resize((128, 128)))
                for m in members
            ]
        )
    decoded = decode_latents(vae, vae.encode(to_signed(images)).half(), 1.0).numpy()
    error = np.square(decoded.astype(float) - images).mean(axis=(1, 2, 3))
    assert (10 * np.log10(255**2 / error)).mean() > 26
