"""What the network outputs, as two small functions; every conversion follows from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import Tensor

from sitcli.core.interpolant import Path

# A network: x (B, C, h, w), what it is told of the time (B,), labels y (B,) -> (B, C_out, h, w).
Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Prediction(NamedTuple):
    """decode(output, x, path) -> (x_*, eps); encode(x_*, eps, path) -> the training target.

    velocity_error(path) is the factor from an error of the output, as the loss measures it, to an
    error of the velocity; the loss weights are built from it.
    divides_by: what decode divides by, "" for nothing that vanishes at an end.
    error(output, x_*, eps, path): what the loss squares; None is output - encode(x_*, eps, path).
    turns_with_time: whether the output changes its sign when time runs the other way.
    """

    decode: Callable[[Tensor, Tensor, Path], tuple[Tensor, Tensor]]
    encode: Callable[[Tensor, Tensor, Path], Tensor]
    velocity_error: Callable[[Path], Tensor]
    divides_by: Literal["", "alpha", "sigma"] = ""
    error: Callable[[Tensor, Tensor, Tensor, Path], Tensor] | None = None
    turns_with_time: bool = False


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
        turns_with_time=True,
    ),
    "score": Prediction(
        decode=lambda s, x, path: _decode_noise(-path.sigma * s, x, path),
        encode=lambda x_star, eps, path: -eps / path.sigma,
        velocity_error=lambda path: path.lambda_t,
        divides_by="alpha",
        # The score loss is |sigma s + eps|^2 (SiT eq. 7), already an error of eps.
        error=lambda s, x_star, eps, path: path.sigma * s + eps,
    ),
    "noise": Prediction(
        decode=_decode_noise,
        encode=lambda x_star, eps, path: eps,
        velocity_error=lambda path: path.lambda_t,
        divides_by="alpha",
    ),
    "data": Prediction(
        decode=lambda x_star, x, path: (x_star, (x - path.alpha * x_star) / path.sigma),
        encode=lambda x_star, eps, path: x_star,
        velocity_error=lambda path: path.W / path.sigma,
        divides_by="sigma",
    ),
}


def prediction_error(
    prediction: str, output: Tensor, x_star: Tensor, eps: Tensor, path: Path
) -> Tensor:
    """What the loss of this prediction squares, shaped as the output."""
    row = PREDICTIONS[prediction]
    if row.error is not None:
        return row.error(output, x_star, eps, path)
    return output - row.encode(x_star, eps, path)


class LossWeight(NamedTuple):
    """weigh(error, velocity, path) -> the loss (B,), of the mean squared errors (B,) of the output
    and of the velocity; divides: whether it divides by something that vanishes at an end."""

    weigh: Callable[[Tensor, Tensor, Path], Tensor]
    divides: bool = False


LOSS_WEIGHTS: dict[str, LossWeight] = {
    "none": LossWeight(lambda error, velocity, path: error),
    "velocity": LossWeight(lambda error, velocity, path: velocity),
    # lambda/sigma times the noise error: half of w_KL / sigma^2 (SiT eq. 25).
    "likelihood": LossWeight(
        lambda error, velocity, path: velocity / (path.lambda_t * path.sigma).flatten(),
        divides=True,
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
