"""LightningDiT's weights: our network computes their function."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sitcli.commands.import_weights import import_weights
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.model import embed
from sitcli.model.embed import position_embedding
from sitcli.model.transformer import Transformer
from sitcli.settings.weights import ImportSettings
from tests.tiny import finish
from tests.weights.official_files import bring, draw_latents, save

WIDTH, DEPTH, HEADS, CHANNELS, SIDE, CLASSES = 96, 2, 4, 32, 4, 5
HEAD = WIDTH // HEADS
LARGEST = 1e-10  # relative: some hundred operations one after another, which round by 1e-16 each
PARTS = [
    dict(),
    dict(qk_norm="rms"),
    dict(qk_norm="layer", mlp="gelu"),
    dict(norm="layer", shifts=False),
    dict(rope=False, qk_norm="layer"),
]


def wave(*size: int) -> Tensor:
    """Sines of all numbers, a table of cosines and sines as the field has it."""
    rows = torch.arange(SIDE, dtype=torch.float64)[:, None]
    omega = 10000.0 ** (-torch.arange(HEAD // 4, dtype=torch.float64) / (HEAD // 4))
    angles = (rows * omega).repeat_interleave(2, dim=1)
    down = angles[:, None].expand(SIDE, SIDE, -1)
    along = angles[None].expand(SIDE, SIDE, -1)
    return torch.cat([down, along], dim=2).reshape(SIDE * SIDE, HEAD)


def lightningdit(
    *, qk_norm: str = "", mlp: str = "swiglu", norm: str = "rms", shifts: bool = True,
    rope: bool = True,
) -> dict[str, Tensor]:  # fmt: skip
    """Random tensors under LightningDiT's keys."""
    rng = torch.Generator().manual_seed(0)

    def some(*size: int) -> Tensor:
        return torch.randn(size, generator=rng) * 0.2

    state = {
        "pos_embed": position_embedding(WIDTH, SIDE, SIDE),
        "x_embedder.proj.weight": some(WIDTH, CHANNELS, 1, 1),
        "x_embedder.proj.bias": some(WIDTH),
        "y_embedder.embedding_table.weight": some(CLASSES + 1, WIDTH),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = some(outputs, inputs), some(outputs)

    linear("t_embedder.mlp.0", 256, WIDTH)
    linear("t_embedder.mlp.2", WIDTH, WIDTH)
    if rope:
        angles = wave().float()
        state |= {"feat_rope.freqs_cos": angles.cos(), "feat_rope.freqs_sin": angles.sin()}
    for i in range(DEPTH):
        block = f"blocks.{i}"
        if norm == "rms":
            state |= {f"{block}.norm{n}.weight": 1 + some(WIDTH) for n in (1, 2)}
        linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        for part in ("q", "k") if qk_norm else ():
            state[f"{block}.attn.{part}_norm.weight"] = 1 + some(HEAD)
            if qk_norm == "layer":
                state[f"{block}.attn.{part}_norm.bias"] = some(HEAD)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        if mlp == "swiglu":
            linear(f"{block}.mlp.w12", WIDTH, 2 * (8 * WIDTH // 3))
            linear(f"{block}.mlp.w3", 8 * WIDTH // 3, WIDTH)
        else:
            linear(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH)
            linear(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
        linear(f"{block}.adaLN_modulation.1", WIDTH, (6 if shifts else 4) * WIDTH)
    if norm == "rms":
        state["final_layer.norm_final.weight"] = 1 + some(WIDTH)
    linear("final_layer.linear", WIDTH, CHANNELS)
    linear("final_layer.adaLN_modulation.1", WIDTH, 2 * WIDTH)
    return state


def function_of(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What a LightningDiT with these tensors computes (Yao et al. 2025), in float64, patch 1."""
    s = {key: value.double() for key, value in state.items()}

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]

    def normed(name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
        gain, bias = s.get(f"{name}.weight"), s.get(f"{name}.bias")
        if gain is None or bias is not None:  # LayerNorm, affine for queries and keys alone
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
        return x * (1 if gain is None else gain) + (0 if bias is None else bias)

    def turned(x: Tensor) -> Tensor:
        """Each pair of neighbours is a complex number, which its angle turns."""
        if "feat_rope.freqs_cos" not in s:
            return x
        # Our tables are rounded to float32, as its are.
        cos, sin = (part.float().double()[:, ::2] for part in (wave().cos(), wave().sin()))
        pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)

    def attention(block: str, x: Tensor) -> Tensor:
        q, k, v = linear(f"{block}.qkv", x).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        if f"{block}.q_norm.weight" in s:
            eps = 1e-5 if f"{block}.q_norm.bias" in s else 1e-6
            q, k = normed(f"{block}.q_norm", q, eps), normed(f"{block}.k_norm", k, eps)
        scores = turned(q) @ turned(k).transpose(-1, -2) / HEAD**0.5
        return linear(f"{block}.proj", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))

    def mlp(block: str, x: Tensor) -> Tensor:
        if f"{block}.w12.weight" not in s:
            return linear(f"{block}.fc2", F.gelu(linear(f"{block}.fc1", x), approximate="tanh"))
        gate, value = linear(f"{block}.w12", x).chunk(2, -1)
        return linear(f"{block}.w3", gate * torch.sigmoid(gate) * value)

    patches = torch.einsum("bchw,dc->bhwd", x, s["x_embedder.proj.weight"][:, :, 0, 0])
    tokens = patches.flatten(1, 2) + s["x_embedder.proj.bias"] + s["pos_embed"]
    time = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", features(t, 256))))
    c = F.silu(time + s["y_embedder.embedding_table.weight"][y])[:, None]
    for i in range(DEPTH):
        block = f"blocks.{i}"
        parts = linear(f"{block}.adaLN_modulation.1", c).split(WIDTH, dim=-1)
        zero = torch.zeros_like(parts[0])
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            parts if len(parts) == 6 else (zero, *parts[:2], zero, *parts[2:])
        )
        x1 = normed(f"{block}.norm1", tokens) * (1 + scale1) + shift1
        tokens = tokens + gate1 * attention(f"{block}.attn", x1)
        x2 = normed(f"{block}.norm2", tokens) * (1 + scale2) + shift2
        tokens = tokens + gate2 * mlp(f"{block}.mlp", x2)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).split(WIDTH, dim=-1)
    tokens = normed("final_layer.norm_final", tokens) * (1 + scale) + shift
    return linear("final_layer.linear", tokens).transpose(1, 2).unflatten(2, (SIDE, SIDE))


def features(t: Tensor, dim: int) -> Tensor:
    """DiT's features of the time, in float64."""
    angles = t[:, None].double() * embed.frequencies(dim).double()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: "-".join(map(str, parts)) or "plain")
def test_our_network_computes_its_function(tmp_path: Path, monkeypatch, parts) -> None:
    """Catches: queries and keys of which some are in the other order, gates taken for shifts, and
    another norm."""
    state = lightningdit(**parts)
    file = save(tmp_path / "0080000.pt", {"ema": state})
    lineage = {} if parts.get("mlp") != "gelu" else {"lineage": "lightningdit"}
    run = bring(file, tmp_path / "run", heads=HEADS if parts.get("rope") is False else None,
                **lineage)  # fmt: skip
    assert (run.config.heads, run.config.rope) == (HEADS, parts.get("rope", True))
    monkeypatch.setattr(embed, "sinusoid", lambda t, dim, *, last: features(t, dim))
    network = Transformer(run.config).double().eval()
    network.load_state_dict(run.weights("ema"))
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, CHANNELS, SIDE, SIDE, generator=rng, dtype=torch.float64)
    t, y = torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64), torch.tensor([1, 0, CLASSES])
    expected = function_of(state, x, t, y)
    assert 0.1 < expected.std() < 100
    with torch.no_grad():
        found = network(x, t, y)
    assert (found - expected).abs().max() < LARGEST * expected.abs().max()


def test_facts_of_a_trainers_checkpoint(tmp_path: Path) -> None:
    """Catches: another direction of time, the wrong weights, another autoencoder, and statistics
    beside the weights that nobody reads."""
    config = dict(
        data=dict(image_size=64, num_classes=CLASSES, latent_norm=True, latent_multiplier=2.0),
        model=dict(model_type="LightningDiT-B/1", use_rmsnorm=True, wo_shift=False),
        transport=dict(path_type="Linear", prediction="velocity", loss_weight=None),
    )
    state = lightningdit()
    other = {key: value + 1 if "bias" in key else value for key, value in state.items()}
    (tmp_path / "a").mkdir()
    file = save(tmp_path / "a" / "0080000.pt", dict(model=other, ema=state, opt={}, config=config))
    result = finish(import_weights(ImportSettings(weights=file, out_dir=tmp_path / "b")))
    assert any("--latent-stats" in text for text in result.data["warnings"])
    mean, std = torch.arange(CHANNELS).float() - 3, 1 + torch.arange(CHANNELS).float()
    shaped = dict(mean=mean.view(1, -1, 1, 1), std=std.view(1, -1, 1, 1))
    save(tmp_path / "a" / "latents_stats.pt", shaped)
    run = bring(tmp_path / "a", tmp_path / "run")  # the folder holds one file of weights
    assert run.meta["time_convention"] == "reversed"
    assert run.meta["guided_channels"] == "3"
    assert run.process == Flow()
    assert (run.step, run.kinds, run.image_size) == (80000, ["model", "ema"], (64, 64))
    assert run.latents["autoencoder"]["downsample"] == 16
    latents = torch.ones(1, CHANNELS, 1, 1)
    torch.testing.assert_close(run.scaling.undo(latents).flatten(), std / 2 + mean)
    assert torch.equal(run.weights("ema")["x_embedder.proj.bias"], state["x_embedder.proj.bias"])
    assert draw_latents(tmp_path / "run", tmp_path / "x.h5", num=2, steps=2).shape[1] == CHANNELS
    config["data"]["num_classes"] = 7
    save(file, dict(ema=state, config=config))
    with pytest.raises(SitError, match="num_classes 7, but by its tensors it is 5"):
        bring(file, tmp_path / "c")


@pytest.mark.parametrize("what", ["theta", "other grid", "one table"])
def test_another_rope_is_refused(tmp_path: Path, what: str) -> None:
    """Catches: tensors of a network that turns by other angles, drawn as noise."""
    state = lightningdit()
    if what == "theta":
        state["feat_rope.freqs_cos"] = (wave() * 1.01).cos().float()
    elif what == "other grid":
        state["feat_rope.freqs_sin"] = state["feat_rope.freqs_sin"][:9]
    else:
        del state["feat_rope.freqs_sin"]
    with pytest.raises(SitError, match="its RoPE"):
        bring(save(tmp_path / "x.pt", {"ema": state}), tmp_path / "run")


def test_a_lightningdit_without_rope_asks_for_heads(tmp_path: Path) -> None:
    """Catches: a number of heads made up."""
    file = save(tmp_path / "x.pt", {"ema": lightningdit(rope=False)})
    with pytest.raises(UsageError, match="number of attention heads"):
        bring(file, tmp_path / "run")


def test_its_sampler_draws_what_we_draw(tmp_path: Path) -> None:
    """Catches: options of the guide that are not its sampler's: its time runs the other way, its
    shift is the inverse of ours, and it guides three channels, not at the noisy end."""
    state = lightningdit()
    bring(save(tmp_path / "x.pt", {"ema": state}), tmp_path / "run")
    noise = torch.randn(2, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    np.save(tmp_path / "n.npy", noise.numpy())
    drawn = draw_latents(
        tmp_path / "run", tmp_path / "s.h5", noise=tmp_path / "n.npy", solver="euler", steps=8,
        t_shift="3.333333333", cfg_scale=2.0, cfg_interval="0,0.875", classes="3,1",
    )  # fmt: skip
    x, y, null = noise.double(), torch.tensor([3, 1]), torch.tensor([CLASSES] * 2)
    equal = torch.linspace(0, 1, 9, dtype=torch.float64)
    times = 0.3 * equal / (1 + (0.3 - 1) * equal)  # its timestep_shift; t = 1 is the data
    assert ((times > 0) & (times < 0.125)).sum() >= 2
    for now, then in pairwise(times):
        t = now.expand(2)
        v, unconditional = function_of(state, x, t, y), function_of(state, x, t, null)
        if now >= 0.125:  # its cfg_interval_start
            v[:, :3] = unconditional[:, :3] + 2.0 * (v[:, :3] - unconditional[:, :3])
        x = x + (then - now) * v
    # float32 rounds 8 evaluations of some hundred operations by 6e-8 each.
    assert np.abs(drawn - x.numpy()).max() < 1e-4 * x.abs().max()
