"""Base class of all configurations: deep merging, settings without effect as errors, one-line messages.

None means *open* in every configuration: the fit chooses the value from the data. A result keeps the requested settings
(`config`, where open ones are None) and those that the fit used (`used`).
"""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import pydantic
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from flowknife.errors import InputError

Applies = Mapping[str, tuple[str, Sequence[str]]]
"""For each setting that only sometimes has an effect: the choice it depends on and the options that use it."""


class Settings(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Base of every configuration.

    Unknown keys are errors, None is the same as leaving a field out, and a setting without effect, by `applies` and the
    other choices of the configuration, is an error.
    """

    applies: ClassVar[Applies] = {}
    chosen: ClassVar[Mapping[str, str]] = {}
    """How a fit chooses an open setting, if its description does not explain it: sentences by dotted key."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _without_open(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if value is not None}
        return values

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _numbers_are_numbers(cls, value: Any, info: Any) -> Any:
        """Convert NumPy values to plain ones; refuse text and booleans as numbers."""
        value = value.tolist() if hasattr(value, "tolist") else value
        kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
        if kinds & {int, float} and not kinds & {str, bool} and _holds_words(value):
            raise ValueError("a plain number, such as 1.5" if float in kinds else "a plain integer, such as 10")
        return value

    @pydantic.model_validator(mode="after")
    def _has_effect(self) -> "Settings":
        if idle := _idle(self, self.applies, {name: getattr(self, name) for name, _ in self.applies.values()}):
            raise PydanticCustomError("no_effect", "no effect", {"idle": idle})
        return self

    def completed(self, **chosen: Any) -> Any:
        """These settings, with open fields set to the values of `chosen`."""
        return self.model_copy(update={name: value for name, value in chosen.items() if getattr(self, name) is None})


Config = TypeVar("Config", bound=Settings)


def asked(kind: type[Config], config: Config | None, settings: Mapping[str, Any], seed: int | None = None) -> Config:
    """The requested configuration: `config` with `settings` merged over it, and `seed` over both.

    Raises:
        InputError: for a `config` of another class, an unknown key or a value that does not fit.
    """
    if config is not None and not isinstance(config, kind):
        raise InputError(
            f"got {type(config).__name__} as config; expected {kind.__name__}; try settings as keyword arguments"
        )
    own = {} if seed is None else {"seed": seed}
    return validated(kind, merged({} if config is None else given(config), settings, own))


def given(config: pydantic.BaseModel) -> dict[str, Any]:
    """The settings that were set explicitly, nested, without defaults."""
    return config.model_dump(exclude_unset=True, exclude_none=True)


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Deep merge of nested settings: later layers override earlier ones; keys may be dotted."""
    whole: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            _place(whole, str(key), value)
    return whole


def _place(values: dict[str, Any], key: str, value: Any) -> None:
    """Put a value at a dotted key; a mapping is merged with the one that is there."""
    first, dot, rest = key.partition(".")
    inside = {rest: value} if dot else given(value) if isinstance(value, pydantic.BaseModel) else value
    if not isinstance(inside, Mapping):
        values[first] = inside
        return
    if not isinstance(values.get(first), dict):
        values[first] = {}
    for name, item in inside.items():
        _place(values[first], str(name), item)


def leaves(settings: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every single setting by its dotted key."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def require_applicable(config: Settings, applies: Applies, chosen: Mapping[str, str]) -> None:
    """Refuse a requested setting without effect; for choices that depend on the data.

    Args:
        config: the requested settings.
        applies: on which choice each setting depends, see `Applies`.
        chosen: the selected option of each choice.

    Raises:
        InputError: for the first setting without effect.
    """
    if idle := _idle(config, applies, chosen):
        raise InputError(_no_effect("", *idle))


def _idle(config, applies, chosen):
    """The first setting without effect: (setting, value, choice, selected option, options that use it)."""
    for name, (choice, options) in applies.items():
        value, option = getattr(config, name), chosen.get(choice)
        if value is not None and option is not None and option not in options:
            return name, value, choice, option, options
    return None


def _no_effect(prefix, name, value, choice, option, options):
    return (
        f"got {prefix}{name}={value} for {prefix}{choice}={option}, where it has no effect; expected it with "
        f"{prefix}{choice}={' or '.join(options)} only; try leaving {prefix}{name} out"
    )


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
    more = f" ({len(others)} more errors)" if others else ""
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return f"got the unknown setting {key!r}; expected {_nearest(key, known)}{more}"
    if first["type"] == "no_effect":
        return _no_effect("".join(f"{part}." for part in path), *first["ctx"]["idle"]) + more
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


def _nearest(key: str, known: Mapping[str, Any]) -> str:
    """Suggestions for an unknown key: the most similar known keys, by the whole key or its last part."""
    groups = {name.partition(".")[0]: None for name in known}  # groups such as train and augment are names too
    close = difflib.get_close_matches(key.lower(), {**known, **groups}, n=3)
    if not close:
        ends = {name.rpartition(".")[2]: name for name in known}
        close = [ends[end] for end in difflib.get_close_matches(key.lower().rpartition(".")[2], ends, n=2)]
    return f"a known one; try {' or '.join(close)}" if close else f"one of {', '.join(known)}"


def _fields(kind: type[pydantic.BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every setting of a configuration by its dotted key."""
    fields = {}
    for name, field in kind.model_fields.items():
        nested = [each for each in _kinds(field.annotation) if issubclass(each, pydantic.BaseModel)]
        if nested:
            fields |= _fields(nested[0], f"{prefix}{name}.")
        else:
            fields[prefix + name] = field
    return fields


def described(kind: type[Settings]) -> dict[str, tuple[str, str]]:
    """The default and the meaning of every setting, by its dotted key; an open default is "chosen"."""
    return {key: (_default(field), _meaning(field, kind.chosen.get(key, ""))) for key, field in _fields(kind).items()}


def _default(field: FieldInfo) -> str:
    return "chosen" if field.default is None else str(field.default).lower().removesuffix(".0")


def _meaning(field: FieldInfo, chosen: str) -> str:
    """The description, the options, and the default or how an open setting is chosen."""
    text, _, default = (field.description or "").partition("; default")
    if options := _options(field.annotation):
        text = f"{text}; one of {', '.join(options)}" if text else f"one of {', '.join(options)}"
    if field.default is not None:
        return text
    return f"{text}; default: {chosen or default.lstrip(': ') or 'none'}"


def _options(annotation: Any) -> tuple[str, ...]:
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)
    return next(filter(None, map(_options, typing.get_args(annotation))), ())


def _kinds(annotation: Any) -> set[type]:
    """The plain types in an annotation; for a Literal, the types of its options."""
    if typing.get_origin(annotation) is typing.Literal:
        return {type(option) for option in typing.get_args(annotation)}
    inner = typing.get_args(annotation)
    if inner:
        return set().union(*(_kinds(each) for each in inner))
    return {annotation} if isinstance(annotation, type) else set()


def _holds_words(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_words, value))
    return isinstance(value, (str, bytes, bool))
