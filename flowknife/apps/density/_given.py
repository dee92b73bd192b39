"""Conditions of rows: columns of the same table, or a separate array."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from flowknife.apps._tables import encoding_of, models_more, of_numbers
from flowknife.apps.density._config import DensityConfig
from flowknife.data import Table, load_table
from flowknife.data._read import by_name, read_columns
from flowknife.data.encoding import Encoding, in_numbers
from flowknife.data.tables import table_of
from flowknife.errors import InputError


def read_table(
    x: Any, given: Any, names: Sequence[str] | None, config: DensityConfig, drop_invalid: bool, calibration: Any = None
) -> tuple[Table, tuple[str, ...], Encoding | None]:
    """The encoded table of a density, the names of its conditions, and the encoding of its columns.

    Raises:
        InputError: for a table that cannot be used; the message names the settings that would help.
    """
    if not models_more(config):
        try:
            with of_numbers(x, names, drop_invalid):
                read = read_joined(x, given, names, drop_invalid)
        except InputError:
            _require_numbers(x, given, drop_invalid)
            raise
        return *read, None
    conditions = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if given is not None and not (conditions and all(isinstance(name, str) for name in conditions)):
        raise InputError(
            "got conditions beside a table that is encoded; expected names of its columns; try given=[...]"
        )
    _require_numbers(x, given, drop_invalid)
    encoding = encoding_of(x, names, config, conditions)
    if calibration is not None:
        encoding = encoding.widened(calibration, config.missing == "model")
    table = encoding.read(x, conditions, drop_invalid=drop_invalid, min_rows=2, at_random=True)
    return table, conditions, encoding


def _require_numbers(x, given, drop_invalid):
    """Refuse conditions with text, dates or missing values; the message explains how to encode them."""
    named = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    try:
        helps = in_numbers(x, named) if named and not drop_invalid else ""
    except InputError:  # such as an unknown column
        helps = ""
    if helps:
        raise InputError(f"got the conditions {', '.join(named)}, not all numbers; expected numbers; try {helps}")


def read_joined(x: Any, given: Any, names: Sequence[str] | None, drop_invalid: bool) -> tuple[Table, tuple[str, ...]]:
    """A table whose last columns are the conditions, and their names.

    Args:
        x: the table, as for `load_table`.
        given: names of its columns, or a separate table (n, k) or (n,); None for no conditions.
        names: names of the columns of `x` to model, or of all columns of an array; default all but the conditions.
        drop_invalid: leave out rows with missing or infinite values in either table.

    Raises:
        InputError: for unknown columns, or conditions with another number of rows.
    """
    if given is None:
        return load_table(x, columns=names, drop_invalid=drop_invalid), ()
    found = read_columns(x)
    named = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if named and all(isinstance(name, str) for name in named):
        if names is not None and not any(found.labels) and len(names) == len(found.names):  # of an array
            found, names = replace(found, labels=tuple(names), names=tuple(names)), None
        rest = tuple(names or (name for name in found.names if name not in named))
        if len(set(named)) < len(named):
            raise InputError(f"got the conditions {', '.join(named)}; expected different columns; try each once")
        missing = [name for name in named if name not in found.names]
        if missing or not rest:
            got = f"the condition {missing[0]!r}" if missing else "only conditions"
            raise InputError(f"got {got} of {found.source}; expected some of its columns: {', '.join(found.names)}")
        return table_of(found, (*rest, *named), drop_invalid=drop_invalid, min_rows=2), named
    beside = read_columns(given)
    if names is not None:
        places = found.places(names)
        foreign = {i: found.foreign[place] for i, place in enumerate(places) if place in found.foreign}
        found = replace(found, labels=tuple(names), names=tuple(names), values=found.values[:, places], foreign=foreign)
    count = len(beside.names)
    own = beside.names if any(beside.labels) else tuple(f"c{i + 1}" for i in range(count))
    if len(beside.values) != len(found.values) or set(own) & set(found.names):
        raise InputError(
            f"got {len(beside.values)} rows of conditions {', '.join(own)} for {len(found.values)} rows of "
            f"{', '.join(found.names)}; expected one for each, under other names"
        )
    foreign = {**found.foreign, **{len(found.names) + place: what for place, what in beside.foreign.items()}}
    joined = replace(
        found,
        labels=(*found.names, *own),
        names=(*found.names, *own),
        values=np.column_stack([found.values, beside.values]),
        foreign=foreign,
    )
    return table_of(joined, drop_invalid=drop_invalid, min_rows=2), own


def read_given(given: Any, names: Sequence[str], rows: int) -> np.ndarray:
    """Conditions as an array (rows, k), from one row for all or one for each.

    Args:
        given: a mapping of numbers or of columns by name, one row (k,), rows (n, k), or a table with these columns.
        names: names of the k conditions.
        rows: number of rows.

    Raises:
        InputError: for other conditions, or another number of rows.
    """
    if hasattr(given, "to_numpy") and np.ndim(given) == 1:  # a Series: a row of several conditions, or one column
        name = getattr(given, "name", None)
        found = by_name(given, names) if len(names) > 1 or list(getattr(given, "index", ())) == list(names) else None
        if found is None and len(names) == 1 and isinstance(name, str) and name and name not in names:
            raise InputError(f"got the condition {name!r}; expected {names[0]}; try given.to_numpy()")
        given = given if found is None else found
    if isinstance(given, Mapping):
        columns = {key: np.asarray(value) for key, value in given.items()}
        count = max((column.size for column in columns.values()), default=0)
        odd = [key for key, column in columns.items() if column.ndim > 1 or column.size not in (1, count)]
        if set(given) != set(names) or odd:
            raise InputError(f"got given={dict(given)!r}; expected a number for each of {', '.join(names)}, or as many")
        given = np.column_stack([np.broadcast_to(columns[name].ravel(), count) for name in names])
    elif not hasattr(given, "columns") and not isinstance(given, str) and np.ndim(given) < 2:
        # one row of several conditions, or one condition of several rows
        given = np.reshape(given, (1, -1) if len(names) > 1 else (-1, 1))
    values = load_table(given, columns=names, min_rows=1).values
    if len(values) not in (1, rows):
        raise InputError(f"got {len(values)} rows of {', '.join(names)} for {rows} rows; expected one, or one for each")
    return np.broadcast_to(values, (rows, len(names)))
