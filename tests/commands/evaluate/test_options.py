"""Options of `sit evaluate` that do nothing in the mode that was asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sitcli.commands.evaluate.options import HISTORY_TOO, refuse_options
from sitcli.errors import UsageError
from sitcli.settings.evaluate import EvaluateSettings

FIELDS = {field.name: field for field in dataclasses.fields(EvaluateSettings)}


def in_group(*groups: str) -> list[str]:
    return [name for name, field in FIELDS.items() if field.metadata["group"] in groups]


def given(*names: str, **more) -> EvaluateSettings:
    """Settings with another value than the default for each of these options."""
    values = {
        name: (not FIELDS[name].default) if isinstance(FIELDS[name].default, bool) else "3"
        for name in names
    }
    return EvaluateSettings(**values | more)


@pytest.mark.parametrize("name", in_group("Likelihood"))
def test_options_of_the_likelihood_need_it(name: str) -> None:
    """Catches: `sit evaluate --num 1000` that measures all samples without a word."""
    if name == "nll":
        refuse_options(given("nll"))
        return
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} is an option of --nll"):
        refuse_options(given(name))
    refuse_options(given(name, nll=True))
    if name in HISTORY_TOO:
        refuse_options(given(name, history=True))
    else:
        with pytest.raises(UsageError, match="is an option of --nll"):
            refuse_options(given(name, history=True))


@pytest.mark.parametrize("name", in_group("Metrics", "Features"))
def test_options_of_samples_mean_nothing_to_the_likelihood(name: str) -> None:
    """Catches: a metric that was asked for and is missing from the figures."""
    refuse_options(given(name))
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} "):
        refuse_options(given(name, nll=True))


@pytest.mark.parametrize("name", ["gpus", "procs", "reference_num", "history"])
def test_the_likelihood_runs_alone(name: str) -> None:
    """Catches: processes, a number of reference images or a history that --nll ignores."""
    refuse_options(given(name))
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')}"):
        refuse_options(given(name, nll=True))


def test_what_is_measured_is_of_the_mode() -> None:
    """Catches: sample sets beside --history, which draws its own, or several runs under --nll."""
    sets = [Path("a"), Path("b")]
    refuse_options(EvaluateSettings(samples=sets))
    refuse_options(EvaluateSettings(samples=sets[:1], nll=True))
    with pytest.raises(UsageError, match="--history draws its own"):
        refuse_options(EvaluateSettings(samples=sets[:1], history=Path("run")))
    with pytest.raises(UsageError, match="one run or step"):
        refuse_options(EvaluateSettings(samples=sets, nll=True))
