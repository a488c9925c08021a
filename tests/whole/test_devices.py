"""What a GPU would refuse, found without one.

Under FakeTensorMode tensors are shapes and a device: an operation on tensors of two devices raises,
and so does a value that the host would have to wait for.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.func import functional_call

from sitcli.commands.train.meter import Meter
from sitcli.core.chain import BETAS, VARIANCES
from sitcli.core.diffusion import Ddim, Ddpm, Diffusion
from sitcli.core.flow import Flow, Ode, Sde
from sitcli.core.guidance import Guidance, GuidedNetwork
from sitcli.core.interpolant import INTERPOLANTS
from sitcli.core.objective import Extras, training_loss, weighted
from sitcli.core.ode import MULTISTEPS, ODE_STEPS
from sitcli.core.prediction import PREDICTIONS
from sitcli.core.sde import LAST_STEPS, SDE_STEPS
from sitcli.core.wt import WT, LossCurve, wt_of
from sitcli.model.blocks import BLOCKS
from sitcli.model.config import TransformerConfig
from sitcli.model.ema import ShardedEma
from sitcli.model.transformer import Route, Transformer

GPU = torch.device("cuda")
BATCH = 6
TINY = dict(
    input_size=8, patch=2, channels=4, out_channels=4, width=32, depth=1, heads=4, num_classes=10
)


FLOWS = [
    *(
        Flow(interpolant=interpolant, prediction=prediction, direction=0.5)
        for interpolant in INTERPOLANTS
        for prediction in PREDICTIONS
    ),
    *(Flow(loss_weight=weight) for weight in ("velocity", "likelihood")),
]


CHAINS = [Diffusion(betas=betas, variance=variance) for betas in BETAS for variance in VARIANCES]
SAMPLERS = [
    *(Ode(solver=solver, steps=2) for solver in [*ODE_STEPS, *MULTISTEPS]),
    *(Sde(w=wt_of(wt, loss_curve=LossCurve(values=(1.0, 2.0))), wt=wt, steps=2) for wt in WT),
    *(
        Sde(w=wt_of("kl"), wt="kl", steps=2, solver=solver, last_step=last)
        for solver in SDE_STEPS
        for last in LAST_STEPS
    ),
]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Every tensor of a test is one of shape and device alone, but for what the host computes."""
    place = Flow.alpha_sigma

    def on_host(self: Flow, t: float) -> tuple[float, float]:
        with unset_fake_temporarily():
            return place(dataclasses.replace(self), t)

    monkeypatch.setattr(Flow, "alpha_sigma", on_host)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def on_gpu(config: TransformerConfig):
    """A network whose parameters and buffers are there."""
    network = Transformer(config)
    tensors = itertools.chain(network.named_parameters(), network.named_buffers())
    there = {name: torch.empty_like(tensor, device=GPU) for name, tensor in tensors}
    return lambda *inputs, **more: functional_call(network, there, inputs, more)


def batch() -> tuple[torch.Tensor, ...]:
    """x, y, t, eps."""
    x = torch.empty(BATCH, 4, 8, 8, device=GPU)
    y = torch.empty(BATCH, dtype=torch.long, device=GPU)
    return x, y, torch.empty(BATCH, device=GPU), torch.empty_like(x)


def test_two_devices_are_refused_here() -> None:
    """Catches: a torch that no longer tells, under which every test below would pass."""
    with pytest.raises(RuntimeError, match="device"):
        torch.empty(3, device=GPU) + torch.empty(3)
    with pytest.raises(Exception, match="local_scalar"):
        torch.empty(3, device=GPU).sum().item()


@pytest.mark.parametrize("process", [*FLOWS, *CHAINS], ids=str)
def test_a_loss_stays_on_the_gpu(process: Flow) -> None:
    """Catches: a table or a time left in the main memory, or a step that waits for the host."""
    process = dataclasses.replace(process)  # a fake table it keeps would outlive the test
    network = on_gpu(TransformerConfig(**TINY | {"out_channels": process.out_channels(4)}))
    x, y, t, eps = batch()
    meter = Meter(GPU)
    loss, _ = training_loss(process, network, x, y, t=t, eps=eps, extras=Extras())
    meter.add(loss.loss.mean(), {}, loss.loss.mean(), parts=1)
    meter.add_velocity(t, loss.velocity)
    meter.end_step(3)
    assert {loss.loss.device.type, loss.velocity.device.type, meter.sums.device.type} == {"cuda"}


@pytest.mark.parametrize("block", BLOCKS)
def test_what_is_beyond_the_papers_too(block: str) -> None:
    """Catches: an appended token, a rotation, a route or a term of the loss from the main
    memory."""
    more = dict(block=block, rope=True, qk_norm=True, mlp="swiglu", norm="rms")
    taps = dict(depth=3, aux_block=1, align_block=1, align_width=24)
    config = TransformerConfig(**TINY | more | taps)
    x, y, t, eps = batch()
    extras = Extras(sync=0.2, sync_blocks=(1, 2), internal=0.5, repa=0.5)
    route = Route(torch.empty(BATCH, 8, dtype=torch.long, device=GPU), 1, 2)
    features = torch.empty(BATCH, config.tokens, 24, device=GPU)
    loss, terms = training_loss(
        Flow(), on_gpu(config), x, y,
        t=t, eps=eps, extras=extras, route=route, features=features,
    )  # fmt: skip
    assert weighted(loss.loss, terms, extras).device.type == "cuda"


def test_averages_stay_on_the_gpu() -> None:
    """Catches: an average in the main memory, to which every step would copy the weights."""
    average = ShardedEma(torch.nn.Linear(4, 4, device=GPU))
    average.update(0.9)
    assert {shard.device.type for shard in average.shards.values()} == {"cuda"}


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: f"{s.solver}-{getattr(s, 'wt', '')}")
@pytest.mark.parametrize("process", [Flow(interpolant="vp"), Diffusion()], ids=["flow", "chain"])
def test_sampling_stays_on_the_gpu(process: Flow, sampler: Ode | Sde) -> None:
    """Catches: a time, a coefficient or a label that is not where the state is."""
    draw(process, sampler)


@pytest.mark.parametrize("sampler", [Ddpm(steps=2), Ddim(steps=2), Ddim(steps=2, eta=1.0)], ids=str)
@pytest.mark.parametrize("process", CHAINS, ids=str)
def test_a_chain_stays_on_the_gpu(process: Diffusion, sampler: Ddpm | Ddim) -> None:
    """Catches: a step's number or a table that is not where the state is."""
    draw(process, sampler)


def draw(process: Flow, sampler: Ode | Sde | Ddpm | Ddim) -> None:
    """Samples under all the guidance there is."""
    process = dataclasses.replace(process)
    channels = process.out_channels(4)
    more = dict(out_channels=channels, depth=2, aux_block=1)
    network = on_gpu(TransformerConfig(**TINY | more))

    def two_headed(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output, found = network(*inputs, taps=("aux",))
        return output, found["aux"]

    guidance = Guidance(
        null_class=10, scale=4.0, channels=3, guide=network, guide_scale=2.0, internal_scale=1.5
    )
    guided = GuidedNetwork(network, guidance, two_headed=two_headed)
    x, y, _, eps = batch()
    states = [state for _, state in process.sample(guided, x, y, sampler, randn=lambda: eps)]
    assert {state.device.type for state in states} == {"cuda"}
