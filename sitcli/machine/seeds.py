"""Random streams that are functions of (seed, what) alone."""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *what: object) -> int:
    """A 63-bit seed that is a function of (seed, what) alone, equal on every platform."""
    text = repr((int(seed), *what)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(seed: int, *what: object) -> torch.Generator:
    """A CPU generator for the stream (seed, what): device-independent randomness."""
    return torch.Generator().manual_seed(stream_seed(seed, *what))
