"""Networks whose time runs the other way: the official SiT's t is 1 - ours."""

from __future__ import annotations

from torch import Tensor

from sitcli.core.prediction import PREDICTIONS, Network


class ReversedTime:
    """Makes a network trained with t = 0 at the noise one with t = 0 at the data.

    The inner network is fed 1 - t. A velocity also changes its sign, d/dt = -d/d(1 - t); score,
    noise and data are the same in both directions of time.
    """

    def __init__(self, network: Network, *, prediction: str) -> None:
        self.network = network
        self.sign = -1 if PREDICTIONS[prediction].turns_with_time else 1

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """x (B, C, h, w), t (B,), y (B,) -> (B, C_out, h, w)."""
        return self.sign * self.network(x, 1 - t, y)
