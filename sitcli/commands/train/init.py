"""--init: the weights that a new run begins from, and what becomes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from sitcli.commands.import_weights import described
from sitcli.commands.parsing import parse_model_name
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.events import Note, Table, Warn
from sitcli.latents.joined import JoinedStores
from sitcli.latents.scaling import Scaling
from sitcli.latents.store import LatentStore
from sitcli.model.config import PRESETS, TransformerConfig
from sitcli.runs.checkpoint import Checkpoint, open_checkpoint
from sitcli.runs.meta import REVERSED
from sitcli.runs.run_dir import RunDir
from sitcli.settings.option import Said
from sitcli.settings.train import TrainSettings
from sitcli.storage.files import hash_file
from sitcli.storage.hub import local_path
from sitcli.weights.read import WEIGHT_FILES
from sitcli.weights.start import SHAPE, Fate, Start, start_from, turn_time

# The options that a run takes over from its source: the network's, and those of the process, where
# the new run is of the same family.
OF_NETWORK = ("block", "mlp", "norm", "rope", "qk_norm", "qk_kind")
OF_PROCESS = ("prediction", "loss_weight")


@dataclass(frozen=True)
class Source:
    """Weights to begin from.

    name: as the user called it; checkpoint: their facts; state: their tensors; sha256: of the file.
    notes, warnings: what the reading of a foreign file has to say.
    """

    name: str
    checkpoint: Checkpoint
    which: str
    state: dict[str, Tensor]
    sha256: str | None
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()

    @property
    def family(self) -> str:
        """SiT or DiT."""
        return "DiT" if isinstance(self.checkpoint.process, Diffusion) else "SiT"

    @property
    def messages(self) -> tuple[Note | Warn, ...]:
        """What the reading of a foreign file has to say."""
        return (*map(Note, self.notes), *map(Warn, self.warnings))

    @property
    def reversed(self) -> bool:
        """Whether its t = 0 is the noise."""
        return self.checkpoint.meta.get("time_convention") == REVERSED

    def facts(self, start: Start) -> dict[str, Any]:
        """What meta.json keeps of the beginning."""
        meta = self.checkpoint.meta
        return dict(
            path=str(self.checkpoint.path.resolve()),
            step=self.checkpoint.step,
            weights=self.which,
            sha256=self.sha256,
            model=meta["model"],
            process=meta["process"],
            **({"lineage": meta["lineage"]} if "lineage" in meta else {}),
            fates=[list(fate) for fate in start.fates],
        )


def open_source(settings: TrainSettings) -> Source:
    """The weights that --init names. Raises SitError if they cannot be had."""
    name, which = settings.init, settings.weights
    if not name:
        raise UsageError("--init names nothing", "name a run, or a file of weights")
    path = local_path(name)
    if path.is_file() and (path.parent / "meta.json").exists():
        raise UsageError(
            f"--init {name} is one file of a checkpoint", f"name all of it: --init {path.parent}"
        )
    if path.is_file() and path.suffix not in WEIGHT_FILES:
        what = "latents or samples" if path.suffix == ".h5" else "no weights"
        raise UsageError(
            f"--init {name} holds {what}", f"name a run, or a file of {', '.join(WEIGHT_FILES)}"
        )
    if (path / "meta.json").exists() or RunDir(path).steps():
        checkpoint = open_checkpoint(path)
        state = checkpoint.weights(which, verify=True)
        return Source(name, checkpoint, which, state, hash_file(checkpoint.file_of(which)))
    try:
        job = described(Path(name), model=settings.model)
    except UsageError as error:  # whose hint names options of sit import
        raise UsageError(
            f"--init {name}: {error.message}",
            f"import it first, then begin from that: sit import {quote(name)} runs/imported ...; "
            f"{error.hint}",
        ) from None
    if which not in job.states:
        other = next(iter(job.states))
        raise SitError(f"{name} holds no {which} weights", f"use --weights {other}")
    checkpoint = Checkpoint(job.found.path, job.meta | {"step": job.step})
    sha256 = job.meta["weights_source"]["sha256"]
    return Source(
        name, checkpoint, which, job.states[which], sha256, tuple(job.notes), tuple(job.warnings)
    )


def unsaid_as_source(settings: TrainSettings, said: Said, source: Source) -> TrainSettings:
    """The settings with network and objective as the source has them, where nothing was said."""
    config, process = source.checkpoint.config, source.checkpoint.process
    facts: dict[str, Any] = {name: getattr(config, name) for name in OF_NETWORK}
    family = source.family
    if "model" in said:
        family = parse_model_name(settings.model)[0]
    else:
        sizes = {preset: name for name, preset in PRESETS.items()}
        size = sizes.get((config.depth, config.width, config.heads))
        facts["model"] = f"{family}-{size or 'S'}/{config.patch}"
        if size is None:
            facts |= dict(depth=config.depth, width=config.width, heads=config.heads)
    if family == source.family:
        facts |= {name: getattr(process, name) for name in OF_PROCESS}
        facts["direction_loss"] = process.direction
        if "t_shift" in source.checkpoint.meta:
            facts["t_shift"] = f"{source.checkpoint.meta['t_shift']:.6g}"
        if isinstance(process, Diffusion):
            facts["variance"] = process.variance
            if isinstance(process.betas, str):
                facts["betas"] = process.betas
        else:
            facts["interpolant"] = process.interpolant
    return dataclasses.replace(settings, **{k: v for k, v in facts.items() if k not in said})


def begin(
    source: Source,
    config: TransformerConfig,
    process: Flow,
    store: LatentStore | JoinedStores,
) -> Start:
    """The start of the new run's network from the source.

    Raises UsageError for a network of another shape.
    """
    before = source.checkpoint
    for name in SHAPE:
        ours, theirs = getattr(config, name), getattr(before.config, name)
        if ours != theirs:
            raise UsageError(
                f"--init {source.name} has {name} {theirs}, and the new network has {ours}",
                "leave --model, --depth, --width, --heads, --block and --mlp out: they are the "
                "source's",
            )
    if before.config.own_embedders:
        raise UsageError(
            f"--init {source.name}: every block has embedders of its own, which sit does not train",
            "name weights of the official layout",
        )
    state = source.state
    if source.reversed:
        state = turn_time(state, before.process.prediction)
    start = start_from(
        state,
        before.config,
        config,
        source_classes=before.latents["class_names"],
        classes=store.class_names,
    )
    words = _process_words(source, process) + _latent_words(before.latents, store)
    return dataclasses.replace(start, fates=[*start.fates, *words])


def _process_words(source: Source, process: Flow) -> list[Fate]:
    """How the new process differs from the source's."""
    fates = []
    if source.reversed:
        fates.append(Fate("converted", "direction of time", "its t = 0 was the noise; exact"))
    before, now = source.checkpoint.process, process
    if (before.interpolant, before.prediction) != (now.interpolant, now.prediction):
        words = f"{now.describe()}, was {before.describe()}: the weights are a start, no solution"
        fates.append(Fate("other", "process", words))
    return fates


def _latent_words(latents: dict[str, Any], store: LatentStore | JoinedStores) -> list[Fate]:
    """How the new latents differ from the source's."""
    theirs, ours = latents["autoencoder"], store.autoencoder
    words = []
    if theirs["hash"] not in (None, ours["hash"]) or theirs["class"] != ours["class"]:
        words.append(f"of {ours['name']}, were of {theirs['name']}")
    if Scaling.of(latents) != store.scaling:
        words.append(f"scaled by {store.scaling}, were by {Scaling.of(latents)}")
    return [Fate("other", "latents", "; ".join(words))] if words else []


def fates_table(name: str, fates: Sequence[Sequence[str]]) -> Table:
    """What became of the source's parts, as a table."""
    return Table(
        title=f"Begun from {name}",
        header=["", "part", ""],
        rows=[list(fate) for fate in fates],
    )


def fates_lines(fates: Sequence[Sequence[str]]) -> list[str]:
    """The same as lines of text."""
    widths = [max(len(fate[column]) for fate in fates) for column in (0, 1)]
    return [
        f"  {what:<{widths[0]}}  {part:<{widths[1]}}  {remark}".rstrip()
        for what, part, remark in fates
    ]
