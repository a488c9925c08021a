"""Weights of one network as the start of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sitcli import names
from sitcli.core.reversed_time import ReversedTime
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import position_embedding
from sitcli.model.transformer import Transformer
from sitcli.weights.start import (
    KEPT,
    LABELS,
    LEFT_OUT,
    NEW,
    POSITIONS,
    RESAMPLED,
    Fate,
    Start,
    start_from,
    turn_time,
)
from tests.tiny import random_network

SOURCE = TransformerConfig(
    input_size=8, patch=2, channels=4, out_channels=4, width=16, depth=2, heads=2, num_classes=3
)


def started(config=SOURCE, *, source=SOURCE, weights=None, classes="abc", source_classes="abc"):
    """(the start, the state dict of a network that began from it, the source's)."""
    torch.manual_seed(0)
    weights = weights or random_network(source).state_dict()
    torch.manual_seed(1)
    network = Transformer(config)
    names_ = dict(source_classes=list(source_classes), classes=list(classes))
    start = start_from(weights, source, config, **names_)
    state = start.of(network)
    network.load_state_dict(state)
    return start, state, weights


def fates(start: Start) -> set[Fate]:
    return {fate for fate in start.fates if fate.what != KEPT or fate.remark}


def test_the_same_network_begins_as_it_was():
    """Catches: a tensor that begins anew, or is changed, without need."""
    start, state, weights = started()
    assert all(torch.equal(state[name], weights[name]) for name in state)
    assert start.fates == [Fate(KEPT, f"{len(state)} tensors")]
    assert start.new == set()


@pytest.mark.parametrize(
    ("before", "now", "rows"),
    [
        ("abc", "cab", {0: 2, 1: 0, 2: 1}),
        ("abc", "xbyz", {1: 1}),
        ("abc", "xyz", {}),
        ("", "xyz", {0: 0, 1: 1, 2: 2}),
        ("abc", "", {0: 0, 1: 1, 2: 2}),
        ("", "xy", {}),
    ],
    ids=str,
)
def test_labels_go_by_name(before, now, rows):
    """Catches: a class that begins as another, a lost null class, or a new row that is an old one.

    Networks without names have their classes in order, as `sit evaluate --nll` takes them.
    """
    number = len(now) or 3
    config = replace(SOURCE, num_classes=number)
    start, state, weights = started(config, classes=now, source_classes=before)
    table, old = state[LABELS], weights[LABELS]
    assert torch.equal(table[number], old[3])
    for row in range(number):
        same = [i for i in range(3) if torch.equal(table[row], old[i])]
        assert same == ([rows[row]] if row in rows else [])
    assert (LABELS in start.new) == (len(rows) < number)
    torch.manual_seed(1)
    fresh = Transformer(config).state_dict()[LABELS]
    assert all(torch.equal(table[row], fresh[row]) for row in range(number) if row not in rows)


def test_unconditional_and_back():
    """Catches: a label table of another length taken for the same, or a null class of row 0."""
    _, state, weights = started(replace(SOURCE, num_classes=0), classes="")
    assert torch.equal(state[LABELS], weights[LABELS][3:])
    plain = replace(SOURCE, num_classes=0)
    _, state, weights = started(source=plain, source_classes="")
    assert torch.equal(state[LABELS][3], weights[LABELS][0])


def test_another_latent_size():
    """Catches: positions of the old grid, or learned ones that are lost."""
    config = replace(SOURCE, input_size=12, input_width=16)
    start, state, weights = started(config)
    assert torch.equal(state[POSITIONS], position_embedding(16, 6, 8))
    words = "6 x 8 tokens, were 4 x 4: computed"
    assert fates(start) == {Fate(RESAMPLED, POSITIONS, words)}
    # torch's bicubic kernel (a = -0.75) weighs the neighbours at a quarter of the way by
    # -0.10546875, 0.87890625, 0.26171875 and -0.03515625: a row number r becomes r + 0.296875.
    learned = torch.arange(4.0).view(4, 1, 1).expand(4, 4, 16).reshape(1, 16, 16)
    _, state, _ = started(
        replace(SOURCE, input_size=16), weights=weights | {POSITIONS: learned.contiguous()}
    )
    grid = state[POSITIONS].view(8, 8, 16)
    # Inside; at the border the interpolation repeats the last row.
    expected = torch.tensor([[1.296875], [1.703125]]).expand(2, 8)
    torch.testing.assert_close(grid[3:5, :, 0], expected)


def test_learned_sigma_comes_and_goes():
    """Catches: outputs of the wrong channels where a token's are ordered (p, q, channel)."""
    learned = replace(SOURCE, out_channels=8)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])
    for source, config in ((learned, SOURCE), (SOURCE, learned)):
        start, state, weights = started(config, source=source)
        outputs = []
        for each, tensors in ((source, weights), (config, state)):
            network = Transformer(each)
            network.load_state_dict(tensors)
            outputs.append(network(x, t, y))
        torch.testing.assert_close(outputs[0][:, :4], outputs[1][:, :4])
        assert {fate.what for fate in fates(start)} == {RESAMPLED}
    assert not outputs[1][:, 4:].any()


def test_other_channels_and_patches_begin_anew():
    """Catches: weights that are cut or repeated to fit."""
    for config in (replace(SOURCE, channels=3, out_channels=3), replace(SOURCE, patch=4)):
        start, state, _ = started(config)
        torch.manual_seed(1)
        fresh = Transformer(config).state_dict()
        for name in ("x_embedder.proj.weight", "final_layer.linear.weight"):
            assert torch.equal(state[name], fresh[name])
            assert name in start.new


def test_parts_that_come_and_go_are_named():
    """Catches: a part that begins anew or is lost, and nobody says so."""
    config = replace(
        SOURCE, rope=True, qk_norm=True, aux_block=1, align_block=1, align_width=5, norm="rms"
    )
    start, _, _ = started(config)
    assert {fate for fate in fates(start) if fate.what == NEW} >= {
        Fate(NEW, "blocks.*.attn.q_norm.weight"),
        Fate(NEW, "aux_final_layer.linear.weight"),
        Fate(NEW, "projectors.0.0.weight"),
        Fate(NEW, "RoPE"),
        Fate(NEW, "rms norms", "were layer norms"),
    }
    assert "blocks.0.attn.q_norm.weight" in start.new
    back, _, _ = started(SOURCE, source=config)
    assert {fate.part for fate in back.fates if fate.what == LEFT_OUT} >= {
        "blocks.*.attn.q_norm.weight",
        "RoPE",
        "aux_final_layer.linear.weight",
    }


@pytest.mark.parametrize("prediction", names.PREDICTIONS)
def test_time_is_turned_within_the_weights(prediction):
    """Catches: a network of reversed time that computes something else once it is converted."""
    torch.manual_seed(0)
    network, turned = random_network(SOURCE), Transformer(SOURCE)
    turned.load_state_dict(turn_time(network.state_dict(), prediction))
    x, y = torch.randn(5, 4, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    t = torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0])
    expected = ReversedTime(network, prediction=prediction)(x, t, y)
    # Sums of 256 products in float32, of numbers of order 1, and ten layers behind them.
    torch.testing.assert_close(turned(x, t, y), expected, rtol=1e-4, atol=1e-5)
    assert (expected - network(x, t, y)).abs().max() > 0.01
