"""meta.json: the facts of a checkpoint, written and checked."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from sitcli import names
from sitcli.core.diffusion import Diffusion
from sitcli.core.flow import Flow
from sitcli.latents.joined import JoinedStores
from sitcli.latents.scaling import Scaling, wrong_values
from sitcli.latents.store import LatentStore
from sitcli.machine.seeds import STREAMS, UNRECORDED
from sitcli.model.config import TransformerConfig
from sitcli.runs.history import is_history
from sitcli.text import first_line

PAPER, REVERSED = "paper", "reversed"  # the network's t = 0 is the data, or the noise
NEEDED = ("format_version", "step", "transformer", "process", "latents", "loss_by_t")
META: dict[str, type | tuple] = dict(
    step=int, transformer=dict, process=dict, latents=dict, loss_by_t=dict, model=str,
    time_convention=str, lineage=str, guided_channels=str, weights_source=dict, streams=str,
    trained=list, lora=dict,
)  # fmt: skip
LATENTS: dict[str, type | tuple] = dict(
    image_size=(int, list), scaling=(int, float, list), autoencoder=dict, class_names=list,
)  # fmt: skip
# The fields of version 0.4. Those added since are left out at their default, so that older versions
# can still read the file.
ALWAYS_WRITTEN = frozenset({
    "input_size", "input_width", "patch", "channels", "out_channels", "width", "depth", "heads",
    "num_classes", "block", "interpolant", "prediction", "loss_weight", "betas", "variance",
})  # fmt: skip
MOST_BLOCKS, MOST_TOKENS = 1024, 1 << 16


def latent_facts(store: LatentStore | JoinedStores) -> dict[str, Any]:
    """The facts about a latent store that every checkpoint keeps for sampling and evaluation.

    store, source: the path of the store and of its images, or of the first of several stores;
    stores, sources: the lists of all; checksum: of all latents and labels, as they were completed;
    empty_classes: numbers of classes without an image, if any.
    """
    return dict(
        store=str(store.path.resolve()),
        stores=[str(path.resolve()) for path in store.paths],
        fingerprint=store.fingerprint,
        checksum=store.written_checksum,
        source=store.source,
        sources=store.sources,
        image_size=store.image_size,
        crop=store.crop,
        kind=store.kind,
        **store.scaling.facts(store.autoencoder),
        autoencoder=store.autoencoder,
        class_names=store.class_names,
        num_items=store.num_items,
        **({"empty_classes": empty} if (empty := store.empty_classes) else {}),
    )


def unseen_latent_facts(
    config: TransformerConfig,
    spec: dict[str, Any],
    class_names: list[str],
    *,
    scaling: Scaling | None = None,
) -> dict[str, Any]:
    """`latent_facts` as far as they are known without a store, for imported weights.

    scaling: None for the autoencoder's own.
    """
    height, width = (side * spec["downsample"] for side in config.latent_shape[1:])
    return dict(
        store=None,
        stores=[],
        fingerprint="",
        source="",
        sources=[],
        image_size=height if height == width else [height, width],
        crop="adm",
        kind="latents" if spec["deterministic"] else "moments",
        **(scaling or Scaling.of_spec(spec)).facts(spec),
        autoencoder=spec,
        class_names=class_names if len(class_names) == config.num_classes else [],
        num_items=0,
    )


def process_from(facts: dict[str, Any]) -> Flow:
    """The process that `checkpoint_meta` wrote: DiT's if its interpolant is "ddpm", else SiT's."""
    return (Diffusion if facts["interpolant"] == Diffusion.interpolant else Flow)(**facts)


def checkpoint_meta(
    config: TransformerConfig, process: Flow, *, time_convention: str = PAPER, **more: Any
) -> dict[str, Any]:
    """The contents of a checkpoint's meta.json, which `Checkpoint` reads back.

    time_convention: PAPER if the network takes t with t = 0 at the data, REVERSED if it takes
    1 - t. more: further fields.
    """
    facts = dict(transformer=written_fields(config), process=written_fields(process))
    return dict(facts, time_convention=time_convention, **more)


def written_fields(described: TransformerConfig | Flow) -> dict[str, Any]:
    """The fields to write to meta.json, see ALWAYS_WRITTEN."""
    defaults = {field.name: field.default for field in fields(described)}
    facts = asdict(described)
    return {k: v for k, v in facts.items() if k in ALWAYS_WRITTEN or v != defaults[k]}


def wrong_in_meta(meta: dict[str, Any]) -> str:
    """The first fault of a meta.json, as an error names it; "" if it can be read."""
    if lacking := [key for key in NEEDED if key not in meta]:
        return f"no '{lacking[0]}'"
    for key, kind in META.items():
        if key in meta and not isinstance(meta[key], kind):
            return f"{key} is {str(meta[key])[:40]!r}"
    for key, kind in LATENTS.items():
        if not isinstance(meta["latents"].get(key), kind):
            return f"its latents' {key} is {str(meta['latents'].get(key))[:40]!r}"
    if "power_ema" in meta and not _is_average(meta["power_ema"]):
        return "its record of sit ema"
    if "lora" in meta and not {"rank", "base"} <= meta["lora"].keys():
        return "its record of --lora"
    if "init" in meta and not _is_beginning(meta["init"]):
        return "its record of --init"
    if not is_history(meta.get("history", [])):
        return "its history"
    if meta.get("streams", UNRECORDED) not in STREAMS:
        return f"streams is {meta['streams'][:40]!r}"
    spec, bins = meta["latents"]["autoencoder"], meta["loss_by_t"]
    if not all(isinstance(spec.get(key), str) for key in ("name", "kind")) or "hash" not in spec:
        return "its autoencoder has no name, kind or hash"
    if lacking := [key for key in ("sums", "counts") if key not in bins]:
        return f"no '{lacking[0]}'"
    counts = [bins["sums"], bins["counts"]]
    if not all(isinstance(part, list) for part in counts) or len(counts[0]) != len(counts[1]):
        return "its loss over t"
    if not all(isinstance(number, (int, float)) for part in counts for number in part):
        return "its loss over t"
    try:
        config = TransformerConfig(**meta["transformer"])
        # The network is built before its weights are read: a false size must not exhaust memory.
        if not 0 < config.depth <= MOST_BLOCKS or config.tokens > MOST_TOKENS:
            return f"a network of {config.depth} blocks and {config.tokens} tokens"
        process = process_from(meta["process"])
        if wrong_scaling := _wrong_scaling(meta["latents"], config.channels):
            return wrong_scaling
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        return f"its network or process: {first_line(error)}"
    for key, known in (
        ("interpolant", (*names.INTERPOLANTS, Diffusion.interpolant)),
        ("prediction", names.PREDICTIONS),
        ("loss_weight", names.LOSS_WEIGHTS),
        ("betas", names.BETAS),
        ("variance", names.VARIANCES),
    ):
        value = getattr(process, key, known[0])
        if value not in known and not (key == "betas" and isinstance(value, (list, tuple))):
            return f"its process' {key} is {str(value)[:40]!r}"
    return ""


def _is_beginning(init: Any) -> bool:
    """Whether `sit train --init` can have written this record."""
    return (
        isinstance(init, dict)
        and {"path", "step", "weights", "sha256", "fates"} <= init.keys()
        and isinstance(init["sha256"], (str, type(None)))
    )


def _wrong_scaling(latents: dict[str, Any], channels: int) -> str:
    """The fault of a checkpoint's normalisation of latents with this many channels, "" if none."""
    scaling = Scaling.of(latents)
    if wrong_values(scaling.factor, channels, zero=False):
        return f"its latents' scaling is {str(latents['scaling'])[:40]}"
    if wrong_values(scaling.shift, channels, zero=True):
        return f"its latents' shift is {str(scaling.shift)[:40]}"
    return ""


def _is_average(made: Any) -> bool:
    """Whether `sit ema` can have written this record: std, run, and (step, std, factor) of each
    snapshot."""
    if not isinstance(made, dict) or not isinstance(made.get("run"), str):
        return False
    lines = made.get("snapshots")
    if not isinstance(lines, list) or not all(isinstance(line, list) for line in lines):
        return False
    numbers = [made.get("std"), *(number for line in lines for number in line)]
    return all(len(line) == 3 for line in lines) and all(
        isinstance(number, (int, float)) for number in numbers
    )
