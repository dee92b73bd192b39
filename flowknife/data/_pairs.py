"""Tables in two parts: rows and labels, or parameters and data."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowknife.data._arrays import UnreadableError, arrays_in
from flowknife.data._read import names_in, read_columns, some
from flowknife.data.encoding import Encoding
from flowknife.data.tables import Table, load_table, table_of
from flowknife.errors import InputError

LABEL = "label"
"""Default name of the label column."""


class Labelled(NamedTuple):
    """A table whose rows have labels.

    Attributes:
        table: the numeric columns.
        labels: the label of each row as written; "", None or NaN if unknown.
        column: name of the label column; None if labels are a separate array.
        encoding: encoding of the other columns; None if they are numeric.
    """

    table: Table
    labels: np.ndarray
    column: str | None
    encoding: Encoding | None = None


class Pairs(NamedTuple):
    """Parameters x and data y, one row per pair, and their names; () without names."""

    x: Any
    y: Any
    names: tuple[str, ...]
    y_names: tuple[str, ...]


def is_table(source: Any) -> bool:
    """Whether the columns of `source` may have names: it is a path or a data frame."""
    return isinstance(source, (str, os.PathLike)) or names_in(source) is not None


def read_labelled(
    source: Any,
    column: str | None = None,
    names: Sequence[str] | None = None,
    *,
    drop_invalid: bool = False,
    encode: Callable[[Any, Sequence[str] | None], Encoding] | None = None,
) -> Labelled:
    """The rows of a table and their labels, from a column that may hold text.

    An .npz file holds two arrays, x and labels.

    Args:
        source: a data frame, or the path of a table.
        column: name of the label column; default `LABEL`.
        names: names of the numeric columns, see `load_table`.
        drop_invalid: leave out rows with missing or infinite numbers.
        encode: (table, names of its columns) -> their encoding; default: they are numeric.

    Raises:
        InputError: the table cannot be used, or has no such column.
    """
    encoding = None
    if _is_arrays(source):
        x, labels = arrays_of(source, ("x", "labels"))
        if encode is None:
            table = load_table(x, columns=names, drop_invalid=drop_invalid, min_rows=1)
        else:
            encoding = encode(x, names)
            table = encoding.read(x, drop_invalid=drop_invalid, at_random=True)
        return Labelled(table, np.delete(labels, table.dropped_rows), None, encoding)
    column = column or LABEL
    found = read_columns(source, keep=(column,))
    if column not in found.kept:
        last = found.names[-1]
        raise InputError(
            f"got {found.source} without a column {column!r} (it has {some(found.names)}); expected a label for each "
            f"row; try labels={last!r} (command line: --label {last})"
        )
    if not len(found.values):
        raise InputError(f"got {found.source} with no rows; expected a header of different names, and rows below it")
    if encode is None:
        table = table_of(found, names, drop_invalid=drop_invalid, min_rows=1)
    else:
        encoding = encode(source, names or tuple(name for name in found.names if name != column))
        table = encoding.read(source, keep=(column,), drop_invalid=drop_invalid, at_random=True)
    return Labelled(table, table.kept[column], column, encoding)


def read_pairs(source: Any, names: Sequence[str] | None = None, y_names: Sequence[str] | None = None) -> Pairs:
    """Parameters, data, and the names of both.

    Args:
        source: two arrays or data frames (x, y); the path of an .npz file with the arrays x and y; or a table (path or
            data frame) in which some columns are parameters.
        names: names of the parameters; for a table, its parameter columns.
        y_names: names of the data; for a table, its data columns, default all others.

    Raises:
        InputError: the source cannot be used, or no parameter columns of a table are named.
    """
    for named in (names or (), y_names or ()):
        if len(set(named)) < len(named):
            raise InputError(f"got the names {some(named)}; expected different ones; try each once")
    if not is_table(source):
        if not isinstance(source, (tuple, list)) or len(source) != 2:
            got = type(source).__name__ + (f" of length {len(source)}" if isinstance(source, (tuple, list)) else "")
            raise InputError(f"got {got} as pairs; expected two arrays, (x, y), or a table")
        x, y = source
        return Pairs(x, y, tuple(names or names_in(x) or ()), tuple(y_names or names_in(y) or ()))
    if _is_arrays(source):
        x, y = (values.reshape(len(values), -1) for values in arrays_of(source, ("x", "y")))
        return Pairs(x, y, tuple(names or ()), tuple(y_names or ()))
    found = read_columns(source)
    missing = [name for name in names or () if name not in found.names]
    if missing or not names:
        got = f"no column {missing[0]!r}" if missing else "no names of parameters"
        raise InputError(
            f"got {got} of {found.source} (columns {some(found.names)}); expected which columns are parameters; try "
            f"names=[{found.names[0]!r}] (command line: --parameters {found.names[0]})"
        )
    rest = tuple(y_names or (name for name in found.names if name not in names))
    if not rest:
        raise InputError(f"got only parameters in {found.source}; expected columns of data too")
    values = table_of(found, (*names, *rest), drop_invalid=False, min_rows=1).values
    return Pairs(*np.split(values, [len(names)], axis=1), tuple(names), rest)


def _is_arrays(source):
    return isinstance(source, (str, os.PathLike)) and os.fspath(source).lower().endswith(".npz")


def arrays_of(path: str | os.PathLike, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of an .npz file, with equally many rows.

    Raises:
        InputError: the file cannot be read, or has other arrays.
    """
    label = repr(os.fspath(path))
    held: list[str] = []
    try:
        with arrays_in(Path(path).expanduser()) as content:
            held = list(content)
            first, second = (content[name] for name in names)
    except KeyError:
        raise InputError(
            f"got {label} with the arrays {some(held) or 'none'}; expected {names[0]} and {names[1]}"
        ) from None
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"got {label}, which cannot be read ({reason}); expected an .npz file of two arrays") from None
    if not first.ndim or not second.ndim or len(first) != len(second):
        raise InputError(
            f"got {names[0]} of shape {first.shape} and {names[1]} of shape {second.shape} in {label}; expected as "
            "many rows in both"
        )
    return first, second
