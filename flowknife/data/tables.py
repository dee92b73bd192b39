"""Numeric tables: reading from arrays, data frames and files, checking, and writing.

Examples:
    >>> from flowknife.data import load_table
    >>> table = load_table([[1.0, 2.0], [3.0, 4.0], [5.0, float("nan")]], drop_invalid=True)
    >>> table.values.shape, table.names, table.dropped_rows
    ((2, 2), ('x1', 'x2'), (2,))
"""

import csv
import gzip
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from flowknife._files import replacing
from flowknife.data._cells import inert
from flowknife.data._read import (
    TABLE_SUFFIXES,
    Columns,
    columns_as_written,
    in_order,
    is_header,
    names_in,
    pandas,
    places_of,
    read_columns,
    some,
    suffix_of,
)
from flowknife.errors import InputError

__all__ = [
    "TABLE_SUFFIXES",
    "Columns",
    "Table",
    "columns_as_written",
    "in_order",
    "load_table",
    "names_in",
    "read_columns",
    "save_table",
    "table_of",
]


@dataclass(frozen=True)
class Table:
    """A table of finite numbers.

    Attributes:
        values: shape (n, d), float32; float64 if float32 would lose the variation of a column.
        names: the d column names.
        dropped: number of rows left out because of a missing or infinite value.
        dropped_rows: their indices in the source, counted from 0 without the header.
        kept: columns kept as written, by name, for the same n rows.
    """

    values: np.ndarray = field(repr=False)
    names: tuple[str, ...]
    dropped: int = 0
    dropped_rows: tuple[int, ...] = ()
    kept: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def columns(self, names: Sequence[str], source: str = "a table") -> np.ndarray:
        """The columns of these names, in this order; matched by position if one side has no names.

        Args:
            names: names of the columns.
            source: description of the table, for the error.

        Raises:
            InputError: if one of them is missing.
        """
        return self.values[:, places_of(names, self.names, self.names, source)]


def load_table(
    source: Any,
    *,
    columns: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    drop_invalid: bool = False,
    min_rows: int = 2,
) -> Table:
    """Read a table of numbers.

    A CSV or TSV file (UTF-8; cells separated by comma, semicolon or tab) has a header unless every cell of its first
    row is a number. Numbers are written in decimal digits: `1_0`, `0x10` and `1,5` are text, and so is an integer that
    double precision cannot represent. Empty cells and NA, NaN, null, none, - and ? are missing values; true and false
    are 1 and 0; blank lines are skipped. Cells of text in a DataFrame are read in the same way. An unnamed first column
    that counts 0, 1, 2, ... is the index that pandas writes, and is left out. Columns without a name, or with the names
    0, 1, 2, ... in this order, are called x1, x2, ...

    Values are returned as float32, unless rounding would move some value by more than a thousandth of its column's
    standard deviation (as for time stamps in seconds within one day). Then the whole table is float64.

    Args:
        source: an array or nested list of shape (n, d) or (n,); a pandas or polars DataFrame or Series; or the path of
            a file that ends in one of `TABLE_SUFFIXES` (.npz with a single array; no Python objects in .npy, .npz).
        columns: names of the columns to read, in this order; other columns may hold anything. They are matched by name,
            or by position if one side has no names. Default: all but those in `keep`.
        keep: names of columns to keep as written, if they exist; they may hold text.
        drop_invalid: leave out and count the rows with missing or infinite values, which are an error otherwise.
        min_rows: smallest number of usable rows.

    Raises:
        InputError: the source is missing, cannot be read, is not a table of real numbers, has fewer than `min_rows`
            rows, lacks a column, or has rows with missing or infinite values.
    """
    return table_of(read_columns(source, keep), columns, drop_invalid=drop_invalid, min_rows=min_rows)


def table_of(
    found: Columns,
    columns: Sequence[str] | None = None,
    *,
    drop_invalid: bool,
    min_rows: int,
    narrow: bool = True,
) -> Table:
    """The table of columns already read, see `load_table`; without `narrow` always in double precision."""
    if columns is None:
        places = [place for place, name in enumerate(found.names) if name not in found.kept]
        names = tuple(found.names[place] for place in places)
        if not names:
            raise InputError(f"got {found.source} without columns of numbers; expected at least one")
    else:
        places, names = found.places(columns), tuple(columns)
        if taken := [name for name in names if name in found.kept]:
            raise InputError(f"got the column {taken[0]!r} of {found.source} as numbers and as text; expected one")
    foreign = {name: found.foreign[place] for name, place in zip(names, places, strict=True) if place in found.foreign}
    _refuse_foreign(foreign, found.source)
    values = found.values if places == list(range(len(found.names))) else found.values[:, places]
    return _finite_rows(values, names, found, drop_invalid, min_rows, narrow)


def _refuse_foreign(foreign: dict[str, str], label: str) -> None:
    """Raise one InputError for all non-numeric columns, with their names and contents."""
    if foreign:
        found = some([f"{name!r} ({what})" for name, what in foreign.items()])
        columns = "a column that is" if len(foreign) == 1 else f"{len(foreign)} columns that are"
        raise InputError(
            f"got {label} with {columns} not numbers: {found}; drop such columns or encode them as numbers"
        )


def save_table(path: str | os.PathLike, values: ArrayLike, names: Sequence[str] | None = None) -> None:
    """Write a table atomically; missing folders are created.

    Numbers in text files have the fewest digits that read back as the same number. `.npy` and `.npz` hold no names.

    Args:
        path: the file; its ending, one of `TABLE_SUFFIXES`, chooses the format.
        values: shape (n, d), or (n,) for a single column.
        names: the d column names; default x1, x2, ...

    Raises:
        InputError: for an unknown ending, values that are not a table, or names that do not fit them.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    suffix = suffix_of(path)
    matrix = np.asarray(values)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2:
        raise InputError(f"got values of shape {matrix.shape}; expected (n, d); try values.reshape(len(values), -1)")
    if matrix.dtype.kind == "O" and "sv" not in suffix:
        raise InputError(f"got values of Python objects for a {suffix} file; expected numbers; try a .csv file")
    header = [f"x{i + 1}" for i in range(matrix.shape[1])] if names is None else [str(name) for name in names]
    if len(header) != matrix.shape[1]:
        raise InputError(f"got {len(header)} names for {matrix.shape[1]} columns; expected one name per column")
    if "sv" in suffix and not is_header(header):
        raise InputError(
            f"got only numbers as names ({some(header)}); expected words, since numbers read back as data; try a "
            ".parquet file, which keeps such names"
        )

    def write(stream: BinaryIO) -> None:
        if suffix == ".npy":
            np.save(stream, matrix, allow_pickle=False)
        elif suffix == ".npz":
            np.savez(stream, values=matrix)
        elif suffix == ".parquet":
            pandas().DataFrame(matrix, columns=header).to_parquet(stream, index=False)
        else:
            text = _as_text(header, matrix, "\t" if ".tsv" in suffix else ",")
            stream.write(
                gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text
            )  # without a date, so that files are reproducible

    with replacing(path) as place, place.open("wb") as stream:
        write(stream)


def _finite_rows(
    values: np.ndarray, names: tuple[str, ...], found: Columns, drop_invalid: bool, min_rows: int, narrow: bool
) -> Table:
    """Check for missing values and too few rows; converts float64 values to the final table."""
    label = found.source
    finite = np.isfinite(values)
    valid = finite.all(axis=1)
    invalid_rows = tuple(np.flatnonzero(~valid).tolist())
    if invalid_rows and not drop_invalid:
        columns = [f"{names[i]!r}" for i in np.flatnonzero(~finite.all(axis=0))]
        raise InputError(
            f"got {label} with missing or infinite values in {len(invalid_rows)} of {len(values)} rows "
            f"(rows {some(invalid_rows)}, counted from 0; columns {some(columns)}); expected finite numbers; "
            "drop those rows with drop_invalid=True (command line: --drop-invalid), or drop or fix those columns"
        )
    kept = values[valid]
    if len(kept) < min_rows:
        dropped = f", {len(invalid_rows)} with missing or infinite values dropped" if invalid_rows else ""
        raise InputError(f"got {label} with too few usable rows ({len(kept)}{dropped}); expected at least {min_rows}")
    beside = {name: column[valid] for name, column in found.kept.items()}
    return Table(_narrowed(kept) if narrow else kept, names, len(invalid_rows), invalid_rows, beside)


def _narrowed(values: np.ndarray) -> np.ndarray:
    """float32 if that preserves the variation of every column; else the float64 values unchanged."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
        error = np.abs(narrow - values).max(axis=0)
        # a constant column has no deviation: unless float32 holds its value exactly, the table stays float64
        keeps = error <= np.where(np.ptp(values, axis=0) == 0, 0.0, 1e-3 * values.std(axis=0))
    return narrow if (keeps & np.isfinite(error)).all() else values


def _as_text(header: Sequence[str], matrix: np.ndarray, delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(map(inert, header))
    if matrix.dtype.kind == "O":  # not as an array of text, where every cell takes the space of the longest
        writer.writerows([inert(cell) if isinstance(cell, str) else str(cell) for cell in row] for row in matrix)
    else:
        writer.writerows(matrix.astype(str).tolist())  # the fewest digits that read back as the same number
    return text.getvalue().encode("utf-8", "backslashreplace")  # file names need not be valid text
