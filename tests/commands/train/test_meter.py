"""What a training step measures, by hand: losses, the loss over t, seconds."""

from __future__ import annotations

import pytest
import torch

from sitcli.commands.train.meter import LOSS_BINS, LOSS_MEMORY, Meter, NotFinite, Stopwatch
from sitcli.machine.world import World

CPU, ALONE = torch.device("cpu"), World(0, 1)


def meter() -> Meter:
    return Meter(CPU, ("sync",))


def add(meter: Meter, loss: float, *, term: float = 0.0, parts: int = 1) -> None:
    terms = {"sync": torch.tensor([term, term])}
    meter.add(torch.tensor(loss), terms, torch.tensor(loss + term), parts=parts)


def test_a_line_is_the_mean_of_its_steps() -> None:
    """Catches: micro-batches that count as steps, and sums that go on into the next line."""
    made = meter()
    for step, losses in enumerate([(1.0, 3.0), (5.0, 7.0)], start=1):
        for loss in losses:
            add(made, loss, term=2 * loss, parts=2)
        made.end_step(step)
    state = made.checked(ALONE)
    assert (state["loss_sum"], state["steps"]) == (2.0 + 6.0, 2)
    assert state["term_sums"] == {"sync": 16.0}
    made.reset()
    add(made, 0.5)
    made.end_step(3)
    assert made.reduced(ALONE)["loss_sum"] == 0.5
    assert made.reduced(ALONE)["term_sums"] == {"sync": 0.0}
    assert made.steps == 1


def test_velocity_losses_fall_into_the_bins_of_their_times() -> None:
    """Catches: t = 1 beyond the last bin, a bin's edge on the wrong side, counts without losses."""
    made = meter()
    t = torch.tensor([0.0, 0.04, 0.05, 0.5, 0.999, 1.0])
    made.add_velocity(t, torch.arange(1.0, 7.0))
    state = made.reduced(ALONE)
    sums, counts = [0.0] * LOSS_BINS, [0.0] * LOSS_BINS
    for number, loss in ((0, 1), (0, 2), (1, 3), (10, 4), (19, 5), (19, 6)):
        sums[number] += loss
        counts[number] += 1
    assert (state["sums"], state["counts"]) == (sums, counts)


def test_old_losses_fade() -> None:
    """Catches: a curve over t of the whole training, or sums and counts that fade apart."""
    made = meter()
    made.add_velocity(torch.tensor([0.5]), torch.tensor([8.0]))
    for step in range(3):
        made.end_step(step)
    state = made.reduced(ALONE)
    assert state["sums"][10] == pytest.approx(8 * LOSS_MEMORY**3, rel=1e-6)
    assert state["counts"][10] == pytest.approx(LOSS_MEMORY**3, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "term"])
def test_the_first_loss_that_is_not_finite_is_named(bad: float, where: str) -> None:
    """Catches: a later step named, one that a good step makes forget, or a term nobody looks at."""
    made = meter()
    for step in range(1, 6):
        value = bad if step in (3, 5) else 1.0
        add(made, value if where == "loss" else 1.0, term=value if where == "term" else 0.0)
        made.end_step(step)
    with pytest.raises(NotFinite, match="not finite at step 3") as caught:
        made.checked(ALONE)
    assert caught.value.step == 3
    made.reset()
    assert made.reduced(ALONE)["bad_step"] == 3


def test_a_resumed_meter_goes_on() -> None:
    """Catches: a window or a curve that begins again, or bins that every rank adds."""
    first = meter()
    add(first, 2.0, term=4.0)
    first.add_velocity(torch.tensor([0.25]), torch.tensor([8.0]))
    first.end_step(1)
    state = first.reduced(ALONE)
    second, third = meter(), meter()
    second.load(state, World(0, 2))
    third.load(state, World(1, 2))
    assert second.reduced(ALONE) == state
    assert third.reduced(ALONE)["sums"] == third.reduced(ALONE)["counts"] == [0.0] * LOSS_BINS
    assert third.reduced(ALONE)["loss_sum"] == state["loss_sum"]


def test_seconds_are_of_a_step() -> None:
    """Catches: seconds of all steps told as those of one, or counted again at the next line."""
    watch = Stopwatch(CPU)
    watch.start()
    watch.stop()
    assert watch.forward > 0
    watch.steps, watch.data, watch.forward = 4, 2.0, 6.0
    assert watch.read() == (0.5, 1.5)
    assert watch.read() == (0.0, 0.0)
