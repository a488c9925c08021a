"""A run's settings: resolved for this machine and store, named, written and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml

from sitcli import names
from sitcli.core.ddpm import Diffusion
from sitcli.core.flow import Flow
from sitcli.errors import SitError, UsageError
from sitcli.io.files import hash_json, write_text
from sitcli.io.latents import JoinedStores, LatentStore
from sitcli.io.recipe import resolve_recipe
from sitcli.model.transformer import PRESETS, TransformerConfig, parse_model
from sitcli.settings import TrainSettings

# May differ when a run goes on; everything else decides what is learned and may not.
FREE = (
    *("latents", "out", "steps", "zero", "accumulate", "save_every", "keep", "keep_every"),
    *("sample_every", "log_every", "device", "precision", "gpus", "procs", "offload", "wandb"),
    *("deepspeed_config", "checkpoint_blocks", "compile", "strict", "on_nan", "preset"),
)

# The options of a family's objective and their defaults; another family refuses them.
OBJECTIVES: dict[str, dict[str, str]] = {
    "SiT": dict(interpolant="linear", prediction="velocity"),
    "DiT": dict(betas="linear", variance="learned-range", prediction="noise"),
}


def resolve(
    settings: TrainSettings, store: LatentStore | JoinedStores, device: torch.device
) -> TrainSettings:
    """Fill in the defaults that depend on the device and the store. UsageError for bad values."""
    for name, useless, why in (
        ("label_dropout", store.num_classes == 0, "holds no classes"),
        ("posterior", store.kind != "moments", "holds latents without a posterior"),
    ):
        if useless and getattr(settings, name) != getattr(TrainSettings, name):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} means nothing here: {store.path} {why}", "leave it out")
    if settings.flip and isinstance(store, JoinedStores):
        mirrored = [part.path for part in store.parts if part.has_flips]
        plain = [part.path for part in store.parts if not part.has_flips]
        if mirrored and plain:
            raise UsageError(
                f"{mirrored[0]} holds mirrored latents and {plain[0]} none",
                "--no-flip trains without them",
            )
    small = device.type == "cpu"
    steps = settings.steps or (2000 if small else 400_000)
    every = settings.save_every or max(1, min(10_000, steps // 10))
    model = settings.model or _default_model(store.latent_shape[1], small=small)
    depth = settings.depth or PRESETS[_parsed(model)[1]][0]
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
    family = _parsed(model)[0]
    given = {
        name: getattr(settings, name)
        for name in {name for options in OBJECTIVES.values() for name in options}
        if getattr(settings, name) is not None
    }
    for name in sorted(given.keys() - OBJECTIVES[family].keys()):
        others = [f"{other}-" for other, options in OBJECTIVES.items() if name in options]
        raise UsageError(
            f"--{name} is an option of {' and '.join(others)} models, not of {model}",
            f"leave it out, or --model {model.replace(f'{family}-', others[0])}",
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


def _parsed(model: str) -> tuple[str, str, int]:
    try:
        return parse_model(model)
    except ValueError as error:
        sizes = ", ".join(names.SIZES)
        raise UsageError(
            str(error), f"models are SiT-SIZE/PATCH or DiT-SIZE/PATCH with SIZE one of {sizes}"
        ) from None


def _default_model(side: int, *, small: bool) -> str:
    """SiT-XL/2; on a CPU SiT-Ti with the finest patch that leaves at most 8 x 8 tokens."""
    if not small:
        return "SiT-XL/2" if side % 2 == 0 else "SiT-XL/1"
    patch = next(p for p in range(1, side + 1) if side % p == 0 and side // p <= 8)
    return f"SiT-Ti/{patch}"


def transformer_config(
    model: str,
    *,
    input_size: int,
    channels: int,
    out_channels: int,
    num_classes: int,
    patch: int | None = None,
    depth: int | None = None,
    width: int | None = None,
    heads: int | None = None,
    block: str = TransformerConfig.block,
    **parts: Any,
) -> TransformerConfig:
    """The preset called `model` with its overrides; parts: further fields of the config.

    UsageError for what does not fit together.
    """
    _, size, preset_patch = _parsed(model)
    try:
        preset_depth, preset_width, preset_heads = PRESETS[size]
        return TransformerConfig(
            input_size=input_size,
            patch=patch or preset_patch,
            channels=channels,
            out_channels=out_channels,
            width=width or preset_width,
            depth=depth or preset_depth,
            heads=heads or preset_heads,
            num_classes=num_classes,
            block=block,
            **parts,
        )
    except ValueError as error:
        raise UsageError(str(error), "change --model, --patch, --width or --heads") from None


def run_name(settings: TrainSettings, store: LatentStore | JoinedStores) -> str:
    """A name that is the same for the same resolved settings and store, and another for others.

    Settings at their default leave no mark: a version with more of them finds its old runs.
    """
    free, defaults = free_settings(settings.schedule), as_plain(TrainSettings())
    kept = {k: v for k, v in as_plain(settings).items() if k not in free and v != defaults[k]}
    mark = hash_json([kept, store.fingerprint])[:6]
    model = settings.model.replace("/", "-")
    if settings.block != TrainSettings.block:
        model += f"-{settings.block}"
    path = settings.interpolant or settings.betas
    return f"{model}-{path}-{settings.prediction}-{mark}"


def free_settings(schedule: str) -> set[str]:
    """FREE, less the steps where the learning rate is a function of them."""
    return set(FREE) - (set() if schedule == "constant" else {"steps"})


def as_plain(settings: Any) -> dict[str, Any]:
    """A settings object as JSON-able values."""
    return {name: _plain(value) for name, value in dataclasses.asdict(settings).items()}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_config(path: Path, settings: TrainSettings) -> None:
    """config.yaml, in the form --config takes."""
    write_text(path, yaml.safe_dump({"train": as_plain(settings)}, sort_keys=False))


def read_config(path: Path) -> dict[str, Any]:
    """The settings of a run. SitError for a damaged file."""
    try:
        return dict(yaml.safe_load(path.read_text(encoding="utf-8"))["train"])
    except OSError as error:
        raise SitError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        raise SitError(
            f"{path} is damaged: it does not hold the settings of a run",
            "restore it, or name another --out",
        ) from None


def check_same(path: Path, settings: TrainSettings) -> None:
    """UsageError naming the first setting that would change what the run at `path` learns."""
    # A run of an older version has the defaults of the options that came later.
    defaults = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
    old, new = defaults | read_config(path), as_plain(settings)
    free = free_settings(new["schedule"])
    for key, value in new.items():
        if key not in free and old[key] != value:
            flag = key.replace("_", "-")
            if isinstance(old[key], bool):
                word = "with" if old[key] else "without"
                raise UsageError(
                    f"{path.parent} was trained {word} --{flag}",
                    "name another --out, or leave the option as it was",
                )
            if old[key] is None:
                raise UsageError(
                    f"{path.parent} was trained without --{flag}",
                    "name another --out, or leave the option out",
                )
            raise UsageError(
                f"{path.parent} was trained with --{flag} {old[key]}, not {value}",
                "name another --out, or leave the option out",
            )
