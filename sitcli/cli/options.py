"""From a settings class to a Typer command: options, ``--config``, ``--json``, ``--dry-run``."""

from __future__ import annotations

import dataclasses
import difflib
import gc
import inspect
import math
import os
import re
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from sitcli.errors import UsageError
from sitcli.machine.children import run_processes
from sitcli.machine.world import number_of
from sitcli.settings.files import DoubledKey, as_text, parse_yaml
from sitcli.settings.presets import PRESETS


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """The options of a command that are not settings of its stage.

    said: the settings that were given, each with how to take it back ("remove --lr").
    """

    json: bool = False
    dry_run: bool = False
    said: Mapping[str, str] = dataclasses.field(default_factory=dict)


def command(
    app: typer.Typer, name: str, settings_class: type, *, dry_run: bool = False, panel: str
) -> Callable:
    """Register ``function(settings, invocation)`` as the subcommand `name` of `app`.

    Every field of `settings_class` becomes an option; the function's docstring is the help.
    """

    def register(function: Callable[[Any, Invocation], None]) -> Callable:
        def run(ctx: typer.Context, **values: Any) -> None:
            gc.enable()  # __main__ disabled it
            values.pop("config")
            _check_finite(values)
            said = _said(ctx, settings_class)
            _fill_from_preset(name, values, said)
            _let_flags_choose(ctx, settings_class, values)
            invocation = Invocation(
                json=values.pop("json"), dry_run=values.pop("dry_run", False), said=said
            )
            if not invocation.dry_run:
                _start_processes(values)
            function(settings_class(**values), invocation)

        run.__doc__ = unwrap(function.__doc__)
        parameters = _parameters(settings_class) + _shared_parameters(dry_run)
        context = inspect.Parameter(
            "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
        )
        parameters.insert(0, context)
        # Arguments come before options, as in the usage line.
        run.__signature__ = inspect.Signature(parameters)
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        # The prefix is set here and not on the app, where SIT_VERSION would mean --version.
        environment = {"auto_envvar_prefix": f"SIT_{name.upper()}"}
        app.command(name, rich_help_panel=panel, context_settings=environment)(run)
        return function

    return register


def _start_processes(values: dict[str, Any]) -> None:
    """Run the command in the processes it asks for, unless this is one of them."""
    number = number_of(gpus=values.get("gpus"), procs=values.get("procs")) or 1
    if number > 1 and "WORLD_SIZE" not in os.environ:
        sys.exit(run_processes(sys.argv[1:], number))  # the processes have printed their errors


# The sources of a value, the weakest first.
SOURCES = ("DEFAULT", "DEFAULT_MAP", "ENVIRONMENT", "COMMANDLINE")


def _said(ctx: typer.Context, settings_class: type) -> dict[str, str]:
    """The settings that somebody gave, each with how to take it back."""
    said = {}
    parameters = {parameter.name: parameter for parameter in ctx.command.params}
    for option in dataclasses.fields(settings_class):
        name, parameter = option.name, parameters[option.name]
        match getattr(ctx.get_parameter_source(name), "name", "DEFAULT"):
            case "DEFAULT_MAP":
                said[name] = f"remove {name} from the --config file"
            case "ENVIRONMENT":
                said[name] = f"unset {ctx.auto_envvar_prefix}_{name.upper()}"
            case "COMMANDLINE":
                flags = [*parameter.opts, *parameter.secondary_opts]
                given = flags[-1] if ctx.params.get(name) is False else flags[0]
                said[name] = f"remove {given}"
    return said


def _fill_from_preset(command_name: str, values: dict[str, Any], said: dict[str, str]) -> None:
    """Set every option the user left alone to the preset's value, and note that it said so."""
    preset = PRESETS.get(command_name, {}).get(values.get("preset") or "", {})
    for name in preset.keys() - said.keys():
        values[name] = preset[name]
        said[name] = f"remove --preset {values['preset']}"


def _let_flags_choose(ctx: typer.Context, settings_class: type, values: dict[str, Any]) -> None:
    """Drop a weaker source's choice of mode, and the details that belong to it.

    `sde: true` and `wt: kl` in a file give way to a flag `--ode`.
    """

    def strength(name: str) -> int:
        source = getattr(ctx.get_parameter_source(name), "name", "DEFAULT")
        return SOURCES.index(source) if source in SOURCES else 0

    fields = dataclasses.fields(settings_class)
    chosen = [f.name for f in fields if f.metadata["role"] == "mode" and values[f.name]]
    strongest = max(map(strength, chosen), default=0)
    if all(strength(name) == strongest for name in chosen):
        return
    for field in fields:
        if field.metadata["role"] and strength(field.name) < strongest:
            values[field.name] = field.default


def _check_finite(values: dict[str, Any]) -> None:
    """Raise UsageError for an infinite number or NaN, which the bounds of options let pass."""
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} {value:g} is not a finite number", "use a finite number")


def unwrap(text: str) -> str:
    """One line per paragraph and per example (a line that begins with 'sit ').

    Typer keeps the source's line breaks and wraps a second time.
    """
    paragraphs = re.split(r"\n\s*\n", inspect.cleandoc(text))
    return "\n\n".join(re.sub(r"\s*\n(?!sit )\s*", " ", paragraph) for paragraph in paragraphs)


def _parameters(settings_class: type) -> list[inspect.Parameter]:
    hints = typing.get_type_hints(settings_class)
    parameters = []
    for field in dataclasses.fields(settings_class):
        meta = field.metadata
        # Rich would read [default: ...] as markup.
        shared = dict(help=meta["help"].replace("[", r"\["), min=meta["low"], max=meta["high"])
        shared["show_envvar"] = False
        shared["show_default"] = field.default is not None and field.default is not ...
        if meta["argument"]:
            info = typer.Argument(field.default, **shared)
        else:
            panel = meta["group"] or None
            flag = meta["flag"] or "--" + field.name.replace("_", "-")
            if hints[field.name] is bool:
                flag = f"{flag}/--no-{flag[2:]}" if field.default else flag
            if hints[field.name] == list[Path] | None:
                shared["metavar"] = "<path>"  # Typer's own is the Python type
            info = typer.Option(field.default, flag, rich_help_panel=panel, **shared)
        parameters.append(_keyword(field.name, hints[field.name], info))
    return parameters


def _shared_parameters(dry_run: bool) -> list[inspect.Parameter]:
    config = typer.Option(
        None,
        "--config",
        help="YAML file with a section per command; flags and environment variables win over it.",
        callback=_read_config,
        is_eager=True,
        metavar="FILE",
        show_envvar=False,
    )
    json = typer.Option(
        False, "--json", show_envvar=False, help="Print the result as one JSON object on stdout."
    )
    parameters = [_keyword("config", Path | None, config), _keyword("json", bool, json)]
    if dry_run:
        info = typer.Option(
            False, "--dry-run", show_envvar=False, help="Show what would be done; touch nothing."
        )
        parameters.append(_keyword("dry_run", bool, info))
    return parameters


def _keyword(name: str, annotation: Any, info: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=info
    )


def _read_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Make the file's section for this command its defaults; flags and environment win over it."""
    if path is None or ctx.resilient_parsing:
        return path
    section = config_section(path, ctx.info_name, list(ctx.parent.command.commands))
    known = {p.name for p in ctx.command.params} - {"config"}
    several = {p.name for p in ctx.command.params if getattr(p, "multiple", False) or p.nargs == -1}
    defaults = {}
    for key, value in section.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise UsageError(
                f"{path}: unknown key '{key}' in section '{ctx.info_name}'", _suggest(name, known)
            )
        if name in several and value is not None:
            value = value if isinstance(value, list) else [value]
            if any(isinstance(item, (dict, list, type(None))) for item in value):
                raise UsageError(f"{path}: '{key}' takes a value, or a list of values")
            defaults[name] = [as_text(item) for item in value]
        elif isinstance(value, (dict, list)):
            raise UsageError(f"{path}: '{key}' takes one value, not {type(value).__name__}")
        elif value is not None:
            defaults[name] = as_text(value)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return path


def config_section(path: Path, command_name: str, commands: list[str]) -> dict[str, Any]:
    """The section `command_name` of the YAML file at `path`; {} if there is none.

    Raises UsageError for an unreadable file, a section without a command, or a key given twice.
    """
    import yaml

    try:
        document = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UsageError(f"cannot read the config file {path}: {error.strerror}") from None
    except DoubledKey as error:
        raise UsageError(f"{path}: {error}", "remove one of them") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"{path} is not valid YAML: {line}") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: expected a section per command, e.g. 'train:'")
    for key in document:
        if key not in commands:
            raise UsageError(f"{path}: no command '{key}'", _suggest(str(key), commands))
    section = document.get(command_name) or {}
    if not isinstance(section, dict):
        raise UsageError(f"{path}: section '{command_name}' must hold 'key: value' lines")
    return section


def _suggest(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"
