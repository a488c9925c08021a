"""Ctrl-C and SIGTERM noted, so that work ends after the current step."""

from __future__ import annotations

import signal

import pytest

from sitcli.machine import signals
from sitcli.machine.signals import SIGNALS, signals_noted


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(number: int) -> None:
    """Catches: a step that is cut off by Ctrl-C or SIGTERM instead of ending first."""
    with signals_noted() as received:
        signal.raise_signal(number)
        assert received == [number]
        signal.raise_signal(number)  # torchrun passes on what the terminal has sent too
        assert received == [number]


def test_a_second_one_later_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches: a user who presses Ctrl-C again and waits for the step all the same."""
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1.0)
    with signals_noted() as received:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]


def test_handlers_are_as_before_at_the_end() -> None:
    """Catches: a command that stays deaf to Ctrl-C after its training, an error included."""

    def work() -> None:
        with signals_noted():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            raise RuntimeError

    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(RuntimeError):
        work()
    assert [signal.getsignal(number) for number in SIGNALS] == before
