"""The lineages of weights that `sit import` knows, a row each."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.model.config import TransformerConfig
from sitcli.runs.meta import PAPER, REVERSED
from sitcli.weights.official import PROJECTORS

PATHS = {"linear": "linear", "gvp": "gvp", "cosine": "gvp", "vp": "vp"}


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """title: for people; family: SiT or DiT; time_convention: see `checkpoint_meta`;
    guided_channels: what its published figures guide."""

    title: str
    family: str
    time_convention: str
    guided_channels: names.GuidedChannels


LINEAGES: dict[str, Lineage] = {
    "official-sit": Lineage(
        title="the official SiT", family="SiT", time_convention=REVERSED, guided_channels="3"
    ),
    "official-dit": Lineage(
        title="the official DiT or fast-DiT",
        family="DiT",
        time_convention=PAPER,
        guided_channels="3",
    ),
    "repa": Lineage(title="REPA", family="SiT", time_convention=PAPER, guided_channels="all"),
    "diffusers": Lineage(
        title="diffusers' DiT", family="DiT", time_convention=PAPER, guided_channels="all"
    ),
}


def recognise(
    *,
    name: str,
    lineage: str | None,
    why: str,
    model: str | None,
    keys: Iterable[str],
    args: Namespace | None,
    learned_sigma: bool,
) -> tuple[str, str]:
    """The row of LINEAGES that weights are of, and what says so.

    name: the file's; lineage: what was said, and why; model: what the user said; keys: the
    tensors'; args: the trainer's.
    Raises UsageError if nothing tells, or the user and the file contradict each other.
    """
    family = model.split("-")[0] if model else None
    if lineage is not None:
        return _agreed(lineage, why, family, name)
    if any(key.startswith(PROJECTORS) for key in keys):
        return _agreed("repa", "it has REPA's projectors", family, name)
    if args is not None and (hasattr(args, "proj_coeff") or hasattr(args, "enc_type")):
        return _agreed("repa", "its trainer's arguments are REPA's", family, name)
    if args is not None and hasattr(args, "path_type"):
        return _agreed("official-sit", "its trainer's arguments are SiT's", family, name)
    if args is not None and (hasattr(args, "global_batch_size") or hasattr(args, "num_classes")):
        return _agreed("official-dit", "its trainer's arguments are DiT's", family, name)
    match = re.match(r"(sit|dit)[-_]", name, re.IGNORECASE)
    said = match and match[1].lower()
    if family is not None and said is None and family == "SiT" and not learned_sigma:
        raise UsageError(
            f"{name}: SiT weights without learned sigma may be the official SiT's or REPA's, whose "
            "times run in opposite directions",
            "--lineage official-sit, or --lineage repa",
        )
    if family is not None:
        return f"official-{family.lower()}", "--model"
    if said is not None:
        return f"official-{said}", "the file's name"
    raise UsageError(
        f"{name}: DiT's and SiT's weights look alike, and nothing tells which these are",
        "say so: --model SiT-XL/2, --model DiT-XL/2, or --lineage repa",
    )


def _agreed(lineage: str, why: str, family: str | None, name: str) -> tuple[str, str]:
    if family not in (None, LINEAGES[lineage].family):
        raise UsageError(
            f"--model is a {family}, and {name} is {LINEAGES[lineage].title}: {why}",
            "leave out --model, or say --lineage if you know better",
        )
    return lineage, why


def process_of(
    lineage: str,
    *,
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """The process that such weights are of; interpolant and prediction override the trainer's.

    Raises UsageError for options that do not fit, SitError for arguments sit does not know.
    """
    if LINEAGES[lineage].family == "DiT":
        if interpolant or prediction:
            option = "--interpolant" if interpolant else "--prediction"
            raise UsageError(f"{option} is for SiT weights, and these are DiT's", "leave it out")
        learned = config.out_channels == 2 * config.channels
        # What the official create_diffusion takes without learned sigma.
        return Diffusion(variance="learned-range" if learned else "fixed-large")
    path = str(getattr(args, "path_type", "linear")).lower()
    target = str(getattr(args, "prediction", "velocity"))
    weight = str(getattr(args, "loss_weight", None) or "none")
    target = "velocity" if target == "v" else target
    if path not in PATHS or target not in names.PREDICTIONS or weight not in names.LOSS_WEIGHTS:
        raise SitError(
            f"the trainer's arguments say path {path}, prediction {target}, loss weight {weight}, "
            "which sit does not know",
            "--interpolant and --prediction override them",
        )
    return Flow(
        interpolant=interpolant or PATHS[path],
        prediction=prediction or target,
        loss_weight=weight,
    )
