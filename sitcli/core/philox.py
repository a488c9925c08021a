"""Random numbers as a function of their place: the counter-based generator Philox4x32-10.

Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". A block of four
32-bit words is a function of a 128-bit counter and a 64-bit key, so that any number can be drawn
at once, on any device, without those before it.

A number's place is (seed, stream, item, draw, block). The key is the seed. The counter's words are

    word 0   the block within the draw          32 bits
    word 1   the stream, then the draw          8 + 24 bits
    word 2   the item, its low half             32 bits
    word 3   the item, its high half            32 bits

Nothing is hashed: each field has bits of its own, a value that does not fit them is refused, and so
two different places are two different pairs of key and counter. Under one key Philox is a bijection
of the counters, hence no two places of a seed have equal blocks either.

The words, uniform numbers, integers and permutations are the same on every processor and device.
Normal numbers go through float64's log, sin and cos, whose last bit differs between libraries.
Rounded to float32 they are equal but for about one in 10^8, which is next to its neighbour's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85  # golden ratio and sqrt(3) - 1, which the key is raised by
ROUNDS = 10
WORD = (1 << 32) - 1
MOST_SEED, MOST_STREAM, MOST_DRAW, MOST_BLOCK = (1 << 64) - 1, (1 << 8) - 1, (1 << 24) - 1, WORD
# Blocks computed at once: six arrays of int64 that stay in a processor's second cache. From 2^15 on
# torch would divide them between threads.
PIECE = 1 << 14


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """The four words of each block, int64 in [0, 2^32), on the counters' device.

    counter: its four words, int64 in [0, 2^32), which broadcast; key: its two words.
    A product of two words is exact modulo 2^64, also where int64 shows it as negative.
    """
    shape = torch.broadcast_shapes(*(word.shape for word in counter))
    a, b, c, d = (word.new_empty(shape).copy_(word) for word in counter)
    high = torch.empty_like(a)
    for turn in range(ROUNDS):
        a.mul_(MULTIPLIERS[0])
        c.mul_(MULTIPLIERS[1])
        for word, product, which in ((b, c, 0), (d, a, 1)):
            # Bits above the 32nd of `word`, and of a negative product's shift, are cut off at last.
            torch.bitwise_right_shift(product, 32, out=high)
            word.bitwise_xor_(high).bitwise_xor_((key[which] + turn * WEYL[which]) & WORD)
            word.bitwise_and_(WORD)
        a, b, c, d = b, c, d, a
    return a, b.bitwise_and_(WORD), c, d.bitwise_and_(WORD)


class Draws:
    """The random numbers of some items, from one stream of a seed, in turn.

    Each call draws `shape` numbers for every item, and the next call others. Those of an item do
    not depend on which other items are drawn with it.
    """

    def __init__(
        self,
        seed: int,
        stream: int,
        items: Tensor,
        *,
        draw: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """items: (B,) int64, from 0; draw: the number of the first draw; device: of the results.

        Raises ValueError for a number that is too large for its place, or negative.
        """
        for name, value, most in (("seed", seed, MOST_SEED), ("stream", stream, MOST_STREAM)):
            if not 0 <= value <= most:
                raise ValueError(f"{name} {value} is not between 0 and {most}")
        if len(items) and int(items.min()) < 0:
            raise ValueError(f"item {int(items.min())} is negative")
        self._key = seed & WORD, seed >> 32
        self._stream, self._draw = stream, draw
        self._wanted = torch.device(device)
        # Apple's GPUs have no float64: what they use is drawn on the CPU.
        self._device = torch.device("cpu") if self._wanted.type == "mps" else self._wanted
        items = items.to(self._device, torch.int64).view(-1, 1)
        self._low, self._high = items & WORD, items >> 32

    def __len__(self) -> int:
        return len(self._low)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (B, *shape) float32: Box and Muller's 1958, in float64."""
        return self._fill(shape, torch.float32, _normal)

    def uniform(self, *shape: int) -> Tensor:
        """Multiples of 2^-24 in [0, 1), (B, *shape) float32."""
        return self._fill(shape, torch.float32, _uniform)

    def integers(self, below: int, *shape: int) -> Tensor:
        """Integers in [0, below), (B, *shape) int64; below: at most 2^31.

        Each is floor(r below / 2^64) of a 64-bit r, so that their chances differ by 2^-64.
        """
        if not 0 < below <= 1 << 31:
            raise ValueError(f"no integers below {below}")

        def scaled(*words: Tensor) -> tuple[Tensor, ...]:
            pairs = words[:2], words[2:]
            return tuple(((high * below) + ((low * below) >> 32)) >> 32 for high, low in pairs)

        return self._fill(shape, torch.int64, scaled)

    def permutation(self, number: int) -> Tensor:
        """0 .. number - 1 in a random order for every item, (B, number) int64.

        The order of 64-bit keys: two of a million are equal with a chance of 3e-8, and then stay in
        order.
        """
        return self._fill((number,), torch.int64, _keys).argsort(dim=1, stable=True)

    def _fill(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        convert: Callable[..., tuple[Tensor, ...]],
    ) -> Tensor:
        """The next draw, (B, *shape): convert(four words) gives the numbers of a block.

        With n blocks, number k of an item is number k div n of block k mod n.
        """
        size, per_block = math.prod(shape), len(convert(*torch.zeros(4, 1, dtype=torch.int64)))
        blocks = -(-size // per_block)
        if blocks > MOST_BLOCK + 1 or self._draw > MOST_DRAW:
            raise ValueError(f"draw {self._draw} of {size} numbers is beyond the stream's end")
        out = torch.empty(len(self), per_block, blocks, dtype=dtype, device=self._device)
        second = torch.tensor([self._stream << 24 | self._draw], device=self._device)
        for items, places in _pieces(len(self), blocks):
            first = torch.arange(places.start, places.stop, device=self._device)
            counter = first, second, self._low[items], self._high[items]
            for plane, numbers in enumerate(convert(*philox(counter, self._key))):
                out[items, plane, places] = numbers
        self._draw += 1
        numbers = out.view(len(self), per_block * blocks)[:, :size]
        return numbers.reshape(len(self), *shape).to(self._wanted)


def _pieces(items: int, blocks: int) -> Iterator[tuple[slice, slice]]:
    """(items, blocks) of the pieces that are computed at once."""
    rows = max(1, PIECE // max(1, blocks))
    for start in range(0, items, rows):
        for place in range(0, blocks, PIECE):
            yield slice(start, start + rows), slice(place, min(place + PIECE, blocks))


def _normal(*words: Tensor) -> tuple[Tensor, ...]:
    """Four normal numbers of four words, float64: r cos and r sin of two pairs."""
    numbers = []
    for radius, angle in (words[:2], words[2:]):
        # (w + 1/2) / 2^32 is never 0: the largest number is sqrt(66 ln 2), 6.8.
        r = radius.double().add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
        theta = angle.double().mul_(2 * math.pi * 2.0**-32)
        numbers += [theta.cos().mul_(r), theta.sin_().mul_(r)]
    return tuple(numbers)


def _uniform(*words: Tensor) -> tuple[Tensor, ...]:
    return tuple((word >> 8).float().mul_(2.0**-24) for word in words)


def _keys(*words: Tensor) -> tuple[Tensor, ...]:
    return tuple((high << 32) | low for high, low in (words[:2], words[2:]))
