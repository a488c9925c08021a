"""A run's settings: resolved for this machine and store, and named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from sitcli.commands.parsing import default_model, parse_model_name
from sitcli.commands.train.recipe import SCHEDULES, resolve_recipe
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import UsageError
from sitcli.latents.joined import JoinedStores
from sitcli.latents.store import LatentStore
from sitcli.model.config import PRESETS
from sitcli.settings.train import TrainSettings
from sitcli.storage.files import hash_json

# Settings that do not decide what is learned: they are not in a run's name, and a checkpoint does
# not keep them.
UNNAMED = (
    *("latents", "out", "steps", "zero", "accumulate", "save_every", "keep", "keep_every"),
    *("sample_every", "log_every", "device", "precision", "gpus", "procs", "offload", "wandb"),
    *("deepspeed_config", "checkpoint_blocks", "compile", "strict", "on_nan", "preset"),
)
# Settings that decide it, and may change when a run goes on: the run's history has them. All others
# make the network, the process or the random numbers, and must not change.
MAY_CHANGE = (
    *("lr", "schedule", "warmup", "weight_decay", "beta2", "clip", "ema", "ema_warmup"),
    *("batch_size", "precision", "t_dist", "t_mean", "t_std", "t_dist_until", "t_shift"),
    *("layer_sync", "sync_blocks", "tread", "tread_blocks", "label_dropout", "flip", "posterior"),
)
# Those of UNNAMED that a run keeps where the user leaves them out: what else may change follows the
# machine.
KEPT_ON_RESUME = frozenset(
    ("save_every", "keep", "keep_every", "sample_every", "log_every", "strict", "on_nan")
)
# The options of a family's objective and their defaults; another family refuses them.
OBJECTIVES: dict[str, dict[str, str]] = {
    "SiT": dict(interpolant="linear", prediction="velocity"),
    "DiT": dict(betas="linear", variance="learned-range", prediction="noise"),
}


def resolve(
    settings: TrainSettings, store: LatentStore | JoinedStores, device: torch.device
) -> TrainSettings:
    """The settings with the defaults filled in that depend on the device and the store.

    Raises UsageError for settings that do not fit the store or the model.
    """
    for name in ("weights", "lora"):
        if settings.init is None and getattr(settings, name) != getattr(TrainSettings, name):
            raise UsageError(f"--{name} has no effect without --init", f"remove --{name}")
    if settings.lora and settings.power_ema:
        raise UsageError(
            "--power-ema averages whole networks, and --lora trains adapters", "remove one of them"
        )
    for name, useless, why in (
        ("label_dropout", store.num_classes == 0, "holds no classes"),
        ("posterior", store.kind != "moments", "holds latents without a posterior"),
    ):
        if useless and getattr(settings, name) != getattr(TrainSettings, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} has no effect: {store.path} {why}", f"remove --{flag}")
    if settings.flip and isinstance(store, JoinedStores):
        mirrored = [part.path for part in store.parts if part.has_flips]
        plain = [part.path for part in store.parts if not part.has_flips]
        if mirrored and plain:
            raise UsageError(
                f"{mirrored[0]} holds mirrored latents and {plain[0]} none",
                "add --no-flip to train without mirrored latents",
            )
    small = device.type == "cpu"
    steps = settings.steps or (2000 if small else 400_000)
    every = settings.save_every or max(1, min(10_000, steps // 10))
    model = settings.model or default_model(store.latent_shape[1], small=small)
    depth = settings.depth or PRESETS[parse_model_name(model)[1]][0]
    return dataclasses.replace(
        resolve_recipe(settings, store, depth),
        model=model,
        **_objective(model, settings),
        steps=steps,
        batch_size=settings.batch_size or (64 if small else 256),
        save_every=every,
        sample_every=every if settings.sample_every is None else settings.sample_every,
        flip=settings.flip and store.has_flips,
    )


def _objective(model: str, settings: TrainSettings) -> dict[str, str]:
    """The objective's options for this model's family."""
    family = parse_model_name(model)[0]
    given = {
        name: getattr(settings, name)
        for name in {name for options in OBJECTIVES.values() for name in options}
        if getattr(settings, name) is not None
    }
    for name in sorted(given.keys() - OBJECTIVES[family].keys()):
        others = [f"{other}-" for other, options in OBJECTIVES.items() if name in options]
        raise UsageError(
            f"--{name} is an option of {' and '.join(others)} models, not of {model}",
            f"remove --{name}, or use --model {model.replace(f'{family}-', others[0])}",
        )
    return OBJECTIVES[family] | given


def make_process(settings: TrainSettings) -> Flow:
    """The process that resolved settings describe."""
    family = Diffusion if settings.betas is not None else Flow
    options = dict(
        prediction=settings.prediction,
        loss_weight=settings.loss_weight,
        direction=settings.direction_loss,
    )
    if family is Diffusion:
        return Diffusion(betas=settings.betas, variance=settings.variance, **options)
    return Flow(interpolant=settings.interpolant, **options)


def run_name(settings: TrainSettings, fingerprint: str) -> str:
    """A name that is the same for the same resolved settings and store, and differs for others.

    fingerprint: the store's.

    Settings at their default do not enter the hash, so a later version with more settings still
    finds this run.
    """
    free, defaults = unnamed(settings.schedule), as_plain(TrainSettings())
    kept = {k: v for k, v in as_plain(settings).items() if k not in free and v != defaults[k]}
    mark = hash_json([kept, fingerprint])[:6]
    model = settings.model.replace("/", "-")
    if settings.block != TrainSettings.block:
        model += f"-{settings.block}"
    path = settings.interpolant or settings.betas
    return f"{model}-{path}-{settings.prediction}-{mark}"


def unnamed(schedule: str) -> set[str]:
    """UNNAMED, without `steps` if the learning rate is a function of them."""
    return set(UNNAMED) - ({"steps"} if SCHEDULES[schedule].whole_run else set())


def as_plain(settings: Any) -> dict[str, Any]:
    """A settings object as JSON-able values."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
