"""The block designs against the DiT paper's section 3.2, and their newer parts by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sitcli.model import blocks
from sitcli.model.blocks import BLOCKS, Attention, Style, SwiGLU, gelu
from sitcli.model.compile import can_compile
from sitcli.model.transformer import Transformer
from tests.model.networks import TINY, every_block

CPU = torch.device("cpu")


needs_compiler = pytest.mark.skipif(can_compile(CPU) is not None, reason=str(can_compile(CPU)))


@needs_compiler
def test_gelu_is_torchs_however_it_is_compiled() -> None:
    """Catches: a GELU or a slope of it that differs from torch's in the compiled code."""
    x = torch.linspace(-12, 12, 2001, requires_grad=True)
    expected = torch.nn.functional.gelu(x, approximate="tanh")
    (slope,) = torch.autograd.grad(expected.sum(), x)
    found = torch.compile(gelu)(x)
    (found_slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(found_slope, slope, atol=5e-6, rtol=1e-5)


WIDTH, HEADS = TINY.width, TINY.heads
CLOSE = dict(atol=1e-4, rtol=1e-4)


def network(block: str) -> Transformer:
    """Random weights everywhere, LayerNorms included, and large: every path has a say."""
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(TINY, block=block))
    for name, parameter in model.named_parameters():
        gain = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(parameter, mean=float(gain), std=0.2)
    return model


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, 4, 8, 8), torch.rand(batch), torch.arange(batch)


def norm(x: Tensor, affine: torch.nn.LayerNorm | None = None) -> Tensor:
    """LayerNorm from its definition, eps 1e-6."""
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return x if affine is None else x * affine.weight + affine.bias


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d/heads)) v, head by head; q (B, T, d), k and v (B, S, d)."""
    out = []
    for part in torch.arange(WIDTH).split(WIDTH // HEADS):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / len(part) ** 0.5
        out.append(scores.softmax(-1) @ v[..., part])
    return torch.cat(out, dim=2)


def self_attention(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer.proj(attend(*layer.qkv(x).split(WIDTH, dim=2)))


def mlp(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer.fc2(F.gelu(layer.fc1(x), approximate="tanh"))


def begin(model: Transformer, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Image tokens (B, T, d), and the embeddings of t and y as one token each, (B, 1, d)."""
    tokens = model.x_embedder(x) + model.pos_embed
    return tokens, model.t_embedder(t)[:, None], model.y_embedder(y)[:, None]


def end(model: Transformer, x: Tensor) -> Tensor:
    """The final layer of the designs without modulation."""
    last = model.final_layer
    return model.unpatchify(last.linear(norm(x, last.norm_final)))


def adaln(model: Transformer, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    x, t, y = begin(model, x, t, y)
    c = F.silu(t + y)
    for block in model.blocks:
        shift1, scale1, shift2, scale2 = block.adaLN_modulation[1](c).split(WIDTH, dim=2)
        x = x + self_attention(block.attn, norm(x) * (1 + scale1) + shift1)
        x = x + mlp(block.mlp, norm(x) * (1 + scale2) + shift2)
    shift, scale = model.final_layer.adaLN_modulation[1](c).split(WIDTH, dim=2)
    return model.unpatchify(model.final_layer.linear(norm(x) * (1 + scale) + shift))


def cross_attention(model: Transformer, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    x, t, y = begin(model, x, t, y)
    context = torch.cat([t, y], dim=1)
    for block in model.blocks:
        x = x + self_attention(block.attn, norm(x, block.norm1))
        layer = block.cross_attn
        k, v = layer.kv(context).split(WIDTH, dim=2)
        x = x + layer.proj(attend(layer.q(norm(x, block.norm2)), k, v))
        x = x + mlp(block.mlp, norm(x, block.norm3))
    return end(model, x)


def in_context(model: Transformer, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    x = torch.cat(begin(model, x, t, y), dim=1)
    for block in model.blocks:
        x = x + self_attention(block.attn, norm(x, block.norm1))
        x = x + mlp(block.mlp, norm(x, block.norm2))
    return end(model, x[:, :-2])


@pytest.mark.parametrize("definition", [adaln, cross_attention, in_context])
def test_networks_equal_their_definition(definition) -> None:
    """Catches: shift taken for scale, layers in another order or with another LayerNorm, k and v
    from the image, the appended tokens kept or image tokens dropped for them."""
    model = network(definition.__name__.replace("_", "-"))
    torch.testing.assert_close(model(*inputs()), definition(model, *inputs()), **CLOSE)


@every_block
def test_every_design_depends_on_time_and_label(block: str) -> None:
    """Catches: a condition that never reaches the image, or reaches another sample's."""
    model = network(block)
    x, t, y = inputs()
    before = model(x, t, y)
    changed = torch.tensor([0, 1, 0])
    for after in (model(x, t + 0.3 * changed, y), model(x, t, y + changed)):
        difference = (after - before).abs().flatten(1).amax(1)
        assert difference[1] > 0.01
        torch.testing.assert_close(after[[0, 2]], before[[0, 2]], **CLOSE)


@pytest.mark.parametrize("block", ["cross-attention", "in-context"])
def test_time_and_label_are_tokens_of_their_own(block: str) -> None:
    """Catches: the sum of the two embeddings where the paper has a sequence of them: then, and only
    then, moving a vector from one to the other changes nothing."""
    model = network(block)
    before = model(*inputs())
    shift = torch.randn(WIDTH)
    model.t_embedder.mlp[2].bias.data += shift
    model.y_embedder.embedding_table.weight.data -= shift
    assert (model(*inputs()) - before).abs().max() > 0.01


@every_block
def test_every_parameter_has_a_gradient(block: str) -> None:
    """Catches: a layer that is made, saved and counted but never used."""
    model = network(block)
    model(*inputs()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@every_block
def test_initialisation(block: str) -> None:
    """Catches: a design whose own layers keep torch's defaults, or a modulation that is not
    zero."""
    model = Transformer(dataclasses.replace(TINY, block=block))
    for name, parameter in model.blocks.named_parameters():
        if "adaLN_modulation" in name or name.endswith("bias"):
            assert torch.equal(parameter, torch.zeros_like(parameter)), name
        elif "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        else:
            limit = (6 / sum(parameter.shape)) ** 0.5  # Xavier's uniform
            assert 0.9 * limit < parameter.abs().max() <= limit, name


@every_block
def test_designs_compute_in_bf16(block: str) -> None:
    """Catches: embeddings of different types that cannot be joined under autocast."""
    model = network(block)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(*inputs()).float()
    exact = model(*inputs())
    assert (half - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("block", ["cross-attention", "in-context"])
def test_affine_norms_have_the_papers_eps(block: str) -> None:
    """Catches: torch's default eps of 1e-5 in the designs that have LayerNorm modules."""
    modules = Transformer(dataclasses.replace(TINY, block=block)).modules()
    assert {m.eps for m in modules if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_final_layers_fit_their_blocks() -> None:
    """Catches: a modulated final layer after blocks that modulate nothing, or the reverse."""
    for design in BLOCKS.values():
        keys = design.final(WIDTH, 2, 4).state_dict()
        assert any("adaLN" in key for key in keys) == bool(design.vectors)
        assert any("norm" in key for key in keys) == design.affine


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [64, blocks.MOST_KEPT_SCORES + 1])
def test_attention_is_its_definition_in_every_dtype(dtype: torch.dtype, tokens: int) -> None:
    """Catches: a way of computing it, chosen by dtype and length, that is another function."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, tokens, 16, generator=random).to(dtype) for _ in range(3))
    wide = [part.double() for part in (q, k, v)]
    weights = (wide[0] @ wide[1].transpose(-1, -2) / 4).softmax(-1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    found = blocks.attend(q, k, v)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), weights @ wide[2], atol=tolerance, rtol=tolerance)


def test_swiglu_by_hand() -> None:
    """Catches: the gate on the other half, or a width that costs more than the plain one's."""
    layer = SwiGLU(6, 24)
    x = torch.randn(2, 6)
    hidden = F.linear(x, layer.w12.weight, layer.w12.bias)
    a, b = hidden[:, :16], hidden[:, 16:]
    expected = F.linear(a * torch.sigmoid(a) * b, layer.w3.weight, layer.w3.bias)
    torch.testing.assert_close(layer(x), expected)


def test_qk_norm_forgets_lengths() -> None:
    """Catches: normalised over all heads, or before the projection: attention would see the
    scale."""
    attention = Attention(32, 4, qk_norm=True)
    x = torch.randn(2, 5, 32)
    before = attention(x)
    with torch.no_grad():
        scales = torch.ones(96)
        scales[:8], scales[32:40] = 7.0, 0.2  # the first head's queries and keys
        attention.qkv.weight *= scales[:, None]
        attention.qkv.bias *= scales
    torch.testing.assert_close(attention(x), before, atol=1e-4, rtol=1e-4)


def test_layer_norm_of_queries_and_keys() -> None:
    """Catches: another eps than timm's, whose default REPA's --qk-norm takes, or no bias."""
    attention = Attention(16, 2, qk_norm=True, qk_kind="layer")
    torch.nn.init.normal_(attention.q_norm.bias)
    x = torch.randn(3, 8) * 1e-3
    centred = x - x.mean(1, keepdim=True)
    expected = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(attention.q_norm(x), expected + attention.q_norm.bias)


def test_rms_norm_by_hand() -> None:
    """Catches: a mean that is subtracted."""
    block = BLOCKS["adaln-zero"].block(4, 1, Style(norm="rms"))
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [1.0, -1.0, 2.0, 0.0]])
    expected = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(block.norm1(x), expected)


def test_what_count_costs_charges_is_in_the_layers() -> None:
    """Catches: a number of a Design that is not the layer's own."""
    style = Style()
    for design in BLOCKS.values():
        block, final = design.block(WIDTH, 2, style), design.final(WIDTH, 2, 4, "layer")
        for module, vectors in ((block, design.vectors), (final, design.final_vectors)):
            sizes = [w.shape for key, w in module.state_dict().items() if "adaLN" in key]
            assert [s[0] for s in sizes if len(s) == 2] == [vectors * WIDTH] * bool(vectors)
        norms = [m for m in block.modules() if isinstance(m, torch.nn.LayerNorm)]
        assert len(norms) == design.norms
        tokens, vector = torch.zeros(2, 3, WIDTH), torch.zeros(2, WIDTH)
        longer, condition = design.condition(tokens, vector, vector)
        assert longer.shape[1] == 3 + design.appended
        context = 0 if condition is None or condition.ndim == 2 else condition.shape[1]
        assert context == design.context


def test_the_modulation_of_all_blocks_is_a_product_in_float32() -> None:
    """Catches: the rounding of bfloat16 in what scales every token of every block."""
    layers = [torch.nn.Linear(8, n) for n in (4, 6)]
    c = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    together = blocks.Modulation(layers)
    with torch.autocast("cpu", torch.bfloat16):
        found = together(c)
    expected = torch.cat([layer(torch.nn.functional.silu(c)) for layer in layers], dim=1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
