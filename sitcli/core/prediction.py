"""What the network outputs, as two small functions; every conversion follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sitcli.core.interpolant import Path


class Prediction(NamedTuple):
    """decode(output, x, path) -> (x_*, eps); encode(x_*, eps, path) -> the training target.

    velocity_error(path) is the factor from an error of the output, as the loss measures it, to an
    error of the velocity; the loss weights are built from it.
    """

    decode: Callable[[Tensor, Tensor, Path], tuple[Tensor, Tensor]]
    encode: Callable[[Tensor, Tensor, Path], Tensor]
    velocity_error: Callable[[Path], Tensor]


def _decode_velocity(v: Tensor, x: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    alpha, sigma, d_alpha, d_sigma = path
    return (d_sigma * x - sigma * v) / path.W, (alpha * v - d_alpha * x) / path.W


def _decode_noise(eps: Tensor, x: Tensor, path: Path) -> tuple[Tensor, Tensor]:
    return (x - path.sigma * eps) / path.alpha, eps


PREDICTIONS: dict[str, Prediction] = {
    "velocity": Prediction(
        decode=_decode_velocity,
        encode=lambda x_star, eps, path: path.velocity(x_star, eps),
        velocity_error=lambda path: path.alpha.new_ones(()),
    ),
    # The score loss is |sigma s + eps|^2 (SiT eq. 7), already an error of eps.
    "score": Prediction(
        decode=lambda s, x, path: _decode_noise(-path.sigma * s, x, path),
        encode=lambda x_star, eps, path: -eps / path.sigma,
        velocity_error=lambda path: path.lambda_t,
    ),
    "noise": Prediction(
        decode=_decode_noise,
        encode=lambda x_star, eps, path: eps,
        velocity_error=lambda path: path.lambda_t,
    ),
    "data": Prediction(
        decode=lambda x_star, x, path: (x_star, (x - path.alpha * x_star) / path.sigma),
        encode=lambda x_star, eps, path: x_star,
        velocity_error=lambda path: path.W / path.sigma,
    ),
}


def to_velocity(prediction: str, output: Tensor, x: Tensor, path: Path) -> Tensor:
    """The probability-flow velocity; a velocity model's output is it, untouched."""
    if prediction == "velocity":
        return output
    return path.velocity(*PREDICTIONS[prediction].decode(output, x, path))


def to_score(prediction: str, output: Tensor, x: Tensor, path: Path) -> Tensor:
    """The score -eps / sigma (SiT eq. 9); a score model's output is it, untouched."""
    if prediction == "score":
        return output
    return -PREDICTIONS[prediction].decode(output, x, path)[1] / path.sigma


def to_data(prediction: str, output: Tensor, x: Tensor, path: Path) -> Tensor:
    """The posterior mean of the data, E[x_* | x_t] (Tweedie)."""
    return PREDICTIONS[prediction].decode(output, x, path)[0]
