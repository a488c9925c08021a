"""Closed forms for data N(m, s^2 I): what a perfectly trained network would output."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sitcli.core.interpolant import path_at
from sitcli.core.prediction import PREDICTIONS


@dataclass(frozen=True)
class Gaussian:
    mean: float
    std: float

    def posterior(self, x: Tensor, path) -> tuple[Tensor, Tensor]:
        """E[x_* | x_t] and E[eps | x_t]."""
        variance = path.alpha**2 * self.std**2 + path.sigma**2
        centred = x - path.alpha * self.mean
        data = self.mean + path.alpha * self.std**2 / variance * centred
        return data, path.sigma / variance * centred

    def score(self, x: Tensor, path) -> Tensor:
        """Gradient of the log density of x_t."""
        variance = path.alpha**2 * self.std**2 + path.sigma**2
        return -(x - path.alpha * self.mean) / variance

    def network(self, interpolant: str, prediction: str):
        """(x, t, y) -> the exact output for this prediction."""

        def output(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            path = path_at(interpolant, t, x)
            if prediction == "score":
                return self.score(x, path)  # -eps/sigma is 0/0 at t = 0
            return PREDICTIONS[prediction].encode(*self.posterior(x, path), path)

        return output

    def marginal(self, interpolant: str, t: float) -> tuple[float, float]:
        """Mean and standard deviation of x_t."""
        path = path_at(interpolant, torch.tensor([t], dtype=torch.float64), torch.zeros(1).double())
        variance = path.alpha**2 * self.std**2 + path.sigma**2
        return float(path.alpha * self.mean), float(variance.sqrt())
