"""The formats `sit export` writes, a row each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitcli.autoencoders.diffusers_vae import KINDS, find_folder
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.model.config import TransformerConfig
from sitcli.model.embed import TimestepEmbedder, frequencies, position_embedding
from sitcli.model.transformer import Transformer
from sitcli.runs.checkpoint import Checkpoint
from sitcli.runs.meta import PAPER, REVERSED
from sitcli.settings.weights import ExportSettings
from sitcli.storage.tensors import write_tensors
from sitcli.weights.diffusers_dit import write_folder
from sitcli.weights.official import AUTOENCODER, PROJECTORS

TRAINING_ONLY = ("aux_", PROJECTORS)
SIDE_512 = 64  # the official sampler builds networks of such latents without learned sigma
KEEPS_ALL = "--format safetensors keeps everything"


def _safetensors(
    settings: ExportSettings, checkpoint: Checkpoint, state: dict[str, Tensor], warnings: list[str]
) -> Callable[[Path], None]:
    metadata = {"sit": _meta_text(checkpoint, settings.weights), "format": "pt"}
    tensors = state | _arrays(checkpoint)
    return lambda path: write_tensors(path, tensors, metadata=metadata)


def _official_sit(
    settings: ExportSettings, checkpoint: Checkpoint, state: dict[str, Tensor], warnings: list[str]
) -> Callable[[Path], None]:
    process = checkpoint.process
    _check_layout(checkpoint, "official-sit")
    if isinstance(process, Diffusion):
        raise _refused(checkpoint, "official-sit", "its process is DiT's")
    if process.prediction == "data":
        raise _refused(checkpoint, "official-sit", "the official code knows no data prediction")
    if checkpoint.meta.get("time_convention", PAPER) != REVERSED:
        state = _reverse_time(state, negate=process.prediction == "velocity")
    config = checkpoint.config
    if config.out_channels == config.channels and config.input_size != SIDE_512:
        state = _with_learned_sigma(state, config.patch, config.channels)
    told = f"--path-type {_official_path(process)} --prediction {process.prediction}"
    if told != "--path-type Linear --prediction velocity":
        warnings.append(f"tell the official sampler {told}")
    return lambda path: _save_state(path, state, checkpoint.config)


def _official_path(process: Flow) -> str:
    return {"linear": "Linear", "gvp": "GVP", "vp": "VP"}[process.interpolant]


def _official_dit(
    settings: ExportSettings, checkpoint: Checkpoint, state: dict[str, Tensor], warnings: list[str]
) -> Callable[[Path], None]:
    process = checkpoint.process
    _check_layout(checkpoint, "official-dit")
    if not isinstance(process, Diffusion):
        raise _refused(checkpoint, "official-dit", "its process is a flow, SiT's")
    if process.prediction != "noise":
        raise _refused(checkpoint, "official-dit", f"it predicts {process.prediction}, not noise")
    if process.betas != "linear" or process.variance != "learned-range":
        raise _refused(
            checkpoint,
            "official-dit",
            f"the official sampler has linear betas and learned sigma, and it {process.betas} "
            f"betas and {process.variance} variance",
        )
    return lambda path: _save_state(path, state, checkpoint.config)


def _diffusers(
    settings: ExportSettings, checkpoint: Checkpoint, state: dict[str, Tensor], warnings: list[str]
) -> Callable[[Path], None]:
    config, process, latents = checkpoint.config, checkpoint.process, checkpoint.latents
    _check_layout(checkpoint, "diffusers")
    if config.input_width is not None:
        raise _refused(checkpoint, "diffusers", "its latents are not square")
    if config.num_classes == 0:
        raise _refused(checkpoint, "diffusers", "a DiTTransformer2DModel needs classes")
    standard = position_embedding(config.width, *config.grid)
    if not torch.allclose(state["pos_embed"], standard, atol=1e-5):
        raise _refused(checkpoint, "diffusers", "its positions are learned ones")
    if isinstance(process, Diffusion) and process.prediction != "noise":
        raise _refused(checkpoint, "diffusers", f"its chain predicts {process.prediction}")
    spec = latents["autoencoder"]
    vae = None
    if spec["kind"] in KINDS.values():
        vae = find_folder(settings.vae or spec["name"])
        if vae is None:
            warnings.append(
                f"the autoencoder {spec['name']} is not here: the folder will have no vae, and "
                "give latents; --vae FOLDER says where it is"
            )
    elif settings.vae is not None:
        raise UsageError("--vae: its autoencoder is not one of diffusers'", "leave it out")
    elif spec["kind"] != "pixels":
        warnings.append(
            f"diffusers has no autoencoder {spec['name']}: the folder will have no vae, and give "
            "latents"
        )
    shift = spec["shift"]
    facts: dict[str, Any] = dataclasses.asdict(process) | {
        "time_convention": checkpoint.meta.get("time_convention", PAPER),
        "guided_channels": checkpoint.meta.get("guided_channels", "all"),
        "num_classes": config.num_classes,
        "scaling": latents["scaling"],
        "shift": shift,
        "pixels": spec["kind"] == "pixels",
    }
    if isinstance(process, Diffusion):
        facts["betas"] = process.chain.table("betas").tolist()
    else:
        facts["interval"] = list(process.ode_interval())
    extras = {"pos_embed": state["pos_embed"]} | _arrays(checkpoint)
    meta = _meta_text(checkpoint, settings.weights)

    def write(path: Path) -> None:
        write_folder(
            path,
            state,
            config,
            facts=facts,
            vae=vae,
            class_names=latents["class_names"],
            extras=extras,
            meta=meta,
        )

    return write


# (settings, checkpoint, weights, warnings to add to) -> a function that writes to a path.
FORMATS: dict[str, Callable[..., Callable[[Path], None]]] = {
    "official-sit": _official_sit,
    "official-dit": _official_dit,
    "diffusers": _diffusers,
    "safetensors": _safetensors,
}


def _check_layout(checkpoint: Checkpoint, layout: str) -> None:
    block, beyond = checkpoint.config.block, checkpoint.config.beyond
    if block != "adaln-zero":
        raise _refused(checkpoint, layout, f"its blocks are {block}, and the layout's adaln-zero")
    if beyond:
        raise _refused(checkpoint, layout, f"the layout has no {', '.join(beyond)}")


def _refused(checkpoint: Checkpoint, layout: str, why: str) -> UsageError:
    return UsageError(f"{checkpoint.path} cannot be written as {layout}: {why}", KEEPS_ALL)


def _reverse_time(state: dict[str, Tensor], *, negate: bool) -> dict[str, Tensor]:
    """Weights of a network of t, as those of the same network of 1 - t; negated for a velocity.

    The features [cos w t | sin w t] of 1 - t are a rotation and a reflection of those of t, which
    the first linear map of the time embedder takes in. Exact but for the rounding of its sums.
    """
    state = dict(state)
    half = TimestepEmbedder.frequency_dim // 2
    omega = frequencies(TimestepEmbedder.frequency_dim).double()
    weight = state["t_embedder.mlp.0.weight"].double()
    cos, sin = weight[:, :half], weight[:, half:]
    # cos w(1-t) = cos w cos wt + sin w sin wt; sin w(1-t) = sin w cos wt - cos w sin wt.
    turned = [cos * omega.cos() + sin * omega.sin(), cos * omega.sin() - sin * omega.cos()]
    state["t_embedder.mlp.0.weight"] = torch.cat(turned, dim=1).float()
    if negate:
        for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
            state[key] = -state[key]
    return state


def _with_learned_sigma(state: dict[str, Tensor], patch: int, channels: int) -> dict[str, Tensor]:
    """Twice the output channels, the second half zero, as the official network at 256 has."""
    state = dict(state)
    for key in ("final_layer.linear.weight", "final_layer.linear.bias"):
        rows = state[key].view(patch * patch, channels, -1)  # a token is (p, q, c)
        padded = torch.cat([rows, torch.zeros_like(rows)], dim=1)
        state[key] = padded.reshape(2 * len(state[key]), *state[key].shape[1:])
    return state


def _save_state(path: Path, state: dict[str, Tensor], config: TransformerConfig) -> None:
    """A state dict in the official order: positions first, then as the network is built."""
    with torch.device("meta"):
        built = Transformer(config.backbone).state_dict()
    order = ["pos_embed", *(key for key in built if key != "pos_embed")]
    torch.save({key: state[key].contiguous() for key in order}, path)


def _meta_text(checkpoint: Checkpoint, which: str) -> str:
    return json.dumps(checkpoint.meta | {"exported_weights": which})


def _arrays(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What the autoencoder needs beside its spec, under keys no network has."""
    arrays = checkpoint.autoencoder_arrays()
    return {AUTOENCODER + name: torch.from_numpy(value) for name, value in arrays.items()}
