"""The arguments that a trainer keeps beside its weights, compared with the tensors and with the
command line.

DiT, fast-DiT, SiT and REPA save their argparse.Namespace as `args`. Fields of other names, and
values of other types than theirs, say nothing.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sitcli.errors import SitError, UsageError
from sitcli.model.config import PRESETS, TransformerConfig
from sitcli.text import format_shape
from sitcli.weights.lineages import LINEAGES, PATHS, target_of

IMAGE_SIZES = ("image_size", "resolution")  # the official trainers', REPA's
OF_SIT_ALONE = ("path_type", "sample_eps", "train_eps")
SD_VAES = ("ema", "mse")  # stabilityai/sd-vae-ft-ema and -mse, which encode alike
MODEL = re.compile(r"(SiT|DiT)-([^/]+)/([1-9]\d*)")
IGNORE = "--ignore-args"


class Evidence(NamedTuple):
    """What the tensors and the command line say.

    image_size: (height, width) in pixels by the positions of the file, None if it has none; keys:
    the names of the tensors; options: the values of the options that were given, by flag; sd_vae:
    whether the autoencoder is one of Stable Diffusion's.
    """

    config: TransformerConfig
    lineage: str
    keys: list[str]
    image_size: tuple[int, int] | None
    options: dict[str, Any]
    sd_vae: bool


def stated(args: Namespace | None, name: str, kind: type) -> Any:
    """The value of an argument, None unless it is of that type."""
    value = getattr(args, name, None)
    return value if type(value) is kind else None


def stated_label_dropout(args: Namespace | None) -> float:
    """The chance to hide a label: REPA's cfg_prob, else the papers' 0.1."""
    told = stated(args, "cfg_prob", float)
    return 0.1 if told is None or not 0 <= told <= 1 else told


def stated_image_size(args: Namespace | None) -> int | None:
    """The side of the images in pixels by the trainer's arguments, None if they do not say."""
    sizes = (stated(args, name, int) for name in IMAGE_SIZES)
    return next((size for size in sizes if size is not None), None)


def check_args(path: Path, args: Namespace | None, found: Evidence) -> None:
    """Raise an error for the first argument that contradicts the tensors or an option.

    SitError for the tensors, UsageError for an option; the message names both.
    """
    if args is None:
        return
    for said, flag, value in _against_options(args, found):
        raise UsageError(
            f"{flag} {value}, but the args in {path} say {said}",
            f"remove {flag}, or add {IGNORE} if the args are wrong",
        )
    for said, held in (*_models(args, found), *_fields(args, found)):
        raise SitError(
            f"the args in {path} say {said}, but {held}",
            f"fetch it again, or add {IGNORE} if the args are wrong",
        )


def _against_options(args: Namespace, found: Evidence) -> Iterator[tuple[str, str, Any]]:
    """(what the args say, flag, its value) of contradictions with the command line."""
    options, model = found.options, stated(args, "model", str)
    known = MODEL.fullmatch(model or "")
    if known and options.get("--model") not in (None, model):
        yield f"model {model}", "--model", options["--model"]
    if lineage := options.get("--lineage"):
        family = LINEAGES[lineage].family
        if known and known[1] != family:
            yield f"model {model}", "--lineage", lineage
        for name in OF_SIT_ALONE if family == "DiT" else ():
            if hasattr(args, name):
                yield f"{name} {getattr(args, name)}", "--lineage", lineage
    path, target = stated(args, "path_type", str), stated(args, "prediction", str)
    interpolant, prediction = options.get("--interpolant"), options.get("--prediction")
    if path and interpolant and PATHS.get(path.lower(), interpolant) != interpolant:
        yield f"path_type {path}", "--interpolant", interpolant
    if target and prediction and (target_of(target) or prediction) != prediction:
        yield f"prediction {target}", "--prediction", prediction
    heads = stated(args, "num_heads", int)
    if heads and options.get("--heads") not in (None, heads):
        yield f"num_heads {heads}", "--heads", options["--heads"]
    if stated(args, "vae", str) in SD_VAES and "--vae" in options and not found.sd_vae:
        yield f"vae {args.vae}, which is Stable Diffusion's", "--vae", options["--vae"]
    size = stated_image_size(args)
    asked = options.get("--image-size")
    if found.image_size is None and size and asked not in (None, f"{size}", f"{size}x{size}"):
        yield f"images of {size} pixels", "--image-size", asked


def _models(args: Namespace, found: Evidence) -> Iterator[tuple[str, str]]:
    """(what the args say, what holds instead) of the model's family and size."""
    model, config = stated(args, "model", str), found.config
    known = MODEL.fullmatch(model or "")
    if known is None:
        return
    family, size, patch = known[1], known[2], int(known[3])
    if family == "DiT":
        for name in OF_SIT_ALONE:
            if hasattr(args, name):
                yield f"model {model}", f"also {name} {getattr(args, name)}, which only a SiT has"
    row = LINEAGES[found.lineage]
    if family != row.family:
        yield f"model {model}", f"{found.lineage} weights are a {row.family}'s"
    depth, width, _ = PRESETS.get(size, (config.depth, config.width, 0))
    if (depth, width, patch) != (config.depth, config.width, config.patch):
        text = f"{depth} blocks of width {width} and patch {patch}"
        yield (
            f"model {model}, {text}",
            f"its tensors are {config.depth} blocks of width {config.width} and patch "
            f"{config.patch}",
        )


def _fields(args: Namespace, found: Evidence) -> Iterator[tuple[str, str]]:
    """(what the args say, what holds instead) of the numbers and switches."""
    config = found.config
    of_tensors = dict(
        num_classes=config.num_classes,
        in_channels=config.channels,
        patch_size=config.patch,
        hidden_size=config.width,
        depth=config.depth,
        num_heads=config.heads,
        learn_sigma=config.out_channels == 2 * config.channels,
        qk_norm=any(".attn.q_norm." in key for key in found.keys),
    )
    for name, held in of_tensors.items():
        value = stated(args, name, type(held))
        if value is not None and value != held:
            rows = ""
            if name == "num_classes":
                rows = f": y_embedder has {held + 1} rows, of which the last is no class"
            yield f"{name} {value}", f"by its tensors it is {held}{rows}"
    size = stated_image_size(args)
    if found.image_size is not None and size and found.image_size != (size, size):
        (name,) = [name for name in IMAGE_SIZES if stated(args, name, int) == size][:1]
        by = f" and --vae {found.options['--vae']}" if "--vae" in found.options else ""
        yield (
            f"{name} {size}",
            f"by its pos_embed{by} the images have {format_shape(found.image_size)} pixels",
        )
