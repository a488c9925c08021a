"""The lineages of weights that `sit import` knows, a row each."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.model.config import TransformerConfig
from sitcli.runs.meta import PAPER, REVERSED
from sitcli.weights.latent_space import SD_VAE_SPEC, VA_VAE_SPEC
from sitcli.weights.lightningdit import ROPE, from_lightningdit
from sitcli.weights.official import BATCH_NORM, PROJECTORS

PATHS = {"linear": "linear", "gvp": "gvp", "cosine": "gvp", "vp": "vp"}


@dataclass(frozen=True, kw_only=True)
class Clues:
    """The facts about a file that may show whose weights it holds.

    name: the file's name; keys: the names of its tensors; args: the trainer's arguments, None if
    the file has none; learned_sigma: whether the network outputs twice the channels of its input.
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
        """Whether the trainer's arguments are REPA's."""
        return self.told("proj_coeff", "enc_type")


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Weights of one origin.

    title: the name to print; family: SiT or DiT; time_convention: see `checkpoint_meta`;
    guided_channels: the channels that are guided in its published figures.
    recognises(clues): the reason why the file is of this lineage, "" if there is none.
    process(config, args, interpolant, prediction): the process the weights were trained with; the
    last two are the user's options, or None.
    official: whether this lineage is meant where only the family is known, from --model or the
    file's name.
    has_ema: whether the weights are an average with the papers' decay.
    translate(path, state): its tensors as our network takes them; vaes: the specs of the
    autoencoders it was trained with; normalised: whether the latents are normalised by statistics,
    which their trainer keeps in a file.
    """

    title: str
    family: str
    time_convention: str
    guided_channels: names.GuidedChannels
    recognises: Callable[[Clues], str]
    process: Callable[[TransformerConfig, Namespace | None, str | None, str | None], Flow]
    official: bool = False
    has_ema: bool = True
    translate: Callable[[object, dict[str, Tensor]], dict[str, Tensor]] = lambda path, state: state
    vaes: tuple[dict[str, Any], ...] = (SD_VAE_SPEC,)
    normalised: bool = False


def _sit_process(
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """SiT's process from the trainer's arguments, which the user's options override.

    Raises SitError for an argument that sit does not know and no option overrides.
    """
    path = str(getattr(args, "path_type", "linear"))
    target = str(getattr(args, "prediction", "velocity"))
    weight = str(getattr(args, "loss_weight", None) or "none")
    for argument, value, found, option, known in (
        ("path_type", path, interpolant or PATHS.get(path.lower()), "interpolant", PATHS),
        ("prediction", target, prediction or target_of(target), "prediction", names.PREDICTIONS),
    ):
        if not found:
            raise SitError(
                f"the trainer's arguments say {argument} {value}, which sit does not know: it "
                f"knows {', '.join(known)}",
                f"say what it is with --{option}",
            )
    if weight not in names.LOSS_WEIGHTS:
        raise SitError(
            f"the trainer's arguments say loss_weight {weight}, which sit does not know",
            "add --ignore-args, and --interpolant and --prediction: the weight of the loss changes "
            "no samples",
        )
    return Flow(
        interpolant=interpolant or PATHS[path.lower()],
        prediction=prediction or target_of(target),
        loss_weight=weight,
    )


def target_of(text: str) -> str | None:
    """The prediction that a trainer calls so ('v' is REPA's velocity), None if there is none."""
    target = "velocity" if text == "v" else text
    return target if target in names.PREDICTIONS else None


def _dit_process(
    config: TransformerConfig,
    args: Namespace | None,
    interpolant: str | None,
    prediction: str | None,
) -> Flow:
    """The published DiT process. Raises UsageError for options that only SiT weights have."""
    if interpolant or prediction:
        option = "--interpolant" if interpolant else "--prediction"
        raise UsageError(f"{option} is for SiT weights, and these are DiT's", f"remove {option}")
    learned = config.out_channels == 2 * config.channels
    # The official create_diffusion takes fixed-large where sigma is not learned.
    return Diffusion(variance="learned-range" if learned else "fixed-large")


def _repa_clue(clues: Clues) -> str:
    if any(key.startswith(PROJECTORS) for key in clues.keys):
        return "it has REPA's projectors"
    if any(key.startswith(BATCH_NORM) for key in clues.keys):
        return "it has REPA-E's statistics of latents"
    return "its trainer's arguments are REPA's" if clues.of_repa else ""


def _sit_clue(clues: Clues) -> str:
    told = clues.told("path_type") and not _repa_clue(clues) and not _lightningdit_clue(clues)
    return "its trainer's arguments are SiT's" if told else ""


def _dit_clue(clues: Clues) -> str:
    told = clues.told("global_batch_size", "num_classes") and not clues.told("path_type")
    return "its trainer's arguments are DiT's" if told and not _repa_clue(clues) else ""


def _lightningdit_clue(clues: Clues) -> str:
    if any(key.startswith(ROPE) for key in clues.keys):
        return "it has LightningDiT's tables of RoPE"
    if clues.told("use_rmsnorm", "wo_shift"):
        return "its trainer's configuration is LightningDiT's"
    return "its MLPs are LightningDiT's" if "blocks.0.mlp.w12.weight" in clues.keys else ""


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
        vaes=(SD_VAE_SPEC, VA_VAE_SPEC),  # REPA-E's networks take both
    ),
    "lightningdit": Lineage(
        title="LightningDiT",
        family="SiT",
        time_convention=REVERSED,
        guided_channels="3",
        recognises=_lightningdit_clue,
        process=_sit_process,
        translate=from_lightningdit,
        vaes=(VA_VAE_SPEC, SD_VAE_SPEC),
        normalised=True,
    ),
    # A diffusers folder is recognised before its files are read.
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
    """The name of the weights' row in LINEAGES, and the reason for that choice.

    lineage: the lineage if it is known already, for the reason `why`; model: the user's --model.
    Raises UsageError if the lineage cannot be told, or --model contradicts the file.
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
            f"cannot tell whether {name} holds the official SiT's weights or REPA's, whose times "
            "run in opposite directions: both can lack learned sigma",
            "add --lineage official-sit or --lineage repa",
        )
    if family is not None:
        return _official(family), "--model"
    if said is not None:
        return _official(said), "the file's name"
    raise UsageError(
        f"cannot tell whether {name} holds DiT or SiT weights: both use the same tensor names",
        "add --model SiT-XL/2 or --model DiT-XL/2, or --lineage repa",
    )


def _official(family: str) -> str:
    return next(name for name, row in LINEAGES.items() if row.official and row.family == family)


def _agreed(lineage: str, why: str, family: str | None, name: str) -> tuple[str, str]:
    if family not in (None, LINEAGES[lineage].family):
        raise UsageError(
            f"--model is a {family}, but {name} holds weights of {LINEAGES[lineage].title}: {why}",
            "remove --model, or correct the lineage with --lineage",
        )
    return lineage, why
