"""A mixture of Gaussians in the plane: data whose exact network is not affine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Isotropic components: weights (K,), means (K, 2), stds (K,); states are (B, 2, 1, 1)."""

    weights: tuple[float, ...] = (0.3, 0.7)
    means: tuple[tuple[float, float], ...] = ((-1.0, 0.5), (0.8, -0.2))
    stds: tuple[float, ...] = (0.3, 0.5)

    def _components(self, x: Tensor, path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Responsibilities, means, variances and scaled states around them, (K, 1 or 2, 1 or B)."""
        means = torch.tensor(self.means).to(x).unsqueeze(2)
        variances = torch.tensor(self.stds).to(x).view(-1, 1, 1) ** 2
        alpha, sigma = path.alpha.view(-1), path.sigma.view(-1)
        total = alpha**2 * variances + sigma**2
        centred = x.view(-1, 2).T - alpha * means
        log_weight = torch.tensor(self.weights).to(x).log().view(-1, 1, 1)
        distance = (centred[:, :1] ** 2 + centred[:, 1:] ** 2) / (2 * total)
        log_density = log_weight - total.log() - distance
        return log_density.softmax(dim=0), means, variances, centred / total

    def posterior(self, x: Tensor, path) -> tuple[Tensor, Tensor]:
        """E[x_* | x_t] and E[eps | x_t]: the components' own, weighted by responsibility."""
        share, means, variances, scaled = self._components(x, path)
        alpha, sigma = path.alpha.view(-1), path.sigma.view(-1)
        data, noise = means + alpha * variances * scaled, sigma * scaled
        return tuple((share * each).sum(0).T.reshape(x.shape) for each in (data, noise))

    def score(self, x: Tensor, path) -> Tensor:
        """Gradient of the log density of x_t, finite at sigma = 0 too."""
        share, _, _, scaled = self._components(x, path)
        return -(share * scaled).sum(0).T.reshape(x.shape)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (2,) and variance of each coordinate (2,) of the data."""
        weights = torch.tensor(self.weights).view(-1, 1).double()
        means = torch.tensor(self.means).double()
        second = means**2 + torch.tensor(self.stds).double().view(-1, 1) ** 2
        mean = (weights * means).sum(0)
        return mean, (weights * second).sum(0) - mean**2
