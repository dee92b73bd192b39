"""Tables of numbers: read from arrays, data frames and files, checked, and written back.

>>> from flowknife.data import load_table
>>> table = load_table([[1.0, 2.0], [3.0, 4.0], [5.0, float("nan")]], drop_invalid=True)
>>> table.values.shape, table.names, table.dropped_rows
((2, 2), ('x1', 'x2'), (2,))
"""

import contextlib
import csv
import gzip
import io
import os
import reprlib
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from flowknife.errors import InputError, StorageError

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".npy", ".npz")
"""The file formats of `load_table` and `save_table`."""

_MISSING = {"", "na", "n/a", "nan", "null", "none", "<na>", "-", "?"}
_TRUTH = {"true": 1.0, "false": 0.0}
_EXPECTED = "expected numbers of shape (n, d) or (n,), a DataFrame, or the path of a table file"


@dataclass(frozen=True)
class Table:
    """A table that holds nothing but finite numbers.

    Attributes:
        values: shape (n, d), float32; float64 where float32 would lose the variation of a column.
        names: the d column names.
        dropped: number of rows left out because they held a missing or infinite value.
        dropped_rows: their numbers in the source, counted from 0 without the header.
    """

    values: np.ndarray
    names: tuple[str, ...]
    dropped: int = 0
    dropped_rows: tuple[int, ...] = ()

    def columns(self, names: Sequence[str], source: str = "a table") -> np.ndarray:
        """The columns of those names, in their order; by place where one of the two has no names.

        Args:
            names: of the columns.
            source: where the table comes from, for the error.

        Raises:
            InputError: if one of them is missing.
        """
        unnamed = [tuple(f"{letter}{i + 1}" for i in range(len(names))) for letter in "xy"]
        if set(names) <= set(self.names):
            return self.values[:, [self.names.index(name) for name in names]]
        if len(names) == len(self.names) and (tuple(names) in unnamed or tuple(self.names) in unnamed):
            return self.values
        raise InputError(f"got {source} with the columns {_some(self.names)}; expected {_some(names)}, as in training")


def load_table(source: Any, *, drop_invalid: bool = False, min_rows: int = 2) -> Table:
    """Read a table of numbers.

    A CSV or TSV file (UTF-8; cells separated by comma, semicolon or tab) has a header unless every cell of its first
    row is a number. Empty cells and NA, NaN, null, none, - and ? are missing values; true and false are 1 and 0; blank
    lines are skipped. An unnamed first column that counts 0, 1, 2, ... is the index that pandas writes, and is left
    out. Columns without a name are called x1, x2, ...

    Values come back as float32, unless rounding to it would move some value by more than a thousandth of its column's
    standard deviation (time stamps in seconds within one day, say): then the whole table is float64.

    Args:
        source: an array or nested list of shape (n, d) or (n,); a pandas or polars DataFrame or Series; or the path of
            a file that ends in one of `TABLE_SUFFIXES` (.npz with a single array; no Python objects in .npy, .npz).
        drop_invalid: leave out and count the rows with missing or infinite values, which are an error otherwise.
        min_rows: how many usable rows are needed at least.

    Raises:
        InputError: the source is missing, cannot be read, is no table of real numbers, has fewer than `min_rows` rows,
            or has rows with missing or infinite values.
    """
    if isinstance(source, (str, os.PathLike)):
        label = repr(os.fspath(source))
        values, names = _read_file(Path(source).expanduser(), label)
    else:
        label = f"{type(source).__name__} input"
        values, names = _read_object(source, label)
    if values.shape[1] == 0:
        raise InputError(f"got {label} without columns; expected at least one column of numbers")
    return _finite_rows(values, names, label, drop_invalid, min_rows)


def save_table(path: str | os.PathLike, values: ArrayLike, names: Sequence[str] | None = None) -> None:
    """Write a table; the file appears whole or not at all, and missing folders are made.

    Numbers in text files have the fewest digits that read back as the same number. `.npy` and `.npz` hold no names.

    Args:
        path: the file; its ending, one of `TABLE_SUFFIXES`, chooses the format.
        values: shape (n, d), or (n,) for a single column.
        names: the d column names; default x1, x2, ...

    Raises:
        InputError: an unknown ending, values that are no table, or names that do not fit them.
        StorageError: the file cannot be written.
    """
    path = Path(path)
    suffix = _suffix(path)
    matrix = np.asarray(values)
    matrix = matrix[:, None] if matrix.ndim == 1 else matrix
    if matrix.ndim != 2:
        raise InputError(f"got values of shape {matrix.shape}; expected (n, d); try values.reshape(len(values), -1)")
    if matrix.dtype.kind == "O" and "sv" not in suffix:
        raise InputError(f"got values of Python objects for a {suffix} file; expected numbers; try a .csv file")
    header = [f"x{i + 1}" for i in range(matrix.shape[1])] if names is None else [str(name) for name in names]
    if len(header) != matrix.shape[1]:
        raise InputError(f"got {len(header)} names for {matrix.shape[1]} columns; expected one name per column")
    if "sv" in suffix and not _is_header(header):
        raise InputError(
            f"got only numbers as names ({_some(header)}); expected words, since numbers read back as data"
        )

    def write(stream: BinaryIO) -> None:
        if suffix == ".npy":
            np.save(stream, matrix, allow_pickle=False)
        elif suffix == ".npz":
            np.savez(stream, values=matrix)
        elif suffix == ".parquet":
            _pandas().DataFrame(matrix, columns=header).to_parquet(stream, index=False)
        else:
            text = _as_text(header, matrix, "\t" if ".tsv" in suffix else ",")
            stream.write(
                gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text
            )  # undated: the same each time

    _write_whole(path, write)


def _read_object(source: Any, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Values (float64, missing as NaN) and names of an array, a nested list, a DataFrame or a Series."""
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):  # a DataFrame of pandas or polars
        columns = (source[column].to_numpy() for column in source.columns)
        return _stack(columns, source.columns, label, len(source))
    if hasattr(source, "name") and hasattr(source, "to_numpy"):  # a Series of pandas or polars
        return _stack([source.to_numpy()], ["" if source.name is None else source.name], label, len(source))
    if isinstance(source, np.ma.MaskedArray):
        source = source.astype(np.float64).filled(np.nan)
    try:
        values = np.asarray(source)
    except (TypeError, ValueError):
        raise InputError(f"got {label} that is no rectangular array; {_EXPECTED}") from None
    return _read_array(values, label)


def _read_array(values: np.ndarray, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    if values.ndim not in (1, 2):
        advice = "; try x.reshape(len(x), -1)" if values.ndim > 2 else ""
        raise InputError(f"got {label} of shape {values.shape}; {_EXPECTED}{advice}")
    matrix = values[:, None] if values.ndim == 1 else values
    return _stack(matrix.T, [""] * matrix.shape[1], label, len(matrix))


def _stack(
    columns: Iterable[np.ndarray], labels: Iterable[Any], source: str, rows: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns side by side as float64, shape (rows, d), and their names; refuses columns that are not numbers."""
    names = _distinct_names(labels, source)
    matrix = np.empty((rows, len(names)))
    foreign = {}
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        numbers = _as_numbers(column)
        if isinstance(numbers, str):
            foreign[name] = numbers
        else:
            matrix[:, index] = numbers
    _refuse_foreign(foreign, source)
    return matrix, names


def _as_numbers(column: np.ndarray) -> np.ndarray | str:
    """A column as float64; or words for what it holds instead of numbers."""
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    if column.dtype.kind == "V" and column.dtype.type is not np.void:  # bfloat16 and the other small floats of JAX
        return column.astype(np.float32).astype(np.float64)
    if column.dtype.kind not in "OUS":
        return str(column.dtype)
    numbers = np.empty(len(column))
    for row, cell in enumerate(column):
        if isinstance(cell, (Real, Decimal, np.bool_)):
            numbers[row] = cell
        elif cell is None or str(cell) in ("<NA>", "NaT"):
            numbers[row] = np.nan
        else:
            return f"{reprlib.repr(str(cell))} in row {row}"
    return numbers


def _refuse_foreign(foreign: dict[str, str], label: str) -> None:
    """Raise one InputError for all columns that are not numbers: their names, and what they hold."""
    if foreign:
        found = _some([f"{name!r} ({what})" for name, what in foreign.items()])
        columns = "a column that is" if len(foreign) == 1 else f"{len(foreign)} columns that are"
        raise InputError(
            f"got {label} with {columns} not numbers: {found}; drop such columns or encode them as numbers"
        )


def _read_file(path: Path, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        if path.is_dir():
            raise InputError(f"got the folder {label}; expected a table file ending in {' '.join(TABLE_SUFFIXES)}")
        if not path.exists():
            raise InputError(f"there is no file {label}; expected a table file; check the name and the working folder")
        suffix = _suffix(path)
        if suffix in (".npy", ".npz"):
            return _read_numpy(path, label)
        if suffix == ".parquet":
            return _read_object(_pandas().read_parquet(path), label)
        return _read_text(path, suffix, label)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"no permission to read {label}; expected a readable table file; check its mode") from None
    except (ValueError, OSError, EOFError, MemoryError, csv.Error, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{label} is damaged or not what its ending says ({_first_line(error)}); save it anew"
        ) from None


def _read_numpy(path: Path, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    try:
        with path.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return _read_array(content, label)
            if len(content.files) != 1:
                held = _some(content.files) or "none"
                raise InputError(f"got {label} with {len(content.files)} arrays ({held}); expected one; save it alone")
            return _read_array(content[content.files[0]], label)
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise InputError(f"{label} holds no plain array; expected numbers, Python objects are not loaded") from None


def _read_text(path: Path, suffix: str, label: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Parse a CSV or TSV file in one pass, row by row."""
    opener: Callable[..., Any] = gzip.open if suffix.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as stream:
        first = stream.readline()
        delimiter = "\t" if ".tsv" in suffix else max(",;\t", key=first.count)
        stream.seek(0)
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
        rows = ((reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip())
        first_line, cells = next(rows, (0, []))
        if not cells:
            raise InputError(f"got the empty file {label}; expected a table of numbers")
        if _is_header(cells):
            header = [cell.strip() for cell in cells]
            header[0] = header[0].removeprefix("#").strip()  # as numpy.savetxt writes it
        else:
            header = [""] * len(cells)
            rows = chain([(first_line, cells)], rows)
        matrix = _parse_rows(rows, _distinct_names(header, label), label)
    if _is_header(header) and not header[0] and np.array_equal(matrix[:, 0], np.arange(len(matrix))):
        header, matrix = header[1:], matrix[:, 1:]
    return matrix, _distinct_names(header, label)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a first row names the columns: some cell is text, or it is the empty cell, 0, 1, 2, ... of pandas."""
    of_pandas = len(cells) > 1 and list(cells) == ["", *map(str, range(len(cells) - 1))]
    return of_pandas or any(_parse_cell(cell) is None for cell in cells)


def _parse_rows(rows: Iterable[tuple[int, list[str]]], names: Sequence[str], label: str) -> np.ndarray:
    """Cells as float64, shape (n, d), missing ones as NaN; refuses text and rows of another length."""
    numbers = array("d")  # eight bytes a cell, where a list of floats would take four times as many
    foreign: dict[str, str] = {}
    for line, cells in rows:
        if len(cells) != len(names):
            raise InputError(
                f"got {label} with {len(cells)} instead of {len(names)} cells in line {line}; "
                "expected every line as long as the first; mend or delete that line"
            )
        try:
            numbers.extend([float(cell) for cell in cells])
        except ValueError:
            for name, cell in zip(names, cells, strict=True):
                number = _parse_cell(cell)
                if number is None:
                    foreign.setdefault(name, f"{reprlib.repr(cell)} in line {line}")
                numbers.append(np.nan if number is None else number)
    _refuse_foreign(foreign, label)
    return np.frombuffer(numbers, dtype=np.float64).reshape(-1, len(names))


def _parse_cell(cell: str) -> float | None:
    """The number in a cell, NaN if it is missing, None if it is text."""
    text = cell.strip().lower()
    try:
        return float(text)
    except ValueError:
        return np.nan if text in _MISSING else _TRUTH.get(text)


def _distinct_names(labels: Iterable[Any], label: str) -> tuple[str, ...]:
    """Column labels as distinct names; x1, x2, ... for empty labels, and for all where they are just numbers."""
    names = [str(name).strip() for name in labels]
    if all(name.isdecimal() for name in names):
        names = [""] * len(names)
    names = [name or f"x{i + 1}" for i, name in enumerate(names)]
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(
            f"got {label} with several columns named {_some(repeated)}; expected each name once; rename them"
        )
    return tuple(names)


def _finite_rows(values: np.ndarray, names: tuple[str, ...], label: str, drop_invalid: bool, min_rows: int) -> Table:
    """Check for missing values and too few rows; float64 in, the finished table out."""
    finite = np.isfinite(values)
    valid = finite.all(axis=1)
    invalid_rows = tuple(np.flatnonzero(~valid).tolist())
    if invalid_rows and not drop_invalid:
        columns = [f"{names[i]!r}" for i in np.flatnonzero(~finite.all(axis=0))]
        raise InputError(
            f"got {label} with missing or infinite values in {len(invalid_rows)} of {len(values)} rows "
            f"(rows {_some(invalid_rows)}, counted from 0; columns {_some(columns)}); expected finite numbers; "
            "drop those rows with drop_invalid=True (command line: --drop-invalid), or drop or mend those columns"
        )
    kept = values[valid]
    if len(kept) < min_rows:
        dropped = f", {len(invalid_rows)} with missing or infinite values dropped" if invalid_rows else ""
        raise InputError(f"got {label} with too few usable rows ({len(kept)}{dropped}); expected at least {min_rows}")
    return Table(_narrowed(kept), names, len(invalid_rows), invalid_rows)


def _narrowed(values: np.ndarray) -> np.ndarray:
    """float32 where that keeps the variation of every column; else the float64 values unchanged."""
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = values.astype(np.float32)
        error = np.abs(narrow - values).max(axis=0)
        # a constant column has no deviation: its value comes back exactly, or the table stays as it is
        keeps = error <= np.where(np.ptp(values, axis=0) == 0, 0.0, 1e-3 * values.std(axis=0))
    return narrow if (keeps & np.isfinite(error)).all() else values


def _suffix(path: Path) -> str:
    """The longest ending of `path` among TABLE_SUFFIXES."""
    name = path.name.lower()
    for suffix in sorted(TABLE_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise InputError(
        f"got {os.fspath(path)!r}, a file of unknown kind; expected an ending of {' '.join(TABLE_SUFFIXES)}"
    )


def _pandas() -> Any:
    try:
        import pandas
        import pyarrow  # noqa: F401, pandas reads Parquet with it
    except ImportError:
        raise InputError(
            "Parquet files need pandas and pyarrow; try pip install 'flowknife[tables]', or a .csv file"
        ) from None
    return pandas


def _as_text(header: Sequence[str], matrix: np.ndarray, delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(matrix.astype(str).tolist())  # numpy's text has the fewest digits that survive the round trip
    return text.getvalue().encode()


def _write_whole(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write beside `path`, then rename: a reader sees the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            write(stream)
        partial.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {os.fspath(path)!r} ({_first_line(error)}); try another place") from error
    finally:
        with contextlib.suppress(OSError):  # renamed already, or never made
            partial.unlink()


def _some(items: Sequence[Any]) -> str:
    """The first five items, and whether there are more."""
    return ", ".join(str(item) for item in items[:5]) + (", ..." if len(items) > 5 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
