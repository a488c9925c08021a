"""YAML files of settings, whose values stay the text that was written until an option's type is
known. Torch-free.

YAML 1.1 reads `off` as False, `010` as 8, `1:30` as 90 and `1e5` as text, whatever the option
takes. Here a value means in a file what it means on the command line.
"""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any, ClassVar

import yaml

NULL = "tag:yaml.org,2002:null"
YES, NO = ("true", "yes", "on", "1", "t", "y"), ("false", "no", "off", "0", "f", "n")


class DoubledKey(ValueError):
    """A mapping that gives a key twice, of which PyYAML would keep the last."""


class _Loader(yaml.SafeLoader):
    """Plain values are text, except for null and nothing at all, which are None."""

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        first: [(tag, pattern) for tag, pattern in rows if tag == NULL]
        for first, rows in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node)
        if isinstance(key, (dict, list)):
            raise yaml.YAMLError("a key is a list or a mapping")
        if key in found:
            raise DoubledKey(f"key '{key}' is given twice")
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> Any:
    """The document in `text`: dicts, lists, None and text; only a tag (`!!int 3`) makes a number.

    Raises yaml.YAMLError for text that is not YAML, DoubledKey for a key given twice.
    """
    return yaml.load(text, _Loader)


def as_text(value: Any) -> str:
    """A value of `parse_yaml` as the command line would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def typed(settings_class: type, section: dict[str, Any]) -> dict[str, Any]:
    """The values of `parse_yaml` in the types of the settings class; unknown keys are left out.

    Paths stay text, as in JSON. Raises ValueError naming the first key whose value does not fit.
    """
    hints = typing.get_type_hints(settings_class)
    names = [field.name for field in dataclasses.fields(settings_class) if field.name in section]
    return {name: _converted(name, section[name], hints[name]) for name in names}


def _converted(name: str, value: Any, hint: Any) -> Any:
    if value is None:
        return None
    kinds = {hint, *typing.get_args(hint)}
    if kinds & {list[Path], list[str]}:
        return [as_text(item) for item in value] if isinstance(value, list) else [as_text(value)]
    if isinstance(value, (dict, list)):
        raise ValueError(f"{name} takes one value")
    text = as_text(value)
    if bool in kinds:
        if text.lower() not in YES + NO:
            raise ValueError(f"{name} is '{text}', not yes or no")
        return text.lower() in YES
    try:
        return next((kind(text) for kind in (int, float) if kind in kinds), text)
    except ValueError:
        raise ValueError(f"{name} is '{text}', not a number") from None
