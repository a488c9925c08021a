"""Parts that the papers' networks have not: against formulas, and against the networks without."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sitcli.model.blocks import BLOCKS, Attention, Style, SwiGLU
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import rotary_embedding
from sitcli.model.flops import count_costs, measure_cost, total_cost, training_macs
from sitcli.model.transformer import AUX, Route, Transformer

CPU = torch.device("cpu")
STYLES = list(itertools.product(["gelu", "swiglu"], ["layer", "rms"], [False, True], [False, True]))


def config(**changes) -> TransformerConfig:
    shape = dict(
        input_size=8, patch=2, channels=3, out_channels=3, width=32, depth=4, heads=4, num_classes=5
    )
    return TransformerConfig(**{**shape, **changes})


def network(**changes) -> Transformer:
    """With random weights everywhere: at first all blocks are the identity."""
    torch.manual_seed(0)
    made = Transformer(config(**changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made.eval()


def inputs(number: int = 3):
    random = torch.Generator().manual_seed(1)
    x = torch.randn(number, 3, 8, 8, generator=random)
    return x, torch.rand(number, generator=random), torch.arange(number)


def test_rope_knows_offsets_alone() -> None:
    """Fault: axes exchanged or positions added: q . k would change when both move."""
    rope = rotary_embedding(16, 5, 7, 1, CPU)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def product(a: tuple[int, int], b: tuple[int, int]) -> float:
        places = [row * 7 + column for row, column in (a, b)]
        turned = [
            rope.of(torch.tensor([[p]])).rotate(v) for p, v in zip(places, (q, k), strict=True)
        ]
        return float((turned[0] * turned[1]).sum())

    assert product((0, 1), (2, 4)) == pytest.approx(product((2, 3), (4, 6)), abs=1e-5)
    assert product((0, 1), (2, 4)) != pytest.approx(product((0, 1), (4, 2)), abs=1e-3)
    assert product((1, 1), (1, 1)) == pytest.approx(float((q * k).sum()), abs=1e-5)
    appended = rope.of(torch.tensor([[35]])).rotate(q)
    torch.testing.assert_close(appended, q)


def test_rope_by_hand() -> None:
    """Fault: other frequencies: 1 and 1/100 for eight channels, the first half of the pairs by the
    row."""
    rope = rotary_embedding(8, 3, 3, 0, CPU)
    x = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).view(1, 1, 1, 8)
    found = rope.of(torch.tensor([[2 * 3 + 1]])).rotate(x).flatten()
    angles = torch.tensor([2.0, 0.02, 1.0, 0.01])
    torch.testing.assert_close(found, torch.cat([angles.cos(), angles.sin()]))


def test_swiglu_by_hand() -> None:
    """Fault: the gate on the other half, or a width that costs more than the plain one's."""
    layer = SwiGLU(6, 24)
    x = torch.randn(2, 6)
    hidden = F.linear(x, layer.w12.weight, layer.w12.bias)
    a, b = hidden[:, :16], hidden[:, 16:]
    expected = F.linear(a * torch.sigmoid(a) * b, layer.w3.weight, layer.w3.bias)
    torch.testing.assert_close(layer(x), expected)


def test_qk_norm_forgets_lengths() -> None:
    """Fault: normalised over all heads, or before the projection: attention would see the scale."""
    attention = Attention(32, 4, qk_norm=True)
    x = torch.randn(2, 5, 32)
    before = attention(x)
    with torch.no_grad():
        scales = torch.ones(96)
        scales[:8], scales[32:40] = 7.0, 0.2  # the first head's queries and keys
        attention.qkv.weight *= scales[:, None]
        attention.qkv.bias *= scales
    torch.testing.assert_close(attention(x), before, atol=1e-4, rtol=1e-4)


def test_rms_norm_by_hand() -> None:
    """Fault: a mean that is subtracted."""
    block = BLOCKS["adaln-zero"].block(4, 1, Style(norm="rms"))
    x = torch.tensor([[3.0, 3.0, 3.0, 3.0], [1.0, -1.0, 2.0, 0.0]])
    expected = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(block.norm1(x), expected)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("mlp", "norm", "rope", "qk_norm"), STYLES)
def test_costs_of_every_style(block: str, mlp: str, norm: str, rope: bool, qk_norm: bool) -> None:
    """Fault: a formula that forgets a gain, or the odd hidden width of SwiGLU."""
    made = config(
        block=block, mlp=mlp, norm=norm, rope=rope, qk_norm=qk_norm, width=40, heads=5,
        aux_block=2, align_block=1, align_width=7,
    )  # fmt: skip
    assert total_cost(made) == measure_cost(made)


@pytest.mark.parametrize("block", BLOCKS)
def test_costs_of_a_routed_step(block: str) -> None:
    """Fault: an MFU that counts the tokens that were skipped."""
    made = config(block=block, aux_block=2, align_block=1, align_width=7)
    with torch.device("meta"):
        built = Transformer(made)
        x, t, y = torch.empty(1, 3, 8, 8), torch.empty(1), torch.empty(1, dtype=torch.long)
        route = Route(torch.empty(1, 5, dtype=torch.long), 1, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        built(x, t, y, route=route, taps=("aux", "align"))
    found = training_macs(made, routed=(5, 1, 3), aux=True, align=True)
    assert found == counter.get_total_flops() // 2
    assert training_macs(made) == sum(part.macs for part in count_costs(made).values())


@pytest.mark.parametrize("style", STYLES, ids=str)
def test_every_style_begins_as_zero_and_sees_positions(style) -> None:
    """Fault: an output that is not zero at first, or a part that is built and never used."""
    mlp, norm, rope, qk_norm = style
    made = dict(mlp=mlp, norm=norm, rope=rope, qk_norm=qk_norm)
    assert Transformer(config(**made))(*inputs()).count_nonzero() == 0
    built = network(**made)
    built(*inputs()).square().mean().backward()
    without = [name for name, p in built.named_parameters() if p.grad is None]
    assert without == []


def test_the_default_has_the_official_keys() -> None:
    """Fault: a module that adds keys where its option is off."""
    keys = set(Transformer(config()).state_dict())
    blocks = {key.split(".", 2)[2] for key in keys if key.startswith("blocks.")}
    linear = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"]
    assert blocks == {f"{name}.{part}" for name in linear for part in ("weight", "bias")}
    assert not [key for key in keys if key.startswith(("aux_", "projectors"))]


@pytest.mark.parametrize("rope", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_routing_all_tokens_changes_nothing(block: str, rope: bool) -> None:
    """Fault: tokens that come back at other places, or turned by other positions."""
    made = network(block=block, rope=rope)
    order = torch.stack([torch.randperm(16) for _ in range(3)])
    plain = made(*inputs())
    torch.testing.assert_close(made(*inputs(), route=Route(order, 1, 3)), plain)
    torch.testing.assert_close(made(*inputs(), route=Route(order, 2, 4)), plain)


@pytest.mark.parametrize("block", BLOCKS)
def test_skipping_tokens_wait(block: str) -> None:
    """Fault: tokens that skip blocks are seen by the others, changed, or lost."""
    made = network(block=block)
    x, t, y = inputs()
    places = torch.tensor([[0, 3, 5], [1, 2, 15], [7, 8, 9]])
    skipping = torch.tensor([[i for i in range(16) if i not in row] for row in places.tolist()])
    taps = (1, 2, 3)
    _, found = made(x, t, y, route=Route(places, 1, 3), taps=taps)

    def at(tokens, where):
        return tokens.gather(1, where[..., None].expand(-1, -1, 32))

    assert torch.equal(at(found[3], skipping), at(found[1], skipping))
    assert not torch.allclose(at(found[3], places), at(found[1], places))
    # Those that pass see each other alone: what the others hold is of no consequence.
    changed = x.clone()
    token = int(skipping[0, 4])
    row, column = 2 * (token // 4), 2 * (token % 4)
    made.blocks[0].register_forward_hook(lambda m, i, o: i[0])  # so that nothing was mixed before
    _, before = made(x, t, y, route=Route(places, 1, 3), taps=taps)
    changed[0, :, row : row + 2, column : column + 2] += 1
    _, after = made(changed, t, y, route=Route(places, 1, 3), taps=taps)
    assert torch.equal(at(before[3], places), at(after[3], places))


def test_the_second_head_is_a_shorter_network() -> None:
    """Fault: a head that reads other tokens than those after its block."""
    made = network(aux_block=2)
    short = network(depth=2)
    state = made.state_dict()
    for key in short.state_dict():
        source = key.replace("final_layer", "aux_final_layer")
        short.state_dict()[key].copy_(state[source])
    output, aux = made.two_headed(*inputs())
    torch.testing.assert_close(aux, short(*inputs()))
    torch.testing.assert_close(output, made(*inputs()))
    assert not torch.allclose(output, aux)
    assert made(*inputs(), taps=(AUX,))[1].keys() == {AUX}


def test_the_backbone_is_untouched() -> None:
    """Fault: a head or projector without which the weights are no official network's."""
    made = network(aux_block=2, align_block=1, align_width=6)
    plain = Transformer(made.config.backbone)
    more = {k for k in made.state_dict() if not k.startswith(("aux_", "projectors."))}
    assert more == set(plain.state_dict())
    plain.load_state_dict({key: made.state_dict()[key] for key in more})
    torch.testing.assert_close(plain(*inputs()), made(*inputs()))


def test_parts_that_do_not_fit() -> None:
    """Fault: heads of three channels turned in pairs, a head after the last block."""
    with pytest.raises(ValueError, match="multiple of 4 channels"):
        config(width=24, heads=4, rope=True)
    with pytest.raises(ValueError, match="auxiliary block 4"):
        config(aux_block=4)
    with pytest.raises(ValueError, match="both its block"):
        config(align_block=1)
