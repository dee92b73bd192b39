"""Reading settings from YAML files and `KEY=VALUE` texts; every error is one line."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import yaml

from flowknife._files import read_file
from flowknife._settings import Config, leaves, merged, validated
from flowknife.errors import InputError

_ENDS = {"epochs", "steps", "minutes"}


_MOST_BYTES = 2**16  # of a settings file
_MOST_NESTED = 20  # values
_MOST_VALUES = 10_000  # values; an aliased value counts at each use


class _DuplicateKeyError(Exception):
    """A repeated key in a mapping."""


class _Loader(yaml.SafeLoader):
    """YAML with the scalar types of version 1.2; a repeated key is an error.

    Values that version 1.1 would convert stay text, so that a setting has the value as written: 1:30 (90), 010 (8),
    0x10, 1_000, yes and on (true), dates. 1e3 is a number.
    """

    yaml_implicit_resolvers: ClassVar[dict] = {}

    def get_single_node(self):
        node = super().get_single_node()
        _count(node, {})
        return node

    def compose_node(self, parent, index):
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > _MOST_NESTED:
            raise yaml.YAMLError(f"values nested more than {_MOST_NESTED} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise _DuplicateKeyError(f"got {key.value!r} twice, again in line {key.start_mark.line + 1}")
            keys.add(key.value)
        return super().construct_mapping(node, deep=True)

    def construct_number(self, node):
        if self.resolve(yaml.ScalarNode, node.value, (True, False)) != node.tag:  # an explicit tag
            raise yaml.YAMLError(f"{node.value!r} is no {node.tag.rpartition(':')[2]}")
        return self.construct_yaml_int(node) if node.tag.endswith("int") else self.construct_yaml_float(node)


def _count(node: yaml.Node | None, counted: dict[int, int]) -> int:
    """The number of values below a node.

    Raises:
        YAMLError: there are too many, or a node contains itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in counted:
        counted[id(node)] = _MOST_VALUES  # until it is known, since a node that contains itself never ends
        inside = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        counted[id(node)] = 1 + sum(_count(part, counted) for part in inside)
    if counted[id(node)] >= _MOST_VALUES:
        raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values, or values within themselves")
    return counted[id(node)]


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _Loader.construct_number)
_WHOLE = r"(?:0|[1-9][0-9]*)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", rf"[-+]?{_WHOLE}", "-+0123456789"),
    (
        "float",
        rf"[-+]?(?:{_WHOLE}?\.[0-9]+|{_WHOLE}\.?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), list(_first))


def configured(
    kind: type[Config], file: Path | None, settings: Iterable[str], recipe: Mapping[str, Any] | None = None
) -> Config:
    """The configuration from a recipe, a YAML file and single settings, where later ones override earlier ones.

    The end of training of a recipe applies only if neither the file nor the settings have one.

    Args:
        kind: the class of the configuration.
        file: a YAML file with nested or dotted keys, or None.
        settings: texts KEY=VALUE with a dotted key, such as train.minutes=5; the value is read as YAML.
        recipe: nested settings to start from, or None.

    Raises:
        InputError: for a file that cannot be read, an unknown key, a value that does not fit, or a key with two values
            in one place.
    """
    from_file = _once(leaves(_read(file)), f"the settings {file}") if file else {}
    single = _once((leaf for setting in settings for leaf in _setting(setting)), "--set")
    values = merged(from_file, single)
    start = merged(recipe or {})
    if isinstance(values.get("train"), Mapping) and any(values["train"].get(end) is not None for end in _ENDS):
        start["train"] = {key: value for key, value in start.get("train", {}).items() if key not in _ENDS}
    return validated(kind, merged(start, values))


def _once(pairs: Iterable[tuple[str, Any]], place: str) -> dict[str, Any]:
    """Settings by dotted key; refuses a key with two values, except that None (open) may be repeated with a value."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        for other, earlier in found.items():
            nested = f"{other}.".startswith(f"{key}.") or f"{key}.".startswith(f"{other}.")
            if nested and None not in (earlier, value) and (key, value) != (other, earlier):
                both = f"{other}={earlier!r} and {key}={value!r}"
                raise InputError(f"got {both} in {place}; expected each setting once; try leaving one of them out")
        found.pop(key, None)
        found[key] = value
    return found


def _setting(text: str) -> Iterable[tuple[str, Any]]:
    key, _, value = text.partition("=")
    if not value.strip():
        raise InputError(
            f"got the setting {text!r} without a value; expected KEY=VALUE; try {text}null to leave it open"
        )
    try:
        return leaves({key.strip(): yaml.load(value, _Loader)})
    except _DuplicateKeyError as error:
        raise InputError(f"{error} of the setting {text!r}; expected each key once") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, OverflowError):
        raise InputError(f"got the setting {text!r}; expected a plain value; try quotes around a text") from None


def _read(file: Path) -> Mapping[Any, Any]:
    example = "expected lines such as seed: 1"
    try:
        content = yaml.load(read_file(file, _MOST_BYTES).decode("utf-8-sig"), _Loader)
    except _DuplicateKeyError as error:
        raise InputError(f"{error} of the settings {file}; expected each key once; try leaving one out") from None
    except OSError as error:
        raise InputError(f"got the settings {file}, which cannot be read ({error.strerror}); {example}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"got the settings {file}, which are no YAML ({reason}); {example}") from None
    if not isinstance(content, Mapping | None):
        raise InputError(f"got the settings {file}, which hold a {type(content).__name__}; {example}")
    return content or {}
