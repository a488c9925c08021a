"""Autoencoders of diffusers: folders, original checkpoints and names of the hub."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import tiny_kl

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


def test_diffusers_kl_folder(tmp_path):
    """Catches: the log-variance taken for the std, the config's scaling or shift lost, a wrong
    downsample, and a spec that does not find its weights again."""
    network = tiny_kl(scaling_factor=0.3, shift_factor=0.1)
    network.save_pretrained(tmp_path / "vae")
    vae = load_autoencoder(str(tmp_path / "vae"), **FP32)
    assert (vae.latent_channels, vae.downsample, vae.deterministic) == (4, 2, False)
    assert vae.scaling == Scaling(0.3, 0.1)
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


def test_statistics_in_a_config_are_its_scaling(tmp_path):
    """Catches: latents_mean and latents_std ignored in silence, or the factor left out."""
    statistics = dict(latents_mean=[0.5, 1.0, 0.0, -1.0], latents_std=[1.0, 2.0, 4.0, 8.0])
    tiny_kl(scaling_factor=0.5, **statistics).save_pretrained(tmp_path)
    vae = load_autoencoder(str(tmp_path), **FP32)
    assert vae.scaling == Scaling([0.5, 0.25, 0.125, 0.0625], [0.5, 1.0, 0.0, -1.0])
    assert from_spec(vae.spec, {}, **FP32).scaling == vae.scaling
    for config, message in (
        (dict(latents_mean=[0.0, 1.0], latents_std=[1.0]), "one number per channel"),
        (dict(latents_mean=None, latents_std=[1.0, 0.0, 1.0, 1.0]), "one number per channel"),
        (dict(statistics, shift_factor=0.1), "both a shift_factor and a latents_mean"),
    ):
        tiny_kl(**config).save_pretrained(tmp_path)
        with pytest.raises(SitError, match=message):
            load_autoencoder(str(tmp_path), **FP32)


def test_diffusers_folder_without_some_weights_is_refused(tmp_path):
    """Catches: weights that are missing from the folder and that diffusers leaves at random."""
    tiny_kl().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    del weights["decoder.conv_out.bias"]
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SitError, match=r"do not fit its config.json|cannot load"):
        load_autoencoder(str(tmp_path), **FP32)


def test_diffusers_tiny_and_dc_folders(tmp_path):
    """Catches: an encoder whose answer is read under the wrong name, or taken for a
    distribution."""
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
        assert (vae.downsample, vae.deterministic, vae.scaling) == (
            downsample, True, Scaling(scaling),
        )  # fmt: skip
        latents = vae.encode(images)
        assert latents.shape == (2, 4, 16 // downsample, 16 // downsample)
        with torch.no_grad():
            torch.testing.assert_close(vae.decode(latents), network.decode(latents).sample)


def test_hub_name_is_taken_from_the_cache(tmp_path, monkeypatch):
    """Catches: a look at the network first, which fails on an offline cluster with a copied
    cache."""
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
    """Catches: a connection that is accepted, never answered, and waited for."""
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
