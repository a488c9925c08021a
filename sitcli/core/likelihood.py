"""Exact log-likelihood by the instantaneous change of variables, and its units.

Along dx/dt = v(x, t) the density obeys d log p_t(x_t) / dt = -div v (Chen et al. 2018, eq. 8), so

    log p_0(x_0) = log p_1(x_1) + int_0^1 div v(x_t, t) dt,      p_1 = N(0, I)

along the probability flow from the data up to the noise (Song et al. 2021, eq. 39). The divergence
is Hutchinson's estimate, E[e' J e] over probes e of random signs (its eq. 40).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sitcli.core.flow import Flow, Ode
from sitcli.core.prediction import Network
from sitcli.core.transport import Ends, times_between, transport

GREY = 1 / 127.5  # a grey level of pictures in [-1, 1]
# Bits per dimension from a density over [-1, 1] to one over bytes, 6.99: a density uniform over
# all bytes, 256 grey levels wide, thus takes 8.
GREY_BITS = -math.log2(GREY)


def log_likelihood(
    process: Flow,
    network: Network,
    x_star: Tensor,
    y: Tensor,
    *,
    probes: Tensor | None,
    ode: Ode,
    ends: Ends,
) -> Iterator[tuple[float, Tensor]]:
    """log p(x_* | y) in nats of data (B, C, h, w); yields (t, estimates (B, P)) after every step.

    probes: (B, P, C, h, w) of signs, fixed throughout the solve: probes drawn anew at each call
    would be noise that no solver can follow. All share one trajectory, which does not depend on
    them. None is the exact trace, P = 1, which takes C h w backward passes an evaluation.
    ends: where the solve begins and ends; the state at the noise's end is N(0, scale^2).
    The last estimates are the result; earlier ones take x_t for the noise.
    """
    size, shape = x_star[0].numel(), x_star.shape[1:]

    def velocity(state: Tensor, t: Tensor, rows: Tensor) -> Tensor:
        x = state[:, :size].reshape(-1, *shape).detach().requires_grad_()
        with torch.enable_grad():
            v = process.velocity(network, x, y[rows], t)
        traces = _exact_trace(v, x) if probes is None else _traces(v, x, probes[rows])
        # Per dimension, so that dopri5 weighs it as it does a pixel.
        return torch.cat([v.detach().flatten(1), traces / size], dim=1)

    volumes = x_star.new_zeros(len(x_star), 1 if probes is None else probes.shape[1])
    start = torch.cat([ends.alpha * x_star.flatten(1), volumes], dim=1)
    for t, state in transport(velocity, start, times_between(ends, ode.steps), ode):
        prior = standard_normal(state[:, :size] / ends.scale)[:, None]
        yield t, prior + size * (state[:, size:] + math.log(ends.alpha / ends.scale))


def _traces(v: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """e' (dv/dx) e for each of the probes (b, P, C, h, w), (b, P)."""
    traces = []
    for k, e in enumerate(probes.unbind(1), start=1):
        (product,) = torch.autograd.grad(v, x, e, retain_graph=k < probes.shape[1])
        traces.append((product * e).flatten(1).sum(1))
    return torch.stack(traces, dim=1)


def _exact_trace(v: Tensor, x: Tensor) -> Tensor:
    """tr dv/dx, (b, 1): one probe for each dimension, non-zero there alone."""
    size = x[0].numel()
    ones = torch.eye(size, dtype=x.dtype, device=x.device).view(1, size, *x.shape[1:])
    return _traces(v, x, ones.expand(len(x), *ones.shape[1:])).sum(1, keepdim=True)


def standard_normal(x: Tensor) -> Tensor:
    """log N(x; 0, I) in nats for each row of (B, D), (B,)."""
    return -0.5 * (x.square() + math.log(2 * math.pi)).sum(1)


def dequantise(images: Tensor, uniform: Tensor) -> Tensor:
    """Bytes (B, 3, H, W) to [-1, 1], each spread over its grey level by `uniform` in [0, 1).

    The expected -log2 of the density of the result, plus GREY_BITS per dimension, is an upper
    bound on the bits that the bytes take (Theis et al. 2016, section 3.1).
    """
    return (images + uniform - 0.5) * GREY - 1


def bits_per_dim(nats: Tensor, size: int) -> Tensor:
    """A negative log-likelihood in nats over `size` dimensions, in bits per dimension."""
    return nats / (size * math.log(2))
