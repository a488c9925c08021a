"""Which option of `sit evaluate` belongs to which of its modes."""

from __future__ import annotations

import dataclasses

from sitcli.errors import UsageError
from sitcli.settings.evaluate import EvaluateSettings

# Options of --nll that --history has too.
HISTORY_TOO = ("num", "solver", "steps", "rtol", "atol")


def refuse_options(settings: EvaluateSettings) -> None:
    """Raise UsageError for an option that has no effect in the mode that was asked for.

    The modes are metrics of samples, --history of a run's checkpoints, and --nll of a model.
    """
    fields = dataclasses.fields(settings)
    given = [f for f in fields if getattr(settings, f.name) != f.default]
    groups = {f.name: f.metadata["group"] for f in given}
    flags = {f.name: "--" + f.name.replace("_", "-") for f in given}
    if not settings.nll:
        for name, group in groups.items():
            if group == "Likelihood" and not (settings.history and name in HISTORY_TOO):
                raise UsageError(
                    f"{flags[name]} is an option of --nll", f"remove {flags[name]}, or add --nll"
                )
        if settings.history and settings.samples:
            raise UsageError("--history draws its own samples of a run", "remove the sample sets")
        return
    for name, group in groups.items():
        if group == "Metrics" or name == "history":
            raise UsageError(
                f"{flags[name]} measures samples, and --nll a model",
                f"remove {flags[name]}, or run it in another command",
            )
        if name == "reference_num":
            raise UsageError(
                "--reference-num is for samples", "use --num for the number of images of --nll"
            )
        if name == "reference_classes":
            raise UsageError("--reference-classes is for samples", "remove --reference-classes")
        if group == "Features":
            raise UsageError(
                f"{flags[name]} is for samples: --nll extracts no features", f"remove {flags[name]}"
            )
        if name in ("gpus", "procs"):
            raise UsageError(f"{flags[name]}: --nll runs in one process", f"remove {flags[name]}")
    if settings.samples and len(settings.samples) > 1:
        raise UsageError("--nll takes one run or step", "run sit evaluate --nll once for each")
