"""Configurations from YAML files and `KEY=VALUE` settings; whatever is wrong with them is told in one line."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from flowknife._settings import validated
from flowknife.errors import InputError

Config = TypeVar("Config", bound=pydantic.BaseModel)


_ENDS = {"epochs", "steps", "minutes"}


def configured(
    kind: type[Config], file: Path | None, settings: Iterable[str], recipe: Mapping[str, Any] | None = None
) -> Config:
    """The configuration that a recipe and, over it, a YAML file and, over both, single settings ask for.

    As in `Training.or_else`, when a recipe ends training counts only if nothing else says when to.

    Args:
        kind: the class of the configuration.
        file: a YAML file of settings, nested or with dotted keys, or None.
        settings: texts KEY=VALUE with a dotted key, such as train.minutes=5; the value is read as YAML.
        recipe: nested settings to start from, or None.

    Raises:
        InputError: for a file that cannot be read, an unknown key or a value that does not fit.
    """
    values: dict[str, Any] = {}
    for key, value in _read(file).items() if file else ():
        _place(values, str(key), value)
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            _place(values, key.strip(), yaml.safe_load(text))
        except yaml.YAMLError:
            raise InputError(f"got the setting {setting!r}; expected a plain value; try quotes around a text") from None
    if recipe is None:
        return validated(kind, values)
    start = copy.deepcopy(dict(recipe))
    if isinstance(values.get("train"), Mapping) and _ENDS & values["train"].keys():
        start["train"] = {key: value for key, value in start.get("train", {}).items() if key not in _ENDS}
    for key, value in values.items():
        _place(start, key, value)
    return validated(kind, start)


def _read(file: Path) -> Mapping[Any, Any]:
    example = "expected lines such as seed: 1"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"got the settings {file}, which cannot be read ({error.strerror}); {example}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"got the settings {file}, which are no YAML ({reason}); {example}") from None
    if not isinstance(content, Mapping | None):
        raise InputError(f"got the settings {file}, which hold a {type(content).__name__}; {example}")
    return content or {}


def _place(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; a mapping is merged with what is there."""
    first, dot, rest = key.partition(".")
    inside = {rest: value} if dot else value
    if not isinstance(inside, Mapping):
        values[first] = inside
        return
    if not isinstance(values.get(first), dict):
        values[first] = {}
    for name, item in inside.items():
        _place(values[first], str(name), item)
