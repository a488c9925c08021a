"""The order of training's images, and preparing them ahead of need."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from sitcli.commands.train.feed import Feed, Order, randomness_of_step
from sitcli.core.flow import Flow
from sitcli.core.times import Random
from sitcli.machine.seeds import STREAMS, Philox, Stream


def drawn(random, items: np.ndarray, *, posterior: bool = True):
    """All that a step can draw."""
    return randomness_of_step(
        random,
        items,
        shape=(2, 4, 4),
        draw_times=Flow().draw_times,
        label_dropout=0.5,
        flip=True,
        posterior=posterior,
        tokens=16,
        kept=5,
    )


def test_every_image_once_an_epoch_in_another_order():
    """Catches: images left out or read twice within an epoch, or every epoch in the same order."""
    order = Order(10, Philox(3))
    items = np.concatenate([order.batch(4 * step, 4) for step in range(5)])
    epochs = items.reshape(2, 10)
    assert np.sort(epochs).tolist() == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_the_order_is_a_function_of_seed_and_step():
    """Catches: a resumed run that reads other images than the one it goes on for."""
    expected = [Order(10, Philox(3)).batch(7 * step, 7).tolist() for step in range(6)]
    order = Order(10, Philox(3))
    assert [order.batch(7 * step, 7).tolist() for step in (5, 0, 3)] == [
        expected[i] for i in (5, 0, 3)
    ]
    assert Order(10, Philox(4)).batch(0, 7).tolist() != expected[0]


def test_steps_come_in_order_and_all():
    """Catches: a step lost, doubled or swapped between the threads."""
    feed = Feed(lambda step: step * step, 3, 50)
    assert [feed.get(step) for step in range(3, 50)] == [step * step for step in range(3, 50)]
    with pytest.raises(ValueError, match="step 50"):
        feed.get(50)
    feed.close()


def test_another_step_than_the_next_is_refused():
    """Catches: a batch trained on as another step's, silently."""
    feed = Feed(lambda step: step, 0, 5)
    with pytest.raises(ValueError, match="step 1 of a feed that is at 0"):
        feed.get(1)
    feed.close()


def test_no_more_than_asked_is_prepared_ahead():
    """Catches: a feed that fills the memory with batches, or that prepares nothing ahead."""
    begun = []
    feed = Feed(begun.append, 0, 100, ahead=2)
    for step in range(4):
        feed.get(step)
        deadline = time.monotonic() + 10
        while len(begun) < step + 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        assert begun == list(range(step + 3))
    feed.close()


def test_an_error_comes_at_its_step():
    """Catches: an error that ends the thread in silence, so that training waits for ever."""

    def prepare(step):
        if step == 2:
            raise OSError("the disk is gone")
        return step

    feed = Feed(prepare, 0, 10)
    assert [feed.get(0), feed.get(1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            feed.get(2)
    feed.close()


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_ends_the_thread(taken):
    """Catches: a thread that reads on, or hangs, after training was interrupted or has ended."""
    feed = Feed(lambda step: step, 0, 5)
    for step in range(taken):
        feed.get(step)
    feed.close()
    feed.close()
    assert "sit-feed" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(ValueError, match="of a feed"):
        feed.get(taken)


def test_the_interpreter_ends_with_a_feed_at_work():
    """Catches: an unclosed feed that keeps the process alive or aborts it at its end."""
    program = (
        "import torch\n"
        "from sitcli.commands.train.feed import Feed\n"
        "feed = Feed(lambda step: torch.randn(1 << 18), 0, 10**9)\n"
        "feed.get(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")


def test_other_threads_keep_their_number_of_threads():
    """Catches: a training step that runs on one processor because its feed does."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = []
    try:
        feed = Feed(lambda step: torch.get_num_threads(), 0, 1)
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
        assert (feed.get(0), torch.get_num_threads(), seen) == (1, 3, [3])
        feed.close()
    finally:
        torch.set_num_threads(before)


def test_order_visits_everything_once_an_epoch() -> None:
    """Catches: an order that repeats or drops items, or is the same every epoch."""
    order = Order(10, Philox(3))
    seen = np.concatenate([order.batch(4 * step, 4) for step in range(5)])
    assert sorted(seen[:10]) == list(range(10))
    assert sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert Order(10, Philox(3)).batch(12, 4).tolist() == seen[12:16].tolist()
    assert Order(3, Philox(0)).batch(0, 8).shape == (8,)


@pytest.mark.parametrize("streams", STREAMS)
def test_a_process_draws_its_part_of_the_batch(streams: str) -> None:
    """Catches: numbers of a step that depend on how many processes share its batch."""

    def draw(part: slice):
        return drawn(STREAMS[streams](7).step(3, 24, 8, part), np.arange(8)[part])

    whole, parts = draw(slice(None)), [draw(slice(0, 4)), draw(slice(4, 8))]
    assert whole.posterior.shape == whole.eps.shape == (8, 2, 4, 4)
    assert whole.tokens_kept.shape == (8, 5)
    assert 0 < int(whole.hide.sum()) < 8
    assert 0 < int(whole.flip.sum()) < 8
    for i, values in enumerate(whole):
        assert np.array_equal(values, np.concatenate([part[i] for part in parts]))
        assert np.array_equal(whole.part(slice(4, 8))[i], parts[1][i])


def test_a_number_does_not_depend_on_what_else_is_drawn() -> None:
    """Catches: an option that changes the noise or the routes by drawing one thing more."""

    def draw(posterior: bool):
        return drawn(Philox(7).step(3, 24, 8, slice(None)), np.arange(8), posterior=posterior)

    without, with_one = draw(False), draw(True)
    assert without.posterior is None
    for name in ("eps", "t", "hide", "tokens_kept"):
        assert torch.equal(getattr(without, name), getattr(with_one, name))
    assert not torch.equal(with_one.eps, with_one.posterior)


def test_everything_of_a_step_has_a_stream_of_its_own() -> None:
    """Catches: flips that decide the dropped labels too, or times that are the routes' numbers."""
    asked: list[Stream] = []

    def random(stream: Stream) -> Random:
        asked.append(stream)
        return Philox(7).step(3, 12, 4, slice(None))(stream)

    drawn(random, np.arange(4))
    assert len(asked) == len(set(asked)) == 6
