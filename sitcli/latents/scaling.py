"""How latents are normalised for the network: one factor and shift, or one of each per channel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Values = float | tuple[float, ...]
LEAST_STD = 1e-6  # a channel whose std is below this is constant: to divide would amplify rounding
LISTED = 4  # most numbers that a text lists


@dataclass(frozen=True)
class Scaling:
    """The normalisation (latents - shift) * factor, and its inverse.

    factor, shift: one number, or one per channel; lists become tuples.
    """

    factor: Values = 1.0
    shift: Values = 0.0

    def __post_init__(self) -> None:
        for name in ("factor", "shift"):
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Scaling:
        """The scaling in a store's attributes or in a checkpoint's facts about its latents.

        Facts without `shift`, such as all those of versions up to 0.8, mean the autoencoder's own.
        """
        own = facts["autoencoder"].get("shift", 0.0)
        return cls(facts["scaling"], facts.get("shift", own))

    @classmethod
    def of_spec(cls, spec: Mapping[str, Any]) -> Scaling:
        """The scaling that an autoencoder comes with."""
        return cls(spec["scaling"], spec["shift"])

    @classmethod
    def standardising(cls, mean: Sequence[float], std: Sequence[float]) -> Scaling:
        """The scaling to mean 0 and std 1 per channel, from statistics of the latents.

        A constant channel is shifted alone.
        """
        return cls(tuple(1 / s if s > LEAST_STD else 1.0 for s in map(float, std)),
                   tuple(map(float, mean)))  # fmt: skip

    @property
    def per_channel(self) -> bool:
        """Whether it has a number for each channel."""
        return isinstance(self.factor, tuple) or isinstance(self.shift, tuple)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every latent as it is."""
        return all(f == 1 for f in np.ravel(self.factor)) and not any(np.ravel(self.shift))

    def facts(self, spec: Mapping[str, Any]) -> dict[str, Any]:
        """`scaling` and, unless it is the autoencoder's own, `shift`, as files keep them."""
        values = self.spec()
        own = Scaling(1.0, spec.get("shift", 0.0)).shift
        return values if self.shift != own else {"scaling": values["scaling"]}

    def spec(self) -> dict[str, Any]:
        """`scaling` and `shift` as an autoencoder's spec has them: numbers, or lists of numbers."""
        values = {"scaling": self.factor, "shift": self.shift}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as an autoencoder encodes them -> as a network is trained on."""
        factor, shift = _tensors(self, latents.device)
        return (latents - shift) * factor

    def normalise_(self, latents: Tensor) -> Tensor:
        """`normalise` in place."""
        factor, shift = _tensors(self, latents.device)
        if self.shift:
            latents.sub_(shift)
        return latents.mul_(factor)

    def undo(self, latents: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        factor, shift = _tensors(self, latents.device)
        return latents / factor + shift

    def __str__(self) -> str:
        factor, shift = _listed(self.factor), _listed(self.shift)
        return factor if not self.shift else f"{factor}, shift {shift}"


def needs_shift(facts: Mapping[str, Any]) -> bool:
    """Whether versions up to 0.8, which know one number of shift, would shift by another.

    facts: as those of `Scaling.of`, or {}.
    """
    return "shift" in facts or isinstance(facts.get("autoencoder", {}).get("shift"), list)


def wrong_values(value: Any, channels: int, *, zero: bool) -> bool:
    """Whether a factor or shift is not one finite number, or one for each of the channels.

    zero: whether a number may be 0.
    """
    numbers = np.ravel(np.asarray(value, dtype=object))
    return len(numbers) not in (1, channels) or not all(
        isinstance(n, (int, float))
        and not isinstance(n, bool)
        and math.isfinite(n)
        and (zero or n != 0)
        for n in numbers
    )


@lru_cache(maxsize=16)
def _tensors(scaling: Scaling, device: torch.device) -> tuple[Tensor, Tensor]:
    """Factor and shift as float32 (1, 1, 1) or (C, 1, 1) on the device."""
    factor, shift = (
        torch.as_tensor(v, dtype=torch.float32, device=device).reshape(-1, 1, 1)
        for v in (scaling.factor, scaling.shift)
    )
    return factor, shift


def _listed(value: Values) -> str:
    if not isinstance(value, tuple):
        return str(value)
    if len(value) > LISTED:
        return f"per channel {min(value):.5g} to {max(value):.5g}"
    return " ".join(f"{v:.5g}" for v in value)
