"""``sit flops``: the cost of the transformers, beside the papers' figures and torch's own count."""

from __future__ import annotations

from typing import Any

from sitcli import names
from sitcli.errors import SitError, UsageError
from sitcli.events import Progress, Result, Stage, Table
from sitcli.model.config import PRESETS, TransformerConfig, parse_model
from sitcli.model.flops import count_costs, measure_cost, published_cost
from sitcli.settings.tools import FlopsSettings

SHARES = ("attention", "cross-attention", "mlp", "modulation")
PAPER_HEADER = ["paper M", "diff %", "paper Gflops", "diff %"]
# The size at which the DiT paper compares its block designs (Figure 5).
COMPARED = "SiT-XL/2"
# A training step costs a forward pass and a backward one of twice its products (DiT, Figure 9).
TRAINING_FACTOR = 3


def count(settings: FlopsSettings) -> Stage:
    """Count one model, or the papers' twelve and the four block designs.

    Raises UsageError for unknown models and sizes that do not fit together, SitError if the
    formula and torch's counter disagree (they must agree exactly).
    """
    configs = _configs(settings)
    designs = _design_configs(settings) if settings.model is None else {}
    counted = []
    for label, config in [*configs.items(), *designs.items()]:
        total = len(configs) + len(designs)
        yield Progress(done=len(counted), total=total, unit="models", text=label)
        counted.append(_describe(label, config, settings))
    models, blocks = counted[: len(configs)], counted[len(configs) :]
    result = Result(data={"models": models}, summary=_summary(settings, counted))
    result.tables.append(_cost_table(models))
    if settings.model is not None:
        result.tables.append(_parts_table(models[0]))
    result.tables.append(_use_table(models, settings))
    if blocks:
        result.data["blocks"] = blocks
        result.tables.append(_blocks_table(blocks))
    return result


def _configs(settings: FlopsSettings) -> dict[str, TransformerConfig]:
    """Label -> configuration of every model asked for."""
    overrides = {
        name: getattr(settings, name)
        for name in ("patch", "depth", "width", "heads")
        if getattr(settings, name) is not None
    }
    design = {} if settings.block == FlopsSettings.block else {"block": settings.block}
    if settings.model is None:
        if overrides:
            flag = next(iter(overrides))
            raise UsageError(
                f"--{flag} changes one model, and none is named",
                f"sit flops SiT-XL/2 --{flag} {overrides[flag]}",
            )
        labels = [f"SiT-{model}" for model in names.PAPER_MODELS]
        return {label: _config(label, settings, design) for label in labels}
    overrides |= design
    changes = ", ".join(f"{name} {value}" for name, value in overrides.items())
    label = f"{settings.model} ({changes})" if changes else settings.model
    return {label: _config(settings.model, settings, overrides)}


def _design_configs(settings: FlopsSettings) -> dict[str, TransformerConfig]:
    """Label -> configuration of each block design at the size that the paper compares."""
    return {
        f"{COMPARED} (block {block})": _config(COMPARED, settings, {"block": block})
        for block in names.BLOCKS
    }


def _config(model: str, settings: FlopsSettings, overrides: dict[str, Any]) -> TransformerConfig:
    try:
        _, size, patch = parse_model(model)
    except ValueError as error:
        hint = f"use SiT-SIZE/PATCH or DiT-SIZE/PATCH with SIZE one of {', '.join(PRESETS)}"
        raise UsageError(str(error), hint) from None
    depth, width, heads = PRESETS[size]
    shape = {"patch": patch, "depth": depth, "width": width, "heads": heads} | overrides
    pixels = settings.downsample * shape["patch"]
    if settings.image_size % pixels:
        fitting = max(1, round(settings.image_size / pixels)) * pixels
        raise UsageError(
            f"{settings.image_size}-pixel images are no whole number of patches: "
            f"{model} takes {pixels} pixels at a time (patch {shape['patch']} of latents "
            f"{settings.downsample} times smaller than the image)",
            f"use --image-size {fitting}, or another --patch or --downsample",
        )
    try:
        return TransformerConfig(
            input_size=settings.image_size // settings.downsample,
            channels=settings.channels,
            out_channels=settings.out_channels or 2 * settings.channels,
            num_classes=settings.num_classes,
            **shape,
        )
    except ValueError as error:
        raise UsageError(str(error), "change --width or --heads") from None


def _describe(label: str, config: TransformerConfig, settings: FlopsSettings) -> dict[str, Any]:
    """All figures of one model, as `--json` prints them. FLOPs are 2 x MACs throughout."""
    parts = count_costs(config)
    params = sum(part.params for part in parts.values())
    macs = sum(part.macs for part in parts.values())
    evaluations = settings.sampling_steps * (2 if settings.guidance else 1)
    images = settings.train_steps * settings.batch_size
    paper = published_cost(config)
    return {
        "model": label,
        "block": config.block,
        "params": params,
        "gmacs": macs / 1e9,
        "gflops": 2 * macs / 1e9,
        "tokens": config.tokens,
        "parts": {
            name: {"params": part.params, "gmacs": part.macs / 1e9, "share": part.macs / macs}
            for name, part in parts.items()
        },
        "paper_params": paper and paper.mparams * 1e6,
        "paper_gmacs": paper and paper.gmacs,
        "params_difference": paper and params / (paper.mparams * 1e6) - 1,
        "gmacs_difference": paper and macs / (paper.gmacs * 1e9) - 1,
        "check_difference": _check(label, config, params, macs) if settings.check else None,
        "network_evaluations_per_sample": evaluations,
        "gflops_per_sample": 2 * macs * evaluations / 1e9,
        "gflops_of_training": 2 * macs * TRAINING_FACTOR * images / 1e9,
    }


def _check(label: str, config: TransformerConfig, params: int, macs: int) -> float:
    """The larger relative difference from the real network's parameters and counted MACs."""
    measured = measure_cost(config)
    difference = max(abs(params / measured.params - 1), abs(macs / measured.macs - 1))
    if difference:
        raise SitError(
            f"{label}: the formula gives {params} parameters and {macs} MACs, "
            f"torch counts {measured.params} and {measured.macs}",
            "add --no-check to print the formula's figures only, and please report this",
        )
    return difference


def _summary(settings: FlopsSettings, counted: list[dict[str, Any]]) -> dict[str, str]:
    size, side = settings.image_size, settings.image_size // settings.downsample
    classes = f"{settings.num_classes} classes" if settings.num_classes else "unconditional"
    out = settings.out_channels or 2 * settings.channels
    summary = {
        "network": f"{size}x{size} images as {settings.channels}x{side}x{side} latents, "
        f"{out} output channels, {classes}, {settings.block} blocks",
        "units": "one forward pass of one sample; GFLOPs = 2 x GMACs; "
        'what the papers call "Gflops" are our GMACs',
    }
    if settings.check:
        largest = max(model["check_difference"] for model in counted)
        summary["check"] = (
            f"formula against torch's FlopCounterMode: relative difference {largest:g}"
        )
    return summary


def _cost_table(models: list[dict[str, Any]]) -> Table:
    present = [name for name in SHARES if name in models[0]["parts"]]  # all of one block design
    shares = [f"{name} %" for name in (*present, "other")]
    rows = []
    for model in models:
        share = [model["parts"][name]["share"] for name in present]
        rows.append(
            [
                model["model"],
                f"{model['params'] / 1e6:.2f}",
                _figure(model["gmacs"]),
                _figure(model["gflops"]),
                *(f"{100 * value:.1f}" for value in (*share, 1 - sum(share))),
            ]
        )
    header = ["model", "params M", "GMACs", "GFLOPs", *shares]
    return Table(title="Parameters and one forward pass", header=header, rows=rows)


def _parts_table(model: dict[str, Any]) -> Table:
    rows = [
        [
            name,
            f"{part['params'] / 1e6:.3f}",
            f"{100 * part['params'] / model['params']:.1f}",
            f"{part['gmacs']:.5f}",
            f"{100 * part['share']:.1f}",
        ]
        for name, part in model["parts"].items()
    ]
    header = ["part", "params M", "%", "GMACs", "%"]
    return Table(title=f"{model['model']}, part by part", header=header, rows=rows)


def _use_table(models: list[dict[str, Any]], settings: FlopsSettings) -> Table:
    rows = []
    for model in models:
        use = [model["gflops_per_sample"] / 1e3, model["gflops_of_training"] / 1e9]
        rows.append([model["model"], *_beside_paper(model), *map(_figure, use)])
    header = ["model", *PAPER_HEADER, "TFLOPs/sample", "training EFLOPs"]
    guided = " with guidance" if settings.guidance else ""
    title = (
        f"Beside the DiT paper; a sample of {settings.sampling_steps} steps{guided}; "
        f"{settings.train_steps} training steps of {settings.batch_size} (3 x forward)"
    )
    return Table(title=title, header=header, rows=rows)


def _blocks_table(blocks: list[dict[str, Any]]) -> Table:
    rows = [
        [
            model["block"],
            f"{model['params'] / 1e6:.2f}",
            f"{model['gmacs']:.2f}",
            *_beside_paper(model),
        ]
        for model in blocks
    ]
    header = ["block", "params M", "GMACs", *PAPER_HEADER]
    return Table(title=f"The four block designs at {COMPARED}", header=header, rows=rows)


def _beside_paper(model: dict[str, Any]) -> list[str]:
    """The cells below PAPER_HEADER."""
    if model["paper_gmacs"] is None:
        return ["-"] * len(PAPER_HEADER)
    return [
        f"{model['paper_params'] / 1e6:.0f}",
        _percent(model["params_difference"]),
        f"{model['paper_gmacs']:.2f}",
        _percent(model["gmacs_difference"]),
    ]


def _figure(value: float) -> str:
    """Four significant figures, never in exponents: '0.3580', '118.6'."""
    decimals = max(0, 3 - len(str(int(value)))) + 1 if value >= 1 else 4
    return f"{value:.{decimals}f}"


def _percent(ratio: float) -> str:
    return f"{100 * ratio:+.2f}"
