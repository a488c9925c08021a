"""DiT in a folder of diffusers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sitcli.core.diffusion import Diffusion
from sitcli.errors import SitError, UsageError
from sitcli.model import embed
from sitcli.model.transformer import Transformer
from tests.weights.official_files import CONFIG, bring, draw_latents, equal, official, save, take


def test_diffusers_own_folder(tmp_path: Path) -> None:
    """Catches: a stock folder, without our notes, that is not read, or read under other keys."""
    first = bring(save(tmp_path / "DiT-Mi-2-64x64.pt", official()), tmp_path / "a")
    folder = take(tmp_path / "a", tmp_path / "folder", "diffusers")
    (folder / "sit.safetensors").unlink()
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {str(i): f"class {i}, other name" for i in range(5)}
    (folder / "model_index.json").write_text(json.dumps(index))
    run = bring(folder, tmp_path / "b")
    assert run.meta["lineage"] == "diffusers"
    assert run.latents["class_names"][2] == "class 2, other name"
    assert run.config == CONFIG
    assert equal(run.weights("ema"), first.weights("ema"))
    with pytest.raises(UsageError, match="--interpolant is for SiT"):
        bring(folder, tmp_path / "c", interpolant="gvp")


def features(t: torch.Tensor, dim: int, last: bool) -> torch.Tensor:
    """Cosines and sines of t in float64, with diffusers' frequencies if last, else DiT's."""
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - last))
    angles = t[:, None].double() * omega
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
def test_what_diffusers_trained_is_computed_as_it_computes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eps: float
) -> None:
    """Catches: embedders that training has taken apart refused or merged, DiT's frequencies where
    the weights know diffusers', and the final layer's condition from another block."""
    import diffusers
    from diffusers.models import embeddings

    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3,
        sample_size=8, patch_size=2, num_embeds_ada_norm=5, norm_eps=eps,
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "folder")
    run = bring(tmp_path / "folder", tmp_path / "run")
    assert (run.config.own_embedders, run.config.mlp_eps) == (True, eps)
    assert run.process == Diffusion()
    ours = Transformer(run.config).double().eval()
    ours.load_state_dict(run.weights("ema"))
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    t, y = torch.tensor([0.0, 400.0, 999.0]), torch.tensor([1, 4, 5])
    with monkeypatch.context() as wide, torch.no_grad():
        wide.setattr(
            embeddings, "get_timestep_embedding",
            lambda t, dim, *, downscale_freq_shift, **_: features(t, dim, downscale_freq_shift > 0),
        )  # fmt: skip
        wide.setattr(embed, "sinusoid", lambda t, dim, *, last: features(t, dim, last))
        expected, found = theirs.double()(x, t, class_labels=y).sample, ours(x, t, y)
    # Some hundred operations one after another, which round by 1e-16 each.
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()
    # The same folder's weights are drawn, and come back from our own format.
    again = bring(take(tmp_path / "run", tmp_path / "x.safetensors", "safetensors"), tmp_path / "c")
    assert again.config == run.config
    first, second = (
        draw_latents(path, tmp_path / f"{path.name}.h5", num=2, steps=3, ddim=True, cfg_scale=1.5)
        for path in (tmp_path / "run", tmp_path / "c")
    )
    np.testing.assert_array_equal(first, second)
    with pytest.raises(UsageError, match="no place for embedders in every block"):
        take(tmp_path / "run", tmp_path / "y", "official-dit")
    # diffusers draws the same from the folder that we export.
    folder = take(tmp_path / "run", tmp_path / "folder-again", "diffusers")
    assert equal(bring(folder, tmp_path / "d").weights("ema"), run.weights("ema"))
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        str(folder), custom_pipeline=str(folder), trust_remote_code=True
    )
    noise = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype("f4")
    np.save(tmp_path / "n.npy", noise)
    drawn = draw_latents(tmp_path / "run", tmp_path / "z.h5", noise=tmp_path / "n.npy", steps=3,
                         ddim=True, classes="2")  # fmt: skip
    theirs_drawn = pipe([2, 2], num_inference_steps=3, latents=torch.from_numpy(noise),
                        output_type="latent").images  # fmt: skip
    # The first step divides eps by sqrt(alpha_bar) = 1 / 157: ten roundings of 6e-8 become 1e-4.
    np.testing.assert_allclose(theirs_drawn.numpy(), drawn, atol=1e-4 * np.abs(drawn).max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(activation_fn="gelu"), "activation_fn gelu, and a DiT has gelu-approximate"),
        (dict(norm_eps="small"), "norm_eps small"),
    ],
)
def test_a_config_that_says_something_else_is_refused(tmp_path: Path, change, message) -> None:
    """Catches: an activation that no tensor shows, taken for DiT's."""
    import diffusers

    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, patch_size=2,
        num_embeds_ada_norm=3,
    )  # fmt: skip
    network.save_pretrained(tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text())
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(SitError, match=message):
        bring(tmp_path / "folder", tmp_path / "run", heads=2)
