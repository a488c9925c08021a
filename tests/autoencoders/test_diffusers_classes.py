"""Every class of autoencoder that sit knows, compared with diffusers' own encode and decode."""

from __future__ import annotations

import diffusers
import pytest
import torch

from sitcli.autoencoders import diffusers_vae
from sitcli.autoencoders.base import decode_latents, encode_latents, to_uint8
from sitcli.autoencoders.diffusers_classes import ROWS
from sitcli.autoencoders.load import from_spec, load_autoencoder
from sitcli.errors import SitError, UsageError
from sitcli.latents.scaling import Scaling
from tests.autoencoders.files import smooth_images, tiny_kl

CPU = torch.device("cpu")
FP32 = {"device": CPU, "dtype": torch.float32}
VIDEO = dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
             temperal_downsample=[False, True])  # fmt: skip
STATISTICS = dict(latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[1.0, 2.0, 4.0, 0.5])


def known(name: str) -> type:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    return getattr(diffusers, name)


def saved(folder, network):
    """(network, our autoencoder), both with their weights in the same order in memory.

    A convolution sums in another order where colours lie side by side.
    """
    network.eval().save_pretrained(folder)
    if all(parameter.ndim < 5 for parameter in network.parameters()):
        network.to(memory_format=torch.channels_last)
    return network, load_autoencoder(str(folder), **FP32)


def images_of(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("channels", "shift"), [(4, None), (16, 0.1159)])
@torch.no_grad()
def test_kl_of_sd_and_flux(tmp_path, channels, shift):
    """Catches: FLUX's and SD 3's shift lost, or 16 channels read as moments of 8."""
    config = dict(latent_channels=channels, shift_factor=shift, scaling_factor=0.3611)
    network, vae = saved(tmp_path, tiny_kl(**config))
    posterior = network.encode(images_of(16)).latent_dist
    assert vae.scaling == Scaling(0.3611, shift or 0.0)
    encoded = vae.encode(images_of(16))
    assert torch.equal(encoded[:, :channels], posterior.mean)
    assert torch.equal(encoded[:, channels:], posterior.logvar.mul(0.5).exp())
    assert torch.equal(vae.decode(posterior.mean), network.decode(posterior.mean).sample)


@pytest.mark.parametrize(
    ("name", "more", "downsample"),
    [("AutoencoderKLQwenImage", {}, 4), ("AutoencoderKLWan", {}, 4),
     ("AutoencoderKLWan", dict(patch_size=2, in_channels=12, out_channels=12), 8)],
)  # fmt: skip
@torch.no_grad()
def test_a_picture_is_a_video_of_one_frame(tmp_path, name, more, downsample):
    """Catches: statistics ignored, another number of pixels a latent, a lost or second frame."""
    network, vae = saved(tmp_path, known(name)(**VIDEO, **STATISTICS, **more))
    images = images_of(32)
    posterior = network.encode(images[:, :, None]).latent_dist
    encoded = vae.encode(images)
    side = 32 // downsample
    assert (vae.downsample, vae.latent_channels, encoded.shape) == (
        downsample,
        4,
        (2, 8, side, side),
    )
    assert torch.equal(encoded[:, :4], posterior.mean[:, :, 0])
    assert torch.equal(encoded[:, 4:], posterior.logvar.mul(0.5).exp()[:, :, 0])
    assert vae.scaling == Scaling([1.0, 0.5, 0.25, 2.0], STATISTICS["latents_mean"])
    # As diffusers' QwenImagePipeline and WanPipeline come from a network's latents to pictures.
    mean, std = (torch.tensor(v).view(1, 4, 1, 1, 1) for v in STATISTICS.values())
    drawn = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(1))
    theirs = network.decode(drawn[:, :, None] / (1.0 / std) + mean).sample[:, :, 0]
    assert torch.equal(vae.decode(vae.scaling.undo(drawn)), theirs)
    assert torch.equal(decode_latents(vae, drawn, vae.scaling), to_uint8(theirs))
    assert from_spec(vae.spec, {}, **FP32).scaling == vae.scaling


def in_patches(latents: torch.Tensor) -> torch.Tensor:
    """Channel 4 c + 2 y + x is the place (y, x) in each 2 x 2 patch of channel c, as
    Flux2Pipeline._patchify_latents has it, which diffusers hides where transformers is absent."""
    places = [latents[:, c, y::2, x::2] for c in range(3) for y in (0, 1) for x in (0, 1)]
    return torch.stack(places, dim=1)


@torch.no_grad()
def test_flux2_is_patchified_and_normalised_by_its_batch_norm(tmp_path):
    """Catches: the statistics of the batch norm ignored, its eps left out, patches in another
    order than the pipeline's."""
    network = known("AutoencoderKLFlux2")(
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16], norm_num_groups=4, latent_channels=3, layers_per_block=1,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(2)
    network.bn.running_mean.normal_(generator=generator)
    network.bn.running_var.uniform_(0.5, 4, generator=generator)
    network, vae = saved(tmp_path, network)
    assert (vae.latent_channels, vae.downsample) == (12, 4)
    pictures = smooth_images(2, 16)
    signed = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    moments = vae.encode(signed)
    posterior = network.encode(signed).latent_dist
    assert torch.equal(moments[:, :12], in_patches(posterior.mean))
    assert torch.equal(moments[:, 12:], in_patches(posterior.logvar.mul(0.5).exp()))
    # Flux2Pipeline._encode_vae_image and the end of its __call__.
    mean = network.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(network.bn.running_var.view(1, -1, 1, 1) + network.config.batch_norm_eps)
    theirs = (moments[:, :12] - mean) / std
    # One division against a product with a factor rounded once more: 3 roundings of 2^-24.
    torch.testing.assert_close(
        encode_latents(vae, pictures, vae.scaling), theirs, rtol=2.0**-22, atol=2.0**-22
    )
    shown = network.decode(posterior.mean).sample
    assert torch.equal(vae.decode(moments[:, :12]), shown)


@torch.no_grad()
def test_rae_takes_pictures_from_0_to_1_of_one_size(tmp_path):
    """Catches: its own normalisation done twice, pictures of the wrong range, another size that it
    would stretch in silence."""
    pytest.importorskip("transformers")
    network, vae = saved(tmp_path, known("AutoencoderRAE")(
        encoder_type="mae", encoder_hidden_size=64, encoder_patch_size=4, patch_size=8,
        encoder_num_hidden_layers=1, encoder_input_size=16, decoder_hidden_size=32,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
        latents_mean=torch.full((64, 1, 1), 0.5), latents_std=torch.full((64, 1, 1), 2.0),
    ))  # fmt: skip
    images = images_of(32)
    assert (vae.latent_channels, vae.downsample, vae.deterministic) == (64, 8, True)
    assert vae.scaling == Scaling()
    theirs = network.encode((images + 1) / 2).latent
    assert torch.equal(vae.encode(images), theirs)
    assert torch.equal(vae.decode(theirs), network.decode(theirs).sample * 2 - 1)
    with pytest.raises(UsageError, match="takes images of 32 x 32"):
        vae.encode(images_of(64))


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    """Catches: a NameError from within diffusers."""
    known("AutoencoderRAE")
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderRAE"}')
    monkeypatch.setattr(diffusers_vae, "lacks_transformers", lambda name: True)
    with pytest.raises(SitError, match="is one of transformers, which is not installed") as caught:
        load_autoencoder(str(tmp_path), **FP32)
    assert caught.value.hint == "pip install transformers"


@pytest.mark.parametrize("name", ROWS)
def test_a_class_that_diffusers_lacks_names_the_version(tmp_path, monkeypatch, name):
    """Catches: an AttributeError of an older diffusers."""
    (tmp_path / "config.json").write_text(f'{{"_class_name": "{name}"}}')
    getattr(diffusers, name, None)  # diffusers imports its classes when they are asked for
    monkeypatch.delattr(diffusers, name, raising=False)
    monkeypatch.setattr(type(diffusers), "__getattr__", _absent)
    with pytest.raises(SitError, match=f"an {name}, which diffusers has from version") as caught:
        load_autoencoder(str(tmp_path), **FP32)
    assert caught.value.hint == f"pip install 'diffusers>={ROWS[name].since}'"


def _absent(module, name):
    if name == "__version__":
        return "0.33.0"
    raise AttributeError(name)
