"""Settings checked by pydantic; what is wrong with them is told in one line."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic
from pydantic.fields import FieldInfo

from flowknife.errors import InputError

Config = TypeVar("Config", bound=pydantic.BaseModel)


def validated(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration of class `kind` from nested values.

    Raises:
        InputError: for an unknown key or a value that does not fit.
    """
    try:
        return kind.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise InputError(_explained(error, kind)) from None


def _explained(error: pydantic.ValidationError, kind: type[pydantic.BaseModel]) -> str:
    """One line for the first thing that is wrong."""
    known = _fields(kind)
    first, *others = error.errors()
    more = f" ({len(others)} more to mend)" if others else ""
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, known, n=3)
        expected = f"a known one; try {' or '.join(close)}" if close else f"one of {', '.join(known)}"
        return f"got the unknown setting {key!r}; expected {expected}{more}"
    # a union of types adds their names to the path
    key = next((start for end in range(len(path), 0, -1) if (start := ".".join(path[:end])) in known), key)
    expected = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ").partition(", unable")[0]
    if below := [name for name in known if name.startswith(f"{key}.")]:
        expected = f"a setting below it, such as {below[0]}"
    elif expected.startswith(("greater", "less")):
        expected = f"a value {expected}"
    field = known.get(key)
    meaning = f" ({field.description})" if field and field.description else ""
    advice = f"{key}={field.default}" if field and field.default is not None else f"leaving {key} out"
    return f"got {key}={first['input']!r}; expected {expected}{meaning}; try {advice}{more}"


def _fields(kind: type[pydantic.BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting of a configuration by its dotted key."""
    fields = {}
    for name, field in kind.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, pydantic.BaseModel):
            fields |= _fields(field.annotation, f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields
