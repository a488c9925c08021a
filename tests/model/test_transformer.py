"""Parts that the papers' networks have not: against formulas, and against the networks without."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from sitcli.model.blocks import BLOCKS
from sitcli.model.transformer import AUX, Route, Transformer
from sitcli.weights.official import infer_config
from tests.model.networks import (
    TINY,
    every_block,
    filled,
    plain_config,
    random_network,
    some_inputs,
)


@every_block
def test_output_is_exactly_zero_at_initialisation(block: str) -> None:
    """Catches: an adaLN gate or the final layer that does not begin at zero."""
    model = Transformer(dataclasses.replace(TINY, block=block))
    out = model(torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 5, 10]))
    assert out.shape == (3, 8, 8, 8)
    assert torch.equal(out, torch.zeros_like(out))


def test_blocks_are_the_identity_at_initialisation() -> None:
    """Catches: a gate applied to the wrong branch."""
    model = Transformer(TINY)
    x, c = torch.randn(2, 16, 32), torch.randn(2, 32)
    assert torch.equal(model.blocks[0](x, c), x)


def test_initial_values_are_the_official_ones() -> None:
    """Catches: a layer left at torch's own initialisation, the patch convolution above all: uniform
    up to 1/sqrt(fan in) = 0.25 here instead of 0.354, and a bias that is not zero.

    The values are those of initialize_weights in models.py of facebookresearch/DiT (willisma/SiT
    has the same): Xavier uniform, up to sqrt(6 / (fan in + fan out)), for all linear layers and for
    the patch convolution as a linear map of C p^2 numbers; normal of std 0.02 for the labels' table
    and the times' MLP; zero for biases, modulations and the final layer.
    """
    torch.manual_seed(0)
    model = Transformer(TINY)
    drawn_from_a_normal = {
        "y_embedder.embedding_table.weight", "t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight",
    }  # fmt: skip
    seen = 0
    for name, values in model.named_parameters():
        values, number = values.detach(), values.numel()
        if name == "pos_embed":
            continue
        if name.endswith("bias") or "adaLN_modulation" in name or "final_layer" in name:
            assert not values.any(), name
            continue
        if name in drawn_from_a_normal:
            expected, kurtosis = 0.02, 3.0
        else:
            matrix = values.flatten(1)
            bound = math.sqrt(6 / sum(matrix.shape))
            assert 0.98 * bound < float(values.abs().max()) <= bound, name
            expected, kurtosis = bound / math.sqrt(3), 9 / 5
        # The standard error of a standard deviation, relative; five of them.
        error = math.sqrt((kurtosis - 1) / number) / 2
        assert float(values.std()) == pytest.approx(expected, rel=5 * error), name
        seen += 1
    assert seen == 4 + 4 * TINY.depth  # patches, times, labels; qkv, proj, fc1 and fc2 of a block
    patches = model.x_embedder.proj.weight
    assert math.isclose(float(patches.detach().abs().max()), math.sqrt(6 / (16 + 32)), rel_tol=0.02)


@every_block
def test_modulation_at_once_changes_nothing(block: str) -> None:
    """Catches: a block that gets another block's part, or its own layer applied once more."""
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
    """Catches: tokens read in (c, p, q) instead of the official (p, q, c) order."""
    config = dataclasses.replace(TINY, out_channels=3)
    model = Transformer(config)
    image = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    tokens = image.view(2, 3, 4, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 16, 12)
    assert torch.equal(model.unpatchify(tokens), image)


def test_patch_tokens_are_rows_first() -> None:
    """Catches: transposed token grid, which the position embedding would not notice by itself."""
    model = filled(TINY)
    x = torch.zeros(1, 4, 8, 8)
    x[0, :, 0:2, 2:4] = 1.0  # second patch of the first row
    base = model.x_embedder(torch.zeros_like(x))
    changed = (model.x_embedder(x) - base).abs().sum(-1)[0]
    assert changed.nonzero().flatten().tolist() == [1]


@every_block
def test_every_block_gets_rows_of_memory(block: str) -> None:
    """Catches: blocks that work across a convolution's layout, tokens apart and channels along."""
    model = filled(dataclasses.replace(TINY, block=block))
    layouts = []
    for module in model.blocks:
        module.register_forward_pre_hook(lambda _, inputs: layouts.append(inputs[0].stride(2)))
    model(torch.randn(2, 4, 8, 8), torch.rand(2), torch.tensor([1, 2]))
    assert layouts == [1] * TINY.depth


def test_state_dict_has_the_official_keys() -> None:
    """Catches: a renamed layer, which would make official weights unloadable."""
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


def test_attention_equals_its_definition() -> None:
    """Catches: heads and channels mixed up in the packed projection."""
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
    """Catches: a reduction over the batch, or tokens appended along it."""
    model = filled(dataclasses.replace(TINY, block=block))
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([1, 2, 3])
    together, alone = model(x, t, y)[1], model(x[1:2], t[1:2], y[1:2])[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


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
    """Catches: blocks recomputed from other inputs, left out of the gradient, or backward in fp32
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
    """Catches: an option that saves nothing, or recomputes other blocks than it says."""
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


def test_a_grid_that_is_not_square() -> None:
    """Catches: rows and columns exchanged in the embedding, the patches or their inverse; a grid
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


STYLES = list(itertools.product(["gelu", "swiglu"], ["layer", "rms"], [False, True], [False, True]))


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_style_begins_as_zero_and_sees_positions(style) -> None:
    """Catches: an output that is not zero at first, or a part that is built and never used."""
    mlp, norm, rope, qk_norm = style
    made = dict(mlp=mlp, norm=norm, rope=rope, qk_norm=qk_norm)
    assert Transformer(plain_config(**made))(*some_inputs()).count_nonzero() == 0
    built = random_network(**made)
    built(*some_inputs()).square().mean().backward()
    without = [name for name, p in built.named_parameters() if p.grad is None]
    assert without == []


def test_the_default_has_the_official_keys() -> None:
    """Catches: a module that adds keys where its option is off."""
    keys = set(Transformer(plain_config()).state_dict())
    blocks = {key.split(".", 2)[2] for key in keys if key.startswith("blocks.")}
    linear = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    assert blocks == {f"{name}.{part}" for name in linear for part in ("weight", "bias")}
    assert not [key for key in keys if key.startswith(("aux_", "projectors"))]


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_routing_all_tokens_changes_nothing(block: str, rope: bool) -> None:
    """Catches: tokens that come back at other tokens_kept, or turned by other positions."""
    made = random_network(block=block, rope=rope)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    plain = made(*some_inputs())
    torch.testing.assert_close(made(*some_inputs(), route=Route(order, 1, 3)), plain)
    torch.testing.assert_close(made(*some_inputs(), route=Route(order, 2, 4)), plain)


@pytest.mark.parametrize("block", BLOCKS)
def test_skipping_tokens_wait(block: str) -> None:
    """Catches: tokens that skip blocks are seen by the others, changed, or lost."""
    made = random_network(block=block)
    x, t, y = some_inputs()
    tokens_kept = torch.tensor([[0, 3, 5], [1, 2, 15], [7, 8, 9]])
    skipping = torch.tensor(
        [[i for i in range(16) if i not in row] for row in tokens_kept.tolist()]
    )
    taps = (1, 2, 3)
    _, found = made(x, t, y, route=Route(tokens_kept, 1, 3), taps=taps)

    def at(tokens, where):
        return tokens.gather(1, where[..., None].expand(-1, -1, 32))

    assert torch.equal(at(found[3], skipping), at(found[1], skipping))
    assert not torch.allclose(at(found[3], tokens_kept), at(found[1], tokens_kept))
    # Those that pass see each other alone: what the others hold is of no consequence.
    changed = x.clone()
    token = int(skipping[0, 4])
    row, column = 2 * (token // 4), 2 * (token % 4)
    made.blocks[0].register_forward_hook(lambda m, i, o: i[0])  # so that nothing was mixed before
    _, before = made(x, t, y, route=Route(tokens_kept, 1, 3), taps=taps)
    changed[0, :, row : row + 2, column : column + 2] += 1
    _, after = made(changed, t, y, route=Route(tokens_kept, 1, 3), taps=taps)
    assert torch.equal(at(before[3], tokens_kept), at(after[3], tokens_kept))


def test_the_second_head_is_a_shorter_network() -> None:
    """Catches: a head that reads other tokens than those after its block."""
    made = random_network(aux_block=2)
    short = random_network(depth=2)
    state = made.state_dict()
    for key in short.state_dict():
        source = key.replace("final_layer", "aux_final_layer")
        short.state_dict()[key].copy_(state[source])
    output, aux = made.two_headed(*some_inputs())
    torch.testing.assert_close(aux, short(*some_inputs()))
    torch.testing.assert_close(output, made(*some_inputs()))
    assert not torch.allclose(output, aux)
    assert made(*some_inputs(), taps=(AUX,))[1].keys() == {AUX}


def test_the_backbone_is_untouched() -> None:
    """Catches: a head or projector without which the weights are no official network's."""
    made = random_network(aux_block=2, align_block=1, align_width=6)
    plain = Transformer(made.config.backbone)
    more = {k for k in made.state_dict() if not k.startswith(("aux_", "projectors."))}
    assert more == set(plain.state_dict())
    plain.load_state_dict({key: made.state_dict()[key] for key in more})
    torch.testing.assert_close(plain(*some_inputs()), made(*some_inputs()))


def test_parts_that_do_not_fit() -> None:
    """Catches: heads of three channels turned in pairs, a head after the last block."""
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        plain_config(width=24, heads=4, rope=True)
    with pytest.raises(ValueError, match="auxiliary block 4"):
        plain_config(aux_block=4)
    with pytest.raises(ValueError, match="both its block"):
        plain_config(align_block=1)
