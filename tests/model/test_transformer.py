"""The network against what the papers fix exactly: zero at init, layouts, keys, embeddings."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sitcli.commands.parsing import parse_checkpoint_blocks
from sitcli.model.blocks import BLOCKS
from sitcli.model.config import PRESETS, TransformerConfig, parse_model
from sitcli.model.transformer import Transformer
from sitcli.weights.official import infer_config

TINY = TransformerConfig(
    input_size=8, patch=2, channels=4, out_channels=8, width=32, depth=2, heads=4, num_classes=10
)


def filled(config: TransformerConfig) -> Transformer:
    """A network whose zero-initialised layers are random too, so that outputs say something."""
    torch.manual_seed(0)
    model = Transformer(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


every_block = pytest.mark.parametrize("block", BLOCKS)


@every_block
def test_output_is_exactly_zero_at_initialisation(block: str) -> None:
    """Fault: an adaLN gate or the final layer that does not begin at zero."""
    model = Transformer(dataclasses.replace(TINY, block=block))
    out = model(torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 5, 10]))
    assert out.shape == (3, 8, 8, 8)
    assert torch.equal(out, torch.zeros_like(out))


def test_blocks_are_the_identity_at_initialisation() -> None:
    """Fault: a gate applied to the wrong branch."""
    model = Transformer(TINY)
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(model.blocks[0](x, c), x)


@every_block
def test_modulation_at_once_changes_nothing(block: str) -> None:
    """Fault: a block that gets another block's part, or its own layer applied once more."""
    model = filled(dataclasses.replace(TINY, block=block, depth=3))
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 5, 10])
    before = model(x, t, y)
    model.modulate_at_once()
    assert torch.allclose(model(x, t, y), before, rtol=1e-4, atol=1e-4 * float(before.std()))
    products = [m for m in model.blocks.modules() if isinstance(m, torch.nn.Linear)]
    assert not any("adaLN_modulation" in name for name, _ in model.blocks.named_parameters())
    assert (model.modulation is not None) == block.startswith("adaln")
    assert len(products) == 3 * (7 if block == "cross-attention" else 4)


def test_unpatchify_undoes_patch_order() -> None:
    """Fault: tokens read in (c, p, q) instead of the official (p, q, c) order."""
    config = dataclasses.replace(TINY, out_channels=3)
    model = Transformer(config)
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    tokens = image.view(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 12)
    assert torch.equal(model.unpatchify(tokens), image)


def test_patch_tokens_are_rows_first() -> None:
    """Fault: transposed token grid, which the position embedding would not notice by itself."""
    model = filled(TINY)
    x = torch.zeros(1, 4, 8, 8)
    x[0, :, 0:2, 2:4] = 1.0  # second patch of the first row
    base = model.x_embedder(torch.zeros_like(x))
    changed = (model.x_embedder(x) - base).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1]


@every_block
def test_every_block_gets_rows_of_memory(block: str) -> None:
    """Fault: blocks that work across a convolution's layout, tokens apart and channels along."""
    model = filled(dataclasses.replace(TINY, block=block))
    layouts = []
    for module in model.blocks:
        module.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].stride(2)))
    model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2]))
    assert layouts == [1] * TINY.depth


def test_position_embedding_values() -> None:
    """Fault: row and column halves swapped, or another frequency ladder."""
    model = Transformer(TINY)
    row, column, i = 2, 3, 5
    token = model.pos_embed[0, row * 4 + column]
    omega = 10000 ** (-i / 8)
    assert math.isclose(token[i].item(), math.sin(column * omega), abs_tol=1e-6)
    assert math.isclose(token[8 + i].item(), math.cos(column * omega), abs_tol=1e-6)
    assert math.isclose(token[16 + i].item(), math.sin(row * omega), abs_tol=1e-6)


def test_time_features_are_cosines_first() -> None:
    """Fault: [sin|cos] order, or times multiplied by 1000."""
    from sitcli.model.embed import sinusoid

    features = sinusoid(torch.tensor([0.7]), 256)[0]
    assert math.isclose(features[0].item(), math.cos(0.7), abs_tol=1e-6)
    assert math.isclose(features[128 + 1].item(), math.sin(0.7 * 10000 ** (-1 / 128)), abs_tol=1e-6)


def test_state_dict_has_the_official_keys() -> None:
    """Fault: a renamed layer, which would make official weights unloadable."""
    top = {key for key in Transformer(TINY).state_dict() if not key.startswith("blocks.")}
    assert top == {
        "pos_embed",
        "x_embedder.proj.weight",
        "x_embedder.proj.bias",
        "t_embedder.mlp.0.weight",
        "t_embedder.mlp.0.bias",
        "t_embedder.mlp.2.weight",
        "t_embedder.mlp.2.bias",
        "y_embedder.embedding_table.weight",
        "final_layer.linear.weight",
        "final_layer.linear.bias",
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.bias",
    }
    block = {
        key.removeprefix("blocks.1.")
        for key in Transformer(TINY).state_dict()
        if key.startswith("blocks.1.")
    }
    names = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    assert block == {f"{name}.{part}" for name in names for part in ("weight", "bias")}


@every_block
def test_config_is_inferred_from_shapes(block: str) -> None:
    """Fault: learned-sigma outputs, the class count or the block design read from a flag instead
    of the weights."""
    for classes in (0, 10):
        config = dataclasses.replace(TINY, num_classes=classes, block=block)
        assert infer_config(Transformer(config).state_dict(), heads=4) == config


def test_other_blocks_are_not_taken_for_one_of_ours() -> None:
    """Fault: weights with more or fewer layers in a block loaded as the next best design."""
    state = Transformer(TINY).state_dict()
    with pytest.raises(ValueError, match="no known design"):
        infer_config(state | {"blocks.0.attn.q_norm.weight": torch.ones(8)}, heads=4)
    del state["blocks.0.mlp.fc1.bias"]
    with pytest.raises(ValueError, match="no known design"):
        infer_config(state, heads=4)


def test_attention_equals_its_definition() -> None:
    """Fault: heads and channels mixed up in the packed projection."""
    attention = filled(TINY).blocks[0].attn
    x = torch.randn(2, 16, 32)
    q, k, v = attention.qkv(x).split(32, dim=2)
    heads = []
    for h in range(4):
        s = slice(8 * h, 8 * h + 8)
        weights = (q[..., s] @ k[..., s].transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ v[..., s])
    expected = attention.proj(torch.cat(heads, dim=2))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-5)


@every_block
def test_samples_do_not_influence_each_other(block: str) -> None:
    """Fault: a reduction over the batch, or tokens appended along it."""
    model = filled(dataclasses.replace(TINY, block=block))
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([1, 2, 3])
    together, alone = model(x, t, y)[1], model(x[1:2], t[1:2], y[1:2])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["SiT-XXL/2", "SiT-S", "UViT-S/2", "SiT-S/0", "sit-s/2"])
def test_unknown_models_are_refused(name: str) -> None:
    """Fault: a misspelt model silently taken for another."""
    with pytest.raises(ValueError, match="no model"):
        parse_model(name)


def gradients(network: Transformer) -> list[torch.Tensor]:
    """Of all parameters, for a fixed batch."""
    random = torch.Generator().manual_seed(1)
    network.zero_grad()
    x, t = torch.randn(3, 4, 8, 8, generator=random), torch.rand(3, generator=random)
    network(x, t, torch.arange(3)).float().square().mean().backward()
    return [parameter.grad.clone() for parameter in network.parameters()]


@every_block
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_activations_give_the_same_gradients(block: str, dtype: torch.dtype) -> None:
    """Fault: blocks recomputed from other inputs, left out of the gradient, or backward in fp32
    what was bf16 forward."""
    network = filled(dataclasses.replace(TINY, block=block, depth=3))
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        plain = gradients(network)
        for every in (1, 2):
            network.checkpoint_every = every
            assert all(map(torch.equal, gradients(network), plain))
    network.checkpoint_every = 1
    assert network.state_dict().keys() == Transformer(network.config).state_dict().keys()


@every_block
def test_every_recomputed_block_frees_its_activations(block: str) -> None:
    """Fault: an option that saves nothing, or recomputes other blocks than it says."""
    network = filled(dataclasses.replace(TINY, block=block, depth=6))
    own = {p.data_ptr() for p in network.parameters()}
    kept = {}
    for every in range(4):
        network.checkpoint_every = every
        saved = {}

        def keep(tensor: torch.Tensor, saved: dict = saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.randn(3, 4, 8, 8), torch.rand(3), torch.arange(3))
        kept[every] = sum(storage.nbytes() for storage in saved.values())
    # What recomputing 1 of the 6 frees, from 6, 3 and 2 recomputed.
    (one,) = {(kept[0] - kept[every]) / (6 / every) for every in (1, 2, 3)}
    # Of (3, T, 32): the inputs of the MLP's GELU (4), of fc2 (4) and of the packed attention (3).
    tokens = TINY.tokens + BLOCKS[block].appended
    assert one > (4 + 4 + 3) * 3 * tokens * 32 * 4


def test_checkpoint_blocks_are_parsed() -> None:
    """Fault: every-0, which divides by zero, or a misspelling that means none."""
    texts = ["none", "all", "every-1", "every-12"]
    assert [*map(parse_checkpoint_blocks, texts)] == [0, 1, 1, 12]
    for text in ("", "every", "every-0", "every-", "2", "All", "every-1.5", "every--2"):
        with pytest.raises(ValueError, match="is none of none, all, every-2"):
            parse_checkpoint_blocks(text)


def test_presets() -> None:
    """Fault: a preset's size changed by accident."""
    assert PRESETS["XL"] == (28, 1152, 16)
    assert parse_model("SiT-XL/2") == ("SiT", "XL", 2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    """Fault: a floor division that silently drops pixels."""
    with pytest.raises(ValueError, match="patch"):
        dataclasses.replace(TINY, patch=3)
    with pytest.raises(ValueError, match="heads"):
        dataclasses.replace(TINY, heads=5)


def test_unknown_block_designs_are_refused() -> None:
    """Fault: a misspelt design found only when the network is built."""
    with pytest.raises(ValueError, match="no block design is called 'adaln0'"):
        dataclasses.replace(TINY, block="adaln0")


def test_a_grid_that_is_not_square() -> None:
    """Faults: rows and columns exchanged in the embedding, the patches or their inverse; a grid
    that is not found again from the embedding alone."""
    config = dataclasses.replace(TINY, input_size=4, input_width=12)
    assert (config.grid, config.latent_shape, config.tokens) == ((2, 6), (4, 4, 12), 12)
    model = filled(config)
    assert infer_config(model.state_dict(), heads=4) == config
    square = filled(dataclasses.replace(TINY, input_size=12)).pos_embed.view(6, 6, 32)
    torch.testing.assert_close(model.pos_embed.view(2, 6, 32), square[:2])
    t, y = torch.tensor([0.3]), torch.tensor([1])
    x = torch.randn(1, 4, 4, 12)
    out = model(x, t, y)
    assert out.shape == (1, 8, 4, 12)
    # Without positions the network does not know where a token is: move patches, move outputs.
    model.pos_embed.zero_()
    moved = model(x.roll((2, 4), dims=(2, 3)), t, y)
    torch.testing.assert_close(moved, model(x, t, y).roll((2, 4), dims=(2, 3)))
    with pytest.raises(ValueError, match="does not divide the latent side 7"):
        dataclasses.replace(TINY, input_width=7)
