"""The lineages of weights that `sit import` knows, a row each."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Sequence
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
class Clues:
    """What may tell whose weights a file holds.

    name: the file's; keys: the tensors'; args: the trainer's arguments, None without them;
    learned_sigma: whether the network gives twice the channels it takes.
    """

    name: str
    keys: Sequence[str]
    args: Namespace | None
    learned_sigma: bool

    def told(self, *arguments: str) -> bool:
        """Whether the trainer had any of these arguments."""
        return any(hasattr(self.args, argument) for argument in arguments)

    @property
    def of_repa(self) -> bool:
        return self.told("proj_coeff", "enc_type")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Weights of one origin.

    title: for people; family: SiT or DiT; time_convention: see `checkpoint_meta`;
    guided_channels: what its published figures guide.
    recognises(clues): what in the file says that it is of this lineage, "" for nothing.
    process(config, args, interpolant, prediction): the process the weights are of; the last two
    are what the user said, or None.
    official: whether a name or a --model of the family, which say no more, mean this lineage.
    has_ema: whether the weights are an average with the papers' decay.
    """

    title: str
    family: str
    time_convention: str
    guided_channels: names.GuidedChannels
    recognises: Callable[[Clues], str]
    process: Callable[[TransformerConfig, Namespace | None, str | None, str | None], Flow]
    official: bool = False
    has_ema: bool = True


def _sit_process(
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """What the trainer's arguments say; the user's options override them.

    Raises SitError for arguments sit does not know.
    """
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


def _dit_process(
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """The published process. UsageError for options of SiT's."""
    if interpolant or prediction:
        option = "--interpolant" if interpolant else "--prediction"
        raise UsageError(f"{option} is for SiT weights, and these are DiT's", "leave it out")
    learned = config.out_channels == 2 * config.channels
    # What the official create_diffusion takes without learned sigma.
    return Diffusion(variance="learned-range" if learned else "fixed-large")


def _repa_clue(clues: Clues) -> str:
    if any(key.startswith(PROJECTORS) for key in clues.keys):
        return "it has REPA's projectors"
    return "its trainer's arguments are REPA's" if clues.of_repa else ""


def _sit_clue(clues: Clues) -> str:
    told = clues.told("path_type") and not _repa_clue(clues)
    return "its trainer's arguments are SiT's" if told else ""


def _dit_clue(clues: Clues) -> str:
    told = clues.told("global_batch_size", "num_classes") and not clues.told("path_type")
    return "its trainer's arguments are DiT's" if told and not _repa_clue(clues) else ""


LINEAGES: dict[str, Lineage] = {
    "official-sit": Lineage(
        title="the official SiT",
        family="SiT",
        time_convention=REVERSED,
        guided_channels="3",
        recognises=_sit_clue,
        process=_sit_process,
        official=True,
    ),
    "official-dit": Lineage(
        title="the official DiT or fast-DiT",
        family="DiT",
        time_convention=PAPER,
        guided_channels="3",
        recognises=_dit_clue,
        process=_dit_process,
        official=True,
    ),
    "repa": Lineage(
        title="REPA",
        family="SiT",
        time_convention=PAPER,
        guided_channels="all",
        recognises=_repa_clue,
        process=_sit_process,
    ),
    # Recognised by its folder, before anything is read.
    "diffusers": Lineage(
        title="diffusers' DiT",
        family="DiT",
        time_convention=PAPER,
        guided_channels="all",
        recognises=lambda clues: "",
        process=_dit_process,
        has_ema=False,
    ),
}


def recognise(clues: Clues, *, lineage: str | None, why: str, model: str | None) -> tuple[str, str]:
    """The row of LINEAGES that weights are of, and what says so.

    lineage: what was said already, and why; model: what the user said.
    Raises UsageError if nothing tells, or the user and the file contradict each other.
    """
    name, family = clues.name, model.split("-")[0] if model else None
    if lineage is not None:
        return _agreed(lineage, why, family, name)
    for row_name, row in LINEAGES.items():
        if reason := row.recognises(clues):
            return _agreed(row_name, reason, family, name)
    match = re.match(r"(sit|dit)[-_]", name, re.IGNORECASE)
    said = {"sit": "SiT", "dit": "DiT"}[match[1].lower()] if match else None
    if family == "SiT" and said is None and not clues.learned_sigma:
        raise UsageError(
            f"{name}: SiT weights without learned sigma may be the official SiT's or REPA's, whose "
            "times run in opposite directions",
            "--lineage official-sit, or --lineage repa",
        )
    if family is not None:
        return _official(family), "--model"
    if said is not None:
        return _official(said), "the file's name"
    raise UsageError(
        f"{name}: DiT's and SiT's weights look alike, and nothing tells which these are",
        "say so: --model SiT-XL/2, --model DiT-XL/2, or --lineage repa",
    )


def _official(family: str) -> str:
    return next(name for name, row in LINEAGES.items() if row.official and row.family == family)


def _agreed(lineage: str, why: str, family: str | None, name: str) -> tuple[str, str]:
    if family not in (None, LINEAGES[lineage].family):
        raise UsageError(
            f"--model is a {family}, and {name} is {LINEAGES[lineage].title}: {why}",
            "leave out --model, or say --lineage if you know better",
        )
    return lineage, why
