"""The loss over t and every w_t of a checkpoint, as curves and as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from sitcli.commands.inspect.checks import Artefact
from sitcli.core.wt import DEFAULT_ETA, WT, wt_of
from sitcli.errors import UsageError
from sitcli.events import Result, Table
from sitcli.images.curves import save_loss_and_wt
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.run_dir import STEP_NAME, RunDir
from sitcli.settings.tools import InspectSettings

PLOT_TIMES = [k / 200 for k in range(1, 200)]  # open at both ends, where some w_t are infinite
TABLE_TIMES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


class Curves(NamedTuple):
    """The velocity loss and every w_t of a checkpoint, as numbers.

    t: times; loss: the velocity loss at t, interpolated by `LossCurve`; wt: w_t at t, by name;
    means, counts: of the equal bins of t that training measured, a mean None where it drew no
    time; kl_eta_end: kl-eta at t = 1. Without a measured loss, loss, means and counts are empty
    and kl_eta_end is None.
    """

    t: list[float]
    loss: list[float]
    wt: dict[str, list[float]]
    means: list[float | None]
    counts: list[float]
    kl_eta_end: float | None


def curves_of(checkpoint: Checkpoint, times: Sequence[float], *, eta: float) -> Curves:
    """L_t and w_t (SiT Table 2) at times in (0, 1). Raises ValueError unless eta is positive."""
    process, curve = checkpoint.process, checkpoint.loss_curve
    t = torch.tensor(times, dtype=torch.float64)

    def w(name: str, t: torch.Tensor) -> list[float]:
        w_t = wt_of(name, eta=eta, loss_curve=curve)
        return w_t(t, process.path(t, t)).tolist()

    wt = {name: w(name, t) for name in WT if curve is not None or not WT[name].needs_loss}
    if curve is None:
        return Curves(times, [], wt, [], [], None)
    bins = checkpoint.meta["loss_by_t"]
    pairs = list(zip(bins["sums"], bins["counts"], strict=True))
    return Curves(
        t=list(times),
        loss=curve(t).tolist(),
        wt=wt,
        means=[total / count if count else None for total, count in pairs],
        counts=[count for _, count in pairs],
        kl_eta_end=w("kl-eta", torch.ones(1, dtype=torch.float64))[0],
    )


def checkpoint_to_plot(settings: InspectSettings, artefact: Artefact) -> Checkpoint | None:
    """The checkpoint that --plot draws; None without --plot.

    Raises UsageError for an artefact without loss and w_t, and for an --eta that has no effect.
    """
    if not settings.plot:
        if settings.eta is not None:
            raise UsageError("--eta has no effect without --plot", "remove --eta, or add --plot")
        return None
    if not isinstance(artefact, (RunDir, Checkpoint)):
        raise UsageError(
            f"{settings.path} is no run or step: it has no loss over t to plot",
            "name a run: sit inspect runs/NAME --plot",
        )
    checkpoint = open_checkpoint(artefact.path)
    curve = checkpoint.loss_curve
    if settings.eta is not None:
        if not 0 < settings.eta < math.inf:
            raise UsageError(
                f"--eta {settings.eta:g}: eta must be positive and finite", "e.g. --eta 0.1"
            )
        if curve is None:
            raise UsageError(
                f"--eta: {checkpoint.path} has no measured loss for kl-eta", "remove --eta"
            )
    return checkpoint


def plot_curves(settings: InspectSettings, checkpoint: Checkpoint, result: Result) -> None:
    """Write the plot beside the checkpoint, and add its path, table and numbers to `result`."""
    eta = DEFAULT_ETA if settings.eta is None else settings.eta
    curves = curves_of(checkpoint, PLOT_TIMES, eta=eta)
    process, folder = checkpoint.process, checkpoint.path.resolve()
    picture = checkpoint.path.parent / f"w_t-{checkpoint.path.name}.png"
    name = folder.parent.name if STEP_NAME.fullmatch(folder.name) else folder.name
    facts = {
        "step": checkpoint.step,
        "interpolant": process.interpolant,
        "prediction": process.prediction,
    }
    title = f"{name}, step {checkpoint.step}: {facts['interpolant']} interpolant, "
    title += f"{process.prediction} prediction"
    with_eta = {name for name, row in WT.items() if row.needs_loss}
    save_loss_and_wt(picture, title=title, eta=eta, with_eta=with_eta, **curves._asdict())
    result.tables.append(_curves_table(curves_of(checkpoint, TABLE_TIMES, eta=eta), eta))
    result.path = picture
    result.data["plot"] = str(picture)
    result.data["curves"] = facts | {"eta": eta if curves.loss else None} | curves._asdict()


def _curves_table(curves: Curves, eta: float) -> Table:
    columns = {"t": curves.t} | ({"L_t": curves.loss} if curves.loss else {}) | curves.wt
    title = "Velocity loss L_t and " if curves.loss else ""
    title += "w_t over t (t = 0 is data)"
    title += f"; kl-eta at eta {eta:g}" if curves.loss else ""
    lines = [[f"{value:.4g}" for value in line] for line in zip(*columns.values(), strict=True)]
    return Table(title=title, header=list(columns), rows=lines)
