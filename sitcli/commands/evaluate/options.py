"""Which option of `sit evaluate` belongs to which of its modes."""

from __future__ import annotations

import dataclasses

from sitcli.errors import UsageError
from sitcli.settings.evaluate import EvaluateSettings

# Options of --nll that --history has too.
HISTORY_TOO = ("num", "solver", "steps", "rtol", "atol")


def refuse_options(settings: EvaluateSettings) -> None:
    """UsageError for an option that does nothing in the mode that was asked for.

    The modes: metrics of samples, --history of a run's checkpoints, --nll of a model.
    """
    fields = dataclasses.fields(settings)
    given = [f for f in fields if getattr(settings, f.name) != f.default]
    groups = {f.name: f.metadata["group"] for f in given}
    flags = {f.name: "--" + f.name.replace("_", "-") for f in given}
    if not settings.nll:
        for name, group in groups.items():
            if group == "Likelihood" and not (settings.history and name in HISTORY_TOO):
                raise UsageError(
                    f"{flags[name]} is an option of --nll", "leave it out, or add --nll"
                )
        if settings.history and settings.samples:
            raise UsageError(
                "--history draws its own samples of a run", "leave out the sample sets"
            )
        return
    for name, group in groups.items():
        if group == "Metrics" or name == "history":
            raise UsageError(
                f"{flags[name]} measures samples, and --nll a model", "type a command for each"
            )
        if name == "reference_num":
            raise UsageError(
                "--reference-num is for samples", "--num says how many images --nll takes"
            )
        if group == "Features":
            raise UsageError(
                f"{flags[name]} is for samples: --nll extracts no features", "leave it out"
            )
        if name in ("gpus", "procs"):
            raise UsageError(f"{flags[name]}: --nll runs in one process", "leave it out")
    if settings.samples and len(settings.samples) > 1:
        raise UsageError("--nll takes one run or step", "type a command for each")
