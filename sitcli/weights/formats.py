"""The formats `sit export` writes, a row each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sitcli.autoencoders.diffusers_classes import KINDS
from sitcli.autoencoders.diffusers_vae import find_folder
from sitcli.autoencoders.load import UNKNOWN, is_identity
from sitcli.core.diffusion import Diffusion
from sitcli.errors import UsageError
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import position_embedding
from sitcli.model.transformer import tensor_shapes
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.meta import PAPER, REVERSED
from sitcli.storage.tensors import write_tensors
from sitcli.weights.diffusers_dit import (
    PIPELINE_PATHS,
    PIPELINE_PREDICTIONS,
    PIPELINE_VARIANCES,
    write_folder,
)
from sitcli.weights.official import AUTOENCODER, PROJECTORS
from sitcli.weights.start import turn_time

TRAINING_ONLY = ("aux_", PROJECTORS)
SIDE_512 = 64  # for latents of this side the official sampler's network has no learned sigma
KEEPS_ALL = "use --format safetensors, which keeps everything"
# The official sampler's names of the paths it knows, and the predictions it knows.
OFFICIAL_PATHS = {"linear": "Linear", "gvp": "GVP", "vp": "VP"}
OFFICIAL_PREDICTIONS = ("velocity", "score", "noise")
# The one chain that the official DiT samples, and the prediction of the delivered pipeline's chain.
OFFICIAL_CHAIN = {"prediction": "noise", "betas": "linear", "variance": "learned-range"}
CHAIN_PREDICTIONS = ("noise",)
LAYOUTS_BLOCK = "adaln-zero"  # the block design of the official and the diffusers layout


@dataclass(kw_only=True)
class Export:
    """The weights to export: those called `which` in a checkpoint, as `state`.

    vae: the folder of the autoencoder, None if the user named none. The format adds: warnings,
    lines for the user; beside, the tensors for the sidecar, None for a format without one.
    """

    checkpoint: Checkpoint
    which: str
    state: dict[str, Tensor]
    vae: str | None = None
    warnings: list[str] = field(default_factory=list)
    beside: dict[str, Tensor] | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """The checkpoint's meta, and which of its weights these are."""
        # The weights are whole: what tells of adapters belongs to the run.
        meta = {k: v for k, v in self.checkpoint.meta.items() if k not in ("lora", "trained")}
        return meta | {"exported_weights": self.which}


class Format(NamedTuple):
    """A layout of weights.

    prepare(export) returns the function that writes the weights to a path; it raises UsageError
    with the reason if the layout cannot hold them. folder: whether that path is a folder;
    takes_vae: whether the format uses --vae; keeps_training_parts: whether the layout has a place
    for heads that only training uses.
    """

    prepare: Callable[[Export], Callable[[Path], None]]
    folder: bool = False
    takes_vae: bool = False
    keeps_training_parts: bool = False


def _safetensors(export: Export) -> Callable[[Path], None]:
    metadata = {"sit": _meta_text(export), "format": "pt"}
    tensors = export.state | _arrays(export.checkpoint)
    return lambda path: write_tensors(path, tensors, metadata=metadata)


def _official_sit(export: Export) -> Callable[[Path], None]:
    checkpoint, state = export.checkpoint, export.state
    process = checkpoint.process
    _check_layout(checkpoint, "official-sit")
    _check_scaling(checkpoint, "official-sit")
    if isinstance(process, Diffusion):
        raise _refused(checkpoint, "official-sit", "it was trained with DiT's diffusion")
    if process.interpolant not in OFFICIAL_PATHS:
        raise _refused(
            checkpoint, "official-sit", f"the official code lacks the path {process.interpolant}"
        )
    if process.prediction not in OFFICIAL_PREDICTIONS:
        raise _refused(
            checkpoint,
            "official-sit",
            f"the official code lacks {process.prediction} prediction",
        )
    if checkpoint.meta.get("time_convention", PAPER) != REVERSED:
        state = turn_time(state, process.prediction)
    config = checkpoint.config
    if config.out_channels == config.channels and config.input_size != SIDE_512:
        state = _with_learned_sigma(state, config.patch, config.channels)
    _keep_beside(export, state)
    if (shift := float(checkpoint.meta.get("t_shift", 1))) != 1:
        export.warnings.append(
            f"the official sampler's steps are equal: it has no --t-shift {shift:g}, as sit sample "
            "has for this run"
        )
    told = f"--path-type {OFFICIAL_PATHS[process.interpolant]} --prediction {process.prediction}"
    if told != "--path-type Linear --prediction velocity":
        export.warnings.append(f"call the official sampler with {told}")
    return lambda path: _save_state(path, state, checkpoint.config)


def _official_dit(export: Export) -> Callable[[Path], None]:
    checkpoint, process = export.checkpoint, export.checkpoint.process
    _check_layout(checkpoint, "official-dit")
    _check_scaling(checkpoint, "official-dit")
    if not isinstance(process, Diffusion):
        raise _refused(checkpoint, "official-dit", "it was trained with SiT's flow")
    for part, known in OFFICIAL_CHAIN.items():
        if (found := getattr(process, part)) != known:
            raise _refused(
                checkpoint,
                "official-dit",
                f"the official sampler needs {part} {known}, and this run has {found}",
            )
    _keep_beside(export, export.state)
    return lambda path: _save_state(path, export.state, checkpoint.config)


def _keep_beside(export: Export, state: dict[str, Tensor]) -> None:
    """Keep for the sidecar the tensors that differ from those of `state`, which are written.

    Adds a warning if the run's loss over t, which only the sidecar has, decides where sampling
    begins.
    """
    export.beside = {k: v for k, v in export.state.items() if not torch.equal(v, state[k])}
    export.beside |= _arrays(export.checkpoint)
    process, curve = export.checkpoint.process, export.checkpoint.loss_curve
    start = process.ode_interval(curve).start
    if start != process.ode_interval().start:
        export.warnings.append(
            "the file has no place for the run's loss over t, which its sidecar keeps: without it "
            f"sample with --t-start {start:g}"
        )


def _diffusers(export: Export) -> Callable[[Path], None]:
    checkpoint = export.checkpoint
    _check_pipeline(checkpoint, export.state["pos_embed"])
    vae = _vae_folder(export)
    facts, meta = _pipeline_facts(checkpoint), _meta_text(export)
    extras = {"pos_embed": export.state["pos_embed"]} | _arrays(checkpoint)

    def write(path: Path) -> None:
        write_folder(
            path,
            export.state,
            checkpoint.config,
            facts=facts,
            vae=vae,
            class_names=checkpoint.latents["class_names"],
            extras=extras,
            meta=meta,
        )

    return write


def _check_pipeline(checkpoint: Checkpoint, positions: Tensor) -> None:
    """Raise UsageError if a DiTTransformer2DModel or the pipeline cannot run this checkpoint."""
    config, process = checkpoint.config, checkpoint.process
    _check_layout(checkpoint, "diffusers", of_diffusers=True)
    why = ""
    if config.num_classes == 0:
        why = "a DiTTransformer2DModel needs classes"
    elif not torch.allclose(positions, position_embedding(config.width, *config.grid), atol=1e-5):
        why = "its position embedding was learned"
    elif isinstance(process, Diffusion):
        if process.prediction not in CHAIN_PREDICTIONS:
            why = f"the pipeline's chain lacks {process.prediction} prediction"
        elif process.variance not in PIPELINE_VARIANCES:
            why = f"the pipeline lacks {process.variance} variance"
    elif process.interpolant not in PIPELINE_PATHS:
        why = f"the pipeline lacks the path {process.interpolant}"
    elif process.prediction not in PIPELINE_PREDICTIONS:
        why = f"the pipeline lacks {process.prediction} prediction"
    if why:
        raise _refused(checkpoint, "diffusers", why)


def _vae_folder(export: Export) -> Path | None:
    """The folder of the diffusers autoencoder, or None if there is none to copy.

    Adds a warning if the pipeline will need an autoencoder and not have one.
    """
    spec = export.checkpoint.latents["autoencoder"]
    if spec["kind"] == UNKNOWN and export.vae is None:
        export.warnings.append(
            "the autoencoder of these latents is not known: the folder will have no vae, and its "
            "pipeline returns latents; name it with --vae FOLDER"
        )
        return None
    if spec["kind"] in (*KINDS.values(), UNKNOWN):
        vae = find_folder(export.vae or spec["name"])
        if vae is None:
            export.warnings.append(
                f"the autoencoder {spec['name']} is not on this machine as a diffusers folder: "
                "the export will have no vae, and its pipeline returns latents; name it with "
                "--vae FOLDER"
            )
        return vae
    if export.vae is not None:
        raise UsageError(
            "--vae has no effect: the autoencoder of these weights is not one of diffusers'",
            "remove --vae",
        )
    if not is_identity(spec):
        export.warnings.append(
            f"diffusers has no autoencoder {spec['name']}: the folder will have no vae, and its "
            "pipeline returns latents"
        )
    return None


def _pipeline_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """The arguments of pipeline.py, see `SitPipeline`."""
    process, latents = checkpoint.process, checkpoint.latents
    spec = latents["autoencoder"]
    facts: dict[str, Any] = dataclasses.asdict(process) | {
        "time_convention": checkpoint.meta.get("time_convention", PAPER),
        "guided_channels": checkpoint.meta.get("guided_channels", "all"),
        "num_classes": checkpoint.config.num_classes,
        **checkpoint.scaling.spec(),
        "pixels": is_identity(spec),
        "mlp_eps": checkpoint.config.mlp_eps,
        "own_embedders": checkpoint.config.own_embedders,
    }
    if isinstance(process, Diffusion):
        return facts | {"betas": process.chain.table("betas").tolist()}
    return facts | {
        "interval": list(process.ode_interval(checkpoint.loss_curve)),
        "t_shift": float(checkpoint.meta.get("t_shift", 1)),
    }


FORMATS: dict[str, Format] = {
    "official-sit": Format(_official_sit),
    "official-dit": Format(_official_dit),
    "diffusers": Format(_diffusers, folder=True, takes_vae=True),
    "safetensors": Format(_safetensors, keeps_training_parts=True),
}


def _check_layout(checkpoint: Checkpoint, layout: str, *, of_diffusers: bool = False) -> None:
    """Raise UsageError for a network that the layout's code does not have.

    of_diffusers: whether it may be one that diffusers trained.
    """
    block = checkpoint.config.block
    parts = dict(own_embedders=False, mlp_eps=TransformerConfig.mlp_eps) if of_diffusers else {}
    beyond = dataclasses.replace(checkpoint.config, **parts).beyond
    if block != LAYOUTS_BLOCK:
        raise _refused(
            checkpoint, layout, f"its blocks are {block}, and the layout has {LAYOUTS_BLOCK} blocks"
        )
    if beyond:
        raise _refused(checkpoint, layout, f"the layout has no place for {', '.join(beyond)}")
    if checkpoint.config.input_width is not None:
        raise _refused(checkpoint, layout, "its latents are not square")


def _check_scaling(checkpoint: Checkpoint, layout: str) -> None:
    """Raise UsageError for latents that the official samplers, which divide by 0.18215, garble."""
    if (scaling := checkpoint.scaling).per_channel:
        why = f"its latents are normalised per channel ({scaling}), and the layout has no place for"
        raise _refused(checkpoint, layout, f"{why} that")


def _refused(checkpoint: Checkpoint, layout: str, why: str) -> UsageError:
    return UsageError(f"{checkpoint.path} cannot be written as {layout}: {why}", KEEPS_ALL)


def _with_learned_sigma(state: dict[str, Tensor], patch: int, channels: int) -> dict[str, Tensor]:
    """The weights with twice the output channels, as in the official network at 256 pixels.

    The second half is zero.
    """
    state = dict(state)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].view(patch * patch, channels, -1)  # a token is (p, q, c)
        padded = torch.cat([rows, torch.zeros_like(rows)], dim=1)
        state[key] = padded.reshape(2 * len(state[key]), *state[key].shape[1:])
    return state


def _save_state(path: Path, state: dict[str, Tensor], config: TransformerConfig) -> None:
    """Save the state dict in the official order: pos_embed first, then as the network is built."""
    names = tensor_shapes(config.backbone)
    order = ["pos_embed", *(name for name in names if name != "pos_embed")]
    torch.save({key: state[key].contiguous() for key in order}, path)


def _meta_text(export: Export) -> str:
    return json.dumps(export.meta)


def _arrays(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The autoencoder's own arrays, under keys that no network has."""
    arrays = checkpoint.autoencoder_arrays()
    return {AUTOENCODER + name: torch.from_numpy(value) for name, value in arrays.items()}
