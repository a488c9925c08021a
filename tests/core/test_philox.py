"""Philox: its integers, the places of its numbers, and what is made of them."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from scipy import stats

from sitcli.core.philox import MOST_DRAW, Draws, _normal, philox

# Random123's kat_vectors: counter, key, and the words after ten rounds.
KNOWN = [
    (
        (0, 0, 0, 0), (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (  # the digits of pi
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, words) -> None:
    """Catches: a wrong constant, round, order of the words or half of a product."""
    found = philox([torch.tensor([word]) for word in counter], key)
    assert tuple(int(word) for word in found) == words


def by_hand(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 of Python's integers, as the paper's section 3.2 writes it."""
    (r0, l0, r1, l1), (k0, k1) = counter, key
    for _ in range(10):
        first, second = 0xD2511F53 * r0, 0xCD9E8D57 * r1
        r0, l0, r1, l1 = (
            second >> 32 ^ l0 ^ k0, second % 2**32, first >> 32 ^ l1 ^ k1, first % 2**32
        )  # fmt: skip
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [r0, l0, r1, l1]


def test_the_integers_are_those_of_python() -> None:
    """Catches: products that lose their top bit in int64, for words that no known answer has."""
    random = torch.Generator().manual_seed(0)
    counters = torch.randint(1 << 32, (4, 500), generator=random)
    key = 0xFEDCBA98, 0x80000001
    expected = [by_hand(counters[:, i].tolist(), list(key)) for i in range(500)]
    assert torch.stack(philox(list(counters), key), dim=1).tolist() == expected


TRITON = """
import sys, torch, triton, triton.language as tl

@triton.jit
def draw(out, number: tl.constexpr):
    place = tl.arange(0, number)
    words = tl.randint4x(0x89ABCDEF00000005, place)
    for row in tl.static_range(4):
        tl.store(out + row * number + place, words[row])

out = torch.zeros(4, 64, dtype=torch.int32)
draw[(1,)](out, 64)
print((out.long() & 0xFFFFFFFF).tolist())
"""


def test_the_integers_are_those_of_triton(tmp_path: Path) -> None:
    """Catches: a generator that agrees with our reading of the paper and with nobody else's."""
    pytest.importorskip("triton", reason="comes with torch for CUDA only")
    program = tmp_path / "draw.py"
    program.write_text(TRITON)
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this triton does not interpret: {done.stderr[-200:]}")
    zero = torch.zeros(1, dtype=torch.int64)
    ours = philox((torch.arange(64), zero, zero, zero), (5, 0x89ABCDEF))
    assert torch.stack(ours).tolist() == json.loads(done.stdout)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_what_the_cpu_draws() -> None:
    """Catches: an operation on int64 that a GPU does otherwise; normal numbers further apart than
    two units in float32's last place."""
    items = torch.tensor([0, 3, 2**40])
    for draw, options in (("uniform", (5000,)), ("integers", (1000, 50)), ("permutation", (300,))):
        here, there = (
            getattr(Draws(7, 1, items, device=d), draw)(*options) for d in ("cpu", "cuda")
        )
        assert torch.equal(here, there.cpu())
    here, there = (Draws(7, 1, items, device=d).normal(4, 500) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.cpu(), here, rtol=2**-22, atol=1e-12)


def words_at(seed: int, stream: int, item: int, draw: int, blocks: int) -> torch.Tensor:
    """(4, blocks): the words of a draw, from the documented layout and Python's integers."""
    key = [seed % 2**32, seed >> 32]
    counters = [[b, stream << 24 | draw, item % 2**32, item >> 32] for b in range(blocks)]
    return torch.tensor([by_hand(counter, key) for counter in counters]).T


PLACES = [(0, 0, 0, 0), (2**64 - 1, 255, 2**63 - 1, MOST_DRAW), (7 << 32, 3, 5 << 32, 1)]


@pytest.mark.parametrize(("seed", "stream", "item", "draw"), PLACES)
def test_a_number_is_what_its_place_says(seed, stream, item, draw) -> None:
    """Catches: half of a seed or of an item that counts for nothing, or another layout than the
    one that every artefact's numbers depend on."""

    def again() -> Draws:
        return Draws(seed, stream, torch.tensor([3, item]), draw=draw)

    words = words_at(seed, stream, item, draw, 3)
    uniform = (words >> 8).double() / 2**24
    assert again().uniform(2, 5)[1].double().tolist() == uniform.flatten()[:10].view(2, 5).tolist()
    a, b, c, d = words.double()
    radius, angle = (
        torch.stack([a, c]).add(0.5).div(2**32).log().mul(-2).sqrt(),
        torch.stack([b, d]).mul(2 * math.pi / 2**32),
    )
    normal = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1).flatten()
    # Two units in float32's last place: of float64's functions and of the rounding.
    torch.testing.assert_close(again().normal(12)[1], normal.float(), rtol=2**-22, atol=1e-12)
    w = words.tolist()
    longs = [w[k][i] << 32 | w[k + 1][i] for k in (0, 2) for i in range(3)]
    assert again().integers(1000, 6)[1].tolist() == [r * 1000 >> 64 for r in longs]
    most = 2**31 - 1  # the lower word counts in every fourth
    assert again().integers(most, 6)[1].tolist() == [r * most >> 64 for r in longs]
    signed = [r - 2**64 if r >> 63 else r for r in longs]
    order = again().permutation(6)[1].tolist()
    assert order == sorted(range(6), key=lambda i: signed[i])


def test_a_draw_follows_another() -> None:
    """Catches: the second draw equal to the first, or not what its number says."""
    draws = Draws(1, 2, torch.arange(3))
    first, second = draws.normal(5), draws.normal(5)
    assert not torch.equal(first, second)
    assert torch.equal(Draws(1, 2, torch.arange(3), draw=1).normal(5), second)


@pytest.mark.parametrize("shape", [(), (3,), (4, 32, 32), (70_001,)], ids=str)
def test_an_item_does_not_depend_on_the_others(shape) -> None:
    """Catches: a batch, a piece of the work or a thread that changes a bit of an item's numbers."""
    items = torch.tensor([9, 0, 5, 2**40, 77])
    for draw in ("normal", "uniform"):
        whole = getattr(Draws(3, 1, items), draw)(*shape)
        assert whole.shape == (5, *shape)
        assert whole.dtype == torch.float32
        for part in (slice(0, 1), slice(1, 4), slice(4, 5)):
            assert torch.equal(getattr(Draws(3, 1, items[part]), draw)(*shape), whole[part])
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(Draws(3, 1, items).normal(*shape), Draws(3, 1, items).normal(*shape))
        on_three = Draws(3, 1, items).normal(*shape)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(on_three, Draws(3, 1, items).normal(*shape))


def test_no_two_of_ten_million_streams_coincide() -> None:
    """Catches: a field of the place that is cut, or runs over another's bits.

    Two places of one pair of key and counter would have one first block. The first 64 bits of n
    blocks are all different (two in a function as good as random with a chance of n^2 / 2^65,
    3e-6); their first 32 bits coincide as often as those of random functions do.
    """
    kinds = [*product((0, 1, 2**32, 2**63), (0, 5, 255), (0, 1, 255, MOST_DRAW))]
    per_kind = 10_000_000 // len(kinds) + 1
    small, large = torch.arange(per_kind // 2 + 1), torch.arange(per_kind // 2 + 1) << 32
    items = torch.cat([small, large[1:]])  # from 0 on, and those that differ in their high half
    found = []
    for seed, stream, draw in kinds:
        out = Draws(seed, stream, items, draw=draw)
        second = torch.tensor([stream << 24 | draw])
        for low, high in zip(out._low.split(1 << 14), out._high.split(1 << 14), strict=True):
            counter = torch.zeros(1, dtype=torch.int64), second, low, high
            first, other, *_ = philox(counter, out._key)
            found.append(((first << 32) | other).flatten())
    blocks = torch.cat(found).sort().values
    number = len(blocks)
    assert number >= 10_000_000
    assert int((blocks[1:] == blocks[:-1]).sum()) == 0
    words = (blocks >> 32).sort().values
    coinciding = int((words[1:] == words[:-1]).sum())
    expected = number - 2**32 * -math.expm1(-number / 2**32)
    assert abs(coinciding - expected) < 5 * math.sqrt(expected)


def test_normal_numbers_are_normal() -> None:
    """Catches: a wrong moment, a bend of the distribution or of its tails, correlated pairs.

    n = 4 million. The errors of the moments are sqrt(1/n), sqrt(2/n), sqrt(15/n) and sqrt(96/n);
    five of them are allowed. The p of Kolmogorov and Smirnov is uniform if all is well.
    """
    z = Draws(11, 1, torch.arange(1000)).normal(4, 1000).double()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((z**power).mean()) - moment) < 5 * math.sqrt(variance / n)
    assert stats.kstest(z.flatten()[:1_000_000].numpy(), "norm").pvalue > 1e-4
    for edge in (2.0, 3.0, 4.0):
        for beyond in ((z > edge), (z < -edge)):
            chance = stats.norm.sf(edge)
            assert abs(int(beyond.sum()) - n * chance) < 5 * math.sqrt(n * chance)
    # Quarters of an item are the words of one block, and their squares share a radius.
    for a, b in ((0, 1), (0, 2), (1, 3)):
        for power in (1, 2):
            x, y = z[:, a] ** power, z[:, b] ** power
            spread = float(x.std() * y.std()) / math.sqrt(x.numel())
            assert abs(float((x * y).mean() - x.mean() * y.mean())) < 5 * spread
    # Neighbouring items and neighbouring numbers.
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / math.sqrt(n)
    assert abs(float((z[..., 1:] * z[..., :-1]).mean())) < 5 / math.sqrt(n)


def test_the_largest_and_the_smallest_word_give_finite_numbers() -> None:
    """Catches: the logarithm of 0."""
    for radius in (0, 2**32 - 1):
        numbers = torch.cat(_normal(*(torch.tensor([word]) for word in (radius, 0, radius, 1))))
        assert bool(torch.isfinite(numbers).all())
        assert float(numbers.abs().max()) <= math.sqrt(66 * math.log(2)) + 1e-14


def test_uniform_numbers_and_integers_are_uniform() -> None:
    """Catches: 1 among them, a value that is missing, or chances that differ."""
    u = Draws(5, 2, torch.arange(1000)).uniform(1000)
    assert 0 <= float(u.min()) <= float(u.max()) < 1
    assert stats.kstest(u.flatten().double().numpy(), "uniform").pvalue > 1e-4
    for below in (2, 3, 1000):
        counts = Draws(5, 2, torch.arange(1000)).integers(below, 1000).flatten().bincount()
        assert len(counts) == below
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_permutations_have_every_number_once_and_any_order() -> None:
    """Catches: an order that leaves numbers out or prefers some; one order for all items."""
    orders = Draws(5, 2, torch.arange(24_000)).permutation(4)
    assert bool((orders.sort(1).values == torch.arange(4)).all())
    place = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = place.bincount(minlength=256)
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (dict(seed=2**64), "seed"), (dict(seed=-1), "seed"), (dict(stream=256), "stream"),
        (dict(items=torch.tensor([-1])), "item"), (dict(draw=MOST_DRAW + 1), "beyond"),
    ],
    ids=str,
)  # fmt: skip
def test_what_has_no_place_is_refused(place, message) -> None:
    """Catches: a number too large for its bits that changes another stream's instead."""
    place = dict(seed=0, stream=0, items=torch.tensor([0]), draw=0) | place
    with pytest.raises(ValueError, match=message):
        Draws(place["seed"], place["stream"], place["items"], draw=place["draw"]).normal(2)
    with pytest.raises(ValueError, match="no integers below"):
        Draws(0, 0, torch.tensor([0])).integers(2**31 + 1)
