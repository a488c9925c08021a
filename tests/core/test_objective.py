"""Terms beside the loss: their values by hand, and where their gradients go."""

from __future__ import annotations

import math

import pytest
import torch

from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow, direction_loss
from sitcli.core.objective import Extras, alignment, layer_sync, to_tokens, training_loss, weighted


def test_direction_loss() -> None:
    """Catches: a cosine over the wrong axis, or one that knows of lengths."""
    a = torch.zeros(1, 2, 1, 4)
    b = torch.zeros(1, 2, 1, 4)
    a[0, 0] = torch.tensor([[2.0, 3.0, 1.0, 1.0]])  # along the first channel everywhere
    b[0, 0] = torch.tensor([[5.0, -1.0, 0.0, 1.0]])
    b[0, 1] = torch.tensor([[0.0, 0.0, 7.0, 1.0]])
    # Parallel, opposite, orthogonal, at 45 degrees.
    expected = (0 + 2 + 1 + 1 - math.sqrt(0.5)) / 4
    assert direction_loss(a, b).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("prediction", ["velocity", "score", "noise", "data"])
def test_direction_is_the_velocitys_whatever_is_predicted(prediction: str) -> None:
    """Catches: the direction of the raw output, which is another thing for each prediction."""
    x, eps = torch.randn(2, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.zeros(4, dtype=torch.long)
    error = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    path = Flow(interpolant="gvp").path(t, x)
    v = path.velocity(x, eps) + error
    x_t = path.mix(x, eps)
    data = (path.d_sigma * x_t - path.sigma * v) / path.W
    noise = (path.alpha * v - path.d_alpha * x_t) / path.W
    output = dict(velocity=v, score=-noise / path.sigma, noise=noise, data=data)[prediction]
    plain, with_direction = (
        Flow(interpolant="gvp", prediction=prediction, direction=weight).loss(
            lambda x, t, y: output, x, y, t=t, eps=eps
        )
        for weight in (0.0, 0.5)
    )
    expected = 0.5 * direction_loss(v, path.velocity(x, eps))
    torch.testing.assert_close(with_direction.loss - plain.loss, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(with_direction.velocity, plain.velocity)


def test_layer_sync_pulls_the_early_block_alone() -> None:
    """Catches: a missing stop-gradient, with which both layers collapse onto each other."""
    early = torch.randn(2, 5, 4, requires_grad=True)
    late = torch.randn(2, 5, 4, requires_grad=True)
    loss = layer_sync(early, late)
    cosines = (early * late).sum(-1) / (early.norm(dim=-1) * late.norm(dim=-1))
    torch.testing.assert_close(loss, (1 - cosines).mean(1))
    loss.sum().backward()
    assert late.grad is None
    # A gradient of an angle is orthogonal to the vector.
    assert float((early.grad * early.detach()).sum(-1).abs().max()) < 1e-6


def test_features_come_to_their_tokens() -> None:
    """Catches: rows and columns exchanged; tokens are rows first."""
    features = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4)
    tokens = to_tokens(features, (3, 4))
    assert tokens.shape == (1, 12, 2)
    assert tokens[0, 1 * 4 + 2].tolist() == features[0, :, 1, 2].tolist()
    halved = to_tokens(torch.arange(16.0).view(1, 1, 4, 4), (2, 2))
    assert halved[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert float(alignment(tokens, 3 * tokens + 1e-9).abs().max()) < 1e-6


@pytest.mark.parametrize("process", [Flow(), Diffusion()], ids=["flow", "chain"])
def test_all_terms_from_one_evaluation(process: Flow) -> None:
    """Catches: a pass of the network for each term; a weight that is lost; the second head judged
    by another noise than the first."""
    calls = []
    channels = process.out_channels(4)

    def network(x, t, y, *, taps=(), route=None):
        calls.append((taps, route))
        output = 0.1 * torch.ones(len(x), channels, 2, 2)
        found = {1: torch.ones(len(x), 4, 3), 2: -torch.ones(len(x), 4, 3)}
        return output, found | {"aux": 0.3 * output, "align": torch.ones(len(x), 4, 2)}

    x, eps = torch.randn(2, 3, 4, 2, 2)
    t, y = torch.tensor([0.25, 0.5, 0.75]), torch.zeros(3, dtype=torch.long)
    extras = Extras(sync=0.2, sync_blocks=(1, 2), internal=0.5, repa=2.0)
    loss, terms = training_loss(
        process, network, x, y, t=t, eps=eps, extras=extras, route="r",
        features=-torch.ones(3, 4, 2),
    )  # fmt: skip
    assert calls == [((1, 2, "aux", "align"), "r")]
    aux = process.loss(lambda x, t, y: 0.03 * torch.ones(3, channels, 2, 2), x, y, t=t, eps=eps)
    torch.testing.assert_close(terms["internal"], aux.loss)
    assert terms["sync"].tolist() == pytest.approx([2, 2, 2])
    assert terms["repa"].tolist() == pytest.approx([2, 2, 2])
    total = weighted(loss.loss, terms, extras)
    torch.testing.assert_close(total, loss.loss + 0.2 * 2 + 0.5 * aux.loss + 2.0 * 2)


def test_without_terms_the_network_is_asked_as_ever() -> None:
    """Catches: keyword arguments to networks that take none, DeepSpeed's wrappers for one."""
    x, eps = torch.randn(2, 3, 4, 2, 2)
    t, y = torch.rand(3), torch.zeros(3, dtype=torch.long)
    loss, terms = training_loss(Flow(), lambda x, t, y: x, x, y, t=t, eps=eps, extras=Extras())
    assert not terms
    torch.testing.assert_close(
        weighted(loss.loss, terms, Extras()),
        Flow().loss(lambda x, t, y: x, x, y, t=t, eps=eps).loss,
    )
