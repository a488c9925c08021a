"""YAML files of settings: a value means in them what it means on the command line."""

from __future__ import annotations

import dataclasses
import os
import typing
from pathlib import Path

import pytest
import typer
import yaml

from sitcli.cli.options import command
from sitcli.errors import UsageError
from sitcli.settings import encode, evaluate, sample, tools, train, weights
from sitcli.settings.files import DoubledKey, parse_yaml, typed

CLASSES = [
    value
    for module in (encode, train, sample, evaluate, tools, weights)
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and value.__module__ == module.__name__
]
OPTIONS = [(each, field) for each in CLASSES for field in dataclasses.fields(each)]


def kinds(settings_class: type, field: dataclasses.Field) -> set:
    """The types of a field, without the | None."""
    hint = typing.get_type_hints(settings_class)[field.name]
    return {hint, *typing.get_args(hint)} - {type(None)}


def having(*wanted: type) -> list:
    return [
        pytest.param(each, field, id=f"{each.__name__}-{field.name}")
        for each, field in OPTIONS
        if kinds(each, field) & set(wanted)
    ]


def choices() -> list:
    return [
        pytest.param(each, field, id=f"{each.__name__}-{field.name}")
        for each, field in OPTIONS
        if any(typing.get_origin(kind) is typing.Literal for kind in kinds(each, field))
    ]


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """parse(settings class, its section in YAML) -> the settings the command would be given.

    Required options are given something, unless `bare`.
    """
    for name in [name for name in os.environ if name.startswith("SIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WORLD_SIZE", "1")  # --gpus and --procs start nothing

    def parse(settings_class: type, section: str, *, bare: bool = False):
        given = []
        app = typer.Typer()
        app.callback()(lambda: None)

        @command(app, "do", settings_class, panel="Stages")
        def run(settings, invocation):
            """Keep what was given."""
            given.append(settings)

        for field in dataclasses.fields(settings_class) if not bare else ():
            if field.default is ... and f"{field.name}:" not in section:
                needed = {"std": "0.1", "what": "train"}.get(field.name, "x")
                section += f"\n  {field.name}: {needed}"
        file = tmp_path / "c.yaml"
        file.write_text(f"do:\n  {section}\n")
        app(["do", "--config", str(file)], prog_name="sit", standalone_mode=False)
        return given.pop()

    return parse


@pytest.mark.parametrize(("settings_class", "field"), having(int, float))
def test_words_are_no_numbers(parse, settings_class, field):
    """Catches: `steps: on` taken as 1, and 1:30 taken as 90."""
    for word in ("on", "no", "True", "1:30", "!!bool true"):
        with pytest.raises(Exception, match="should be a valid"):
            parse(settings_class, f"{field.name}: {word}")
        with pytest.raises(ValueError, match=f"{field.name} is '.*', not a number"):
            typed(settings_class, parse_yaml(f"{field.name}: {word}"))


@pytest.mark.parametrize(("settings_class", "field"), having(int, float))
def test_numbers_are_decimal(parse, settings_class, field):
    """Catches: 010 read as 8, and 1e-1 read as text."""
    is_int = int in kinds(settings_class, field)
    low, high = field.metadata["low"], field.metadata["high"]
    text, value = ("0012", 12) if is_int else ("2e-1", 0.2)
    if (low is not None and value < low) or (high is not None and value > high):
        text, value = ("00100", 100) if is_int else (f"{high:g}", high)
    assert getattr(parse(settings_class, f"{field.name}: {text}"), field.name) == value
    assert typed(settings_class, parse_yaml(f"{field.name}: {text}")) == {field.name: value}


@pytest.mark.parametrize(("settings_class", "field"), choices())
def test_choices_are_text(parse, settings_class, field):
    """Catches: `compile: off` refused, as "False is not one of auto, on, off"."""
    (literal,) = (
        kind for kind in kinds(settings_class, field) if typing.get_origin(kind) is typing.Literal
    )
    for choice in typing.get_args(literal):
        assert getattr(parse(settings_class, f"{field.name}: {choice}"), field.name) == choice
    words = {"on", "off", "yes", "no", "true"} - set(typing.get_args(literal))
    for word in words:
        with pytest.raises(Exception, match=f"'{word}' is not one of"):
            parse(settings_class, f"{field.name}: {word}")


@pytest.mark.parametrize(("settings_class", "field"), having(str, Path, list[Path]))
def test_texts_are_as_written(parse, settings_class, field):
    """Catches: a class, a file or a device called no, 010, 1:30, 1.10 or 2024-01-01."""
    for word in ("no", "On", "010", "1:30", "1.10", "1e5", "2024-01-01", "0x10", ".inf", "1_000"):
        if field.name == "samples" and word == ".inf":
            continue
        value = getattr(parse(settings_class, f"{field.name}: {word}"), field.name)
        value = value[0] if isinstance(value, list) else value
        assert str(value) == word


@pytest.mark.parametrize(("settings_class", "field"), having(bool))
def test_flags_take_yes_and_no(parse, settings_class, field):
    """Catches: a flag that YAML's words do not set, or that takes any text for yes."""
    for word, value in {"on": True, "Yes": True, "true": True, "off": False, "no": False}.items():
        assert getattr(parse(settings_class, f"{field.name}: {word}"), field.name) is value
        assert typed(settings_class, parse_yaml(f"{field.name}: {word}")) == {field.name: value}
    for word in ("2", "perhaps", "0.5"):
        with pytest.raises(Exception, match="valid boolean"):
            parse(settings_class, f"{field.name}: {word}")
        with pytest.raises(ValueError, match="not yes or no"):
            typed(settings_class, parse_yaml(f"{field.name}: {word}"))


@pytest.mark.parametrize(("settings_class", "field"), [
    pytest.param(each, field, id=f"{each.__name__}-{field.name}") for each, field in OPTIONS
])  # fmt: skip
def test_null_is_nothing_said(parse, settings_class, field):
    """Catches: a null taken as the text None, or as a value for what is required."""
    for nothing in ("null", "~", ""):
        if field.default is ...:
            with pytest.raises(Exception, match=r"[Mm]issing"):
                parse(settings_class, f"{field.name}: {nothing}", bare=True)
        else:
            found = getattr(parse(settings_class, f"{field.name}: {nothing}"), field.name)
            assert found == field.default


def test_quoted_values_are_text_too():
    """Catches: a quoted null, or a tag, that is read in another way than it is written."""
    assert parse_yaml("{a: 'null', b: \"off\", c: !!int '3', d: !!bool yes}") == dict(
        a="null", b="off", c=3, d=True
    )


def test_what_is_no_mapping_of_values_is_refused(parse):
    """Catches: a key given twice, of which the last would be kept, and keys that are lists."""
    with pytest.raises(DoubledKey, match="'on' is given twice"):
        parse_yaml("{on: 1, on: 2}")
    with pytest.raises(yaml.YAMLError):
        parse_yaml("? [a, b]\n: c")
    with pytest.raises(UsageError, match="key 'steps' is given twice"):
        parse(train.TrainSettings, "steps: 1\n  steps: 2")
