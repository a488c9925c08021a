"""Keeping other libraries quiet."""

from __future__ import annotations

import logging
import os
import warnings

import pytest

from sitcli.machine.quiet import NOISY, quiet_libraries


@pytest.fixture
def loud(monkeypatch: pytest.MonkeyPatch):
    """Loggers and warnings as they are by default; what a test changes is undone."""
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    levels = {name: logging.getLogger(name).level for name in NOISY}
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for name in NOISY:
            logging.getLogger(name).setLevel(logging.NOTSET)
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    os.environ.pop("HF_HUB_DISABLE_TELEMETRY", None)


def test_warnings_are_silent_and_errors_are_not(loud, monkeypatch, recwarn, caplog) -> None:
    """Catches: a library's warning on the user's terminal, or its error kept from them."""
    monkeypatch.delenv("SIT_DEBUG", raising=False)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    quiet_libraries()
    warnings.warn("deprecated", stacklevel=1)
    logging.getLogger("diffusers").warning("some weights are new")
    logging.getLogger("diffusers").error("this failed")
    assert not recwarn.list
    assert [record.message for record in caplog.records] == ["this failed"]
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"  # what the user set stays


def test_for_debugging_they_speak(loud, monkeypatch) -> None:
    """Catches: SIT_DEBUG=1 that shows nothing more."""
    monkeypatch.setenv("SIT_DEBUG", "1")
    quiet_libraries()
    assert {logging.getLogger(name).level for name in NOISY} == {logging.NOTSET}
    with pytest.warns(UserWarning, match="deprecated"):
        warnings.warn("deprecated", stacklevel=1)
