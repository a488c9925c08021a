"""Embeddings of positions and times, and rotations of positions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.model.embed import LabelEmbedder, PatchEmbed, rotary_embedding, sinusoid
from sitcli.model.transformer import Transformer
from tests.model.networks import TINY


def test_position_embedding_values() -> None:
    """Catches: row and column halves swapped, or another frequency ladder."""
    model = Transformer(TINY)
    row, column, i = 2, 3, 5
    token = model.pos_embed[0, row * 4 + column]
    omega = 10000 ** (-i / 8)
    assert math.isclose(token[i].item(), math.sin(column * omega), abs_tol=1e-6)
    assert math.isclose(token[8 + i].item(), math.cos(column * omega), abs_tol=1e-6)
    assert math.isclose(token[16 + i].item(), math.sin(row * omega), abs_tol=1e-6)


def test_time_features_are_cosines_first() -> None:
    """Catches: [sin|cos] order, or times multiplied by 1000."""
    features = sinusoid(torch.tensor([0.7]), 256)[0]
    assert math.isclose(features[0].item(), math.cos(0.7), abs_tol=1e-6)
    assert math.isclose(features[128 + 1].item(), math.sin(0.7 * 10000 ** (-1 / 128)), abs_tol=1e-6)


CPU = torch.device("cpu")


def test_rope_knows_offsets_alone() -> None:
    """Catches: axes exchanged or positions added: q . k would change when both move."""
    rope = rotary_embedding(16, 5, 7, 1, CPU)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def product(a: tuple[int, int], b: tuple[int, int]) -> float:
        tokens_kept = [row * 7 + column for row, column in (a, b)]
        turned = [
            rope.of(torch.tensor([[p]])).rotate(v) for p, v in zip(tokens_kept, (q, k), strict=True)
        ]
        return float((turned[0] * turned[1]).sum())

    assert product((0, 1), (2, 4)) == pytest.approx(product((2, 3), (4, 6)), abs=1e-5)
    assert product((0, 1), (2, 4)) != pytest.approx(product((0, 1), (4, 2)), abs=1e-3)
    assert product((1, 1), (1, 1)) == pytest.approx(float((q * k).sum()), abs=1e-5)
    appended = rope.of(torch.tensor([[35]])).rotate(q)
    torch.testing.assert_close(appended, q)


def test_rope_by_hand() -> None:
    """Catches: other frequencies: 1 and 1/100 for eight channels, the first half of the pairs by
    the row."""
    rope = rotary_embedding(8, 3, 3, 0, CPU)
    x = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]).view(1, 1, 1, 8)
    found = rope.of(torch.tensor([[2 * 3 + 1]])).rotate(x).flatten()
    angles = torch.tensor([2.0, 0.02, 1.0, 0.01])
    torch.testing.assert_close(found, torch.cat([angles.cos(), angles.sin()]))


def test_patches_are_tokens_in_float32() -> None:
    """Catches: tokens and channels exchanged, or patches that are rounded to bf16 at the network's
    end, where a rounding is one of the latent itself."""
    torch.manual_seed(0)
    embed = PatchEmbed(2, 3, 5)
    x = torch.randn(2, 3, 4, 6)
    patch = x[1, :, 2:4, 4:6].reshape(-1)  # the second row of patches, its third
    expected = embed.proj.weight.flatten(1) @ patch + embed.proj.bias
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embed(x)
    assert found.shape == (2, 6, 5)
    assert found.dtype == torch.float32
    # Sums of 12 products in float32; bf16 would be off by 1e-2.
    torch.testing.assert_close(found[1, 1 * 3 + 2], expected, rtol=1e-5, atol=1e-6)


def test_the_longest_period_is_the_papers() -> None:
    """Catches: another period than the 10,000 of DiT's timestep_embedding; the angles of times near
    1,000 show a change of 1 in 10,000."""
    sines = sinusoid(torch.tensor([999.0]), 8)[0, 4:]
    expected = [math.sin(999.0 * 10000 ** (-i / 4)) for i in range(4)]
    assert sines.tolist() == pytest.approx(expected, abs=1e-4)
    # A period of 9,999 moves the second angle, 99.9, by 99.9 / 4 x 1e-4, and its sine by 2e-3.


def test_the_null_class_has_a_row() -> None:
    """Catches: a table of num_classes rows, in which the null class is none."""
    table = LabelEmbedder(5, 8).embedding_table
    assert table.weight.shape == (6, 8)
    assert LabelEmbedder(5, 8)(torch.tensor([0, 5])).shape == (2, 8)
