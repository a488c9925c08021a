"""KL autoencoders under CompVis' keys: Stable Diffusion's, VA-VAE and REPA-E's."""

from __future__ import annotations

import re

import pytest
import safetensors.torch
import torch

from sitcli.autoencoders import original_vae
from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.errors import SitError
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import tiny_kl

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}


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
        key = re.sub(r"attentions\.(\d)", r"attn.\1", key)  # of a stage
        key = key.replace("conv_norm_out", "norm_out").replace("group_norm", "norm")
        key = re.sub(r"(attn_1|attn\.\d)\.to_([qkv])", r"\1.\2", key)
        if re.search(r"(attn_1|attn\.\d)\.(q|k|v|proj_out)\.weight", key):
            value = value[..., None, None]
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("form", ["plain.pt", "wrapped.ckpt", "whole.safetensors"])
def test_original_checkpoints_equal_the_diffusers_folder(tmp_path, monkeypatch, form):
    """Catches: keys left at random, a file that needs unsafe unpickling, and a call to the hub."""
    from diffusers import AutoencoderKL

    config = {
        **original_vae.SD_VAE_CONFIG,
        "block_out_channels": [8, 8, 16, 16],
        "norm_num_groups": 4,
    }
    monkeypatch.setattr(original_vae, "SD_VAE_CONFIG", config)
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
    assert vae.scaling == Scaling(0.18215)
    assert vae.spec["hash"] == load_autoencoder(str(tmp_path / "folder"), **FP32).spec["hash"]


def test_original_checkpoint_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    """Catches: weights that diffusers leaves at random, saying so only in a log."""
    weights = original_keys(tiny_kl().state_dict())
    torch.save(weights, tmp_path / "other-shape.pt")
    config = {**original_vae.SD_VAE_CONFIG, "block_out_channels": [8, 16], "norm_num_groups": 4}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 2, "layers_per_block": 1}
    config |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    with pytest.raises(SitError, match="not a Stable Diffusion 1 or 2 VAE"):
        load_autoencoder(str(tmp_path / "other-shape.pt"), **FP32)
    monkeypatch.setattr(original_vae, "SD_VAE_CONFIG", config)
    load_autoencoder(str(tmp_path / "other-shape.pt"), **FP32)
    del weights["encoder.conv_in.bias"]
    torch.save(weights, tmp_path / "incomplete.pt")
    with pytest.raises(SitError, match="not a Stable Diffusion 1 or 2 VAE"):
        load_autoencoder(str(tmp_path / "incomplete.pt"), **FP32)


@pytest.fixture
def f16d32(monkeypatch):
    """A small network of VA-VAE's shape, attention in its lowest stages, and its CompVis keys."""
    from diffusers import AutoencoderKL

    small = {"block_out_channels": [8, 8, 8, 8, 16], "norm_num_groups": 4, "latent_channels": 6}
    config = {**original_vae.F16D32_CONFIG, **small}
    monkeypatch.setattr(original_vae, "F16D32_CONFIG", config)
    torch.manual_seed(0)
    network = AutoencoderKL.from_config(config).eval().to(memory_format=torch.channels_last)
    return network, original_keys(network.state_dict())


def test_va_vae_from_its_pt(tmp_path, f16d32):
    """Catches: attention in a stage left out or exchanged, training's tensors that stand in the
    way, the std of a posterior lost."""
    network, weights = f16d32
    assert "encoder.down.4.attn.1.q.weight" in weights
    assert "decoder.up.4.attn.2.proj_out.weight" in weights
    other = {"foundation_model.model.x": torch.zeros(2), "loss.logvar": torch.zeros(()),
             "linear_proj.weight": torch.zeros(3, 3)}  # fmt: skip
    torch.save({"state_dict": weights | other, "epoch": 3}, tmp_path / "vavae.pt")
    vae = load_autoencoder(str(tmp_path / "vavae.pt"), **FP32)
    assert (vae.latent_channels, vae.downsample, vae.scaling) == (6, 16, Scaling(1.0))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        posterior = network.encode(images).latent_dist
        pictures = network.decode(posterior.mean).sample
    encoded = vae.encode(images)
    assert torch.equal(encoded, torch.cat([posterior.mean, posterior.logvar.mul(0.5).exp()], 1))
    assert torch.equal(vae.decode(encoded[:, :6]), pictures)
    assert from_spec(vae.spec, {}, **FP32).spec == vae.spec


@pytest.mark.parametrize("layout", ["e2e-latents-stats.pt", "latents_stats.pt"])
def test_statistics_beside_the_weights_are_the_scaling(tmp_path, f16d32, layout):
    """Catches: REPA-E's factor taken for a std, and latents of std 3 that a network is trained on
    as they are."""
    _, weights = f16d32
    torch.save(weights, tmp_path / "e2e.pt")
    mean, std = torch.arange(6.0).view(1, 6, 1, 1), torch.full((1, 6, 1, 1), 4.0)
    content = {"mean": mean, "std": std}
    if layout.startswith("e2e"):
        content = {"latents_bias": mean, "latents_scale": 1 / std}
    torch.save(content, tmp_path / layout)
    vae = load_autoencoder(str(tmp_path / "e2e.pt"), **FP32)
    assert vae.scaling == Scaling([0.25] * 6, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])


def test_the_real_vavae_s_keys_are_all_known():
    """Catches: a tensor of the published shape that a small network does not have.

    Names and shapes follow from VA-VAE's configuration: z 32, ch 128, ch_mult 1 1 2 2 4, two
    blocks, attention at 16.
    """
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        network = AutoencoderKL.from_config(original_vae.F16D32_CONFIG)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    names = {original_vae.to_diffusers(key, 5) for key in original_keys(network.state_dict())}
    assert names == shapes.keys()
    assert shapes["encoder.conv_out.weight"] == (64, 512, 3, 3)
    assert shapes["decoder.up_blocks.0.attentions.2.to_q.weight"] == (512, 512)
