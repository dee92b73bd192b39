"""Reading tables from files, data frames and arrays: numeric columns, and columns kept as written."""

import csv
import gzip
import io
import os
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from flowknife._files import open_file
from flowknife.data._arrays import arrays_in, packed_too_tightly
from flowknife.data._cells import (
    as_named,
    as_written,
    beyond_double,
    is_beyond_double,
    no_number,
    number_in,
    numbers_of,
    plain,
)
from flowknife.errors import InputError

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".npy", ".npz")
"""The file formats of tables."""

_LONGEST_LINE = 2**24  # characters
_MOST_TEXT = 2**22  # bytes of text up to which any compression ratio is allowed
_TIGHTEST_TEXT = 100  # largest compression ratio of a larger text

_Read = TypeVar("_Read")

_EXPECTED = "expected numbers of shape (n, d) or (n,), a DataFrame, or the path of a table file"


@dataclass(frozen=True)
class Columns:
    """The columns of a source.

    Attributes:
        source: a short description.
        labels: name of each column in the source, "" if it has none.
        names: distinct names of the columns; x1, x2, ... without names.
        values: numbers, float64 of shape (n, d), NaN if missing.
        foreign: descriptions of non-numeric columns, by index.
        kept: columns kept as written, by name: the values of a data frame; for text files see `as_written`.
    """

    source: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    values: np.ndarray
    foreign: dict[int, str]
    kept: dict[str, np.ndarray]

    def places(self, wanted: Sequence[str]) -> list[int]:
        """Indices of the columns of these names; see `places_of`."""
        return places_of(wanted, self.names, self.labels, self.source)


def places_of(wanted: Sequence[str], names: Sequence[str], labels: Sequence[str], source: str) -> list[int]:
    """The index of each wanted column in `names`.

    Columns are matched by name; additional columns are allowed. If one side has only default names (x1, x2, ... or 0,
    1, 2, ...) and no name is shared, equally many columns are matched by position.

    Args:
        wanted: names of the columns in training.
        names: names of the available columns.
        labels: their names in the source, "" without a name.
        source: description of the source, for the error.

    Raises:
        InputError: for missing columns.
    """
    wanted, counted = list(wanted), [str(i) for i in range(len(wanted))]
    unnamed = _is_default(wanted)
    if not any(labels):  # an array, or a file without a header
        if len(names) == len(wanted):
            return list(range(len(wanted)))
        raise InputError(
            f"got {source} with {len(names)} columns without names; expected {len(wanted)}, the columns {some(wanted)}"
        )
    for there, asked in ((names, wanted), (labels, wanted), *([(labels, counted)] if unnamed else [])):
        places = {name: place for place, name in reversed(list(enumerate(there)))}
        if set(asked) <= set(places):
            return [places[name] for name in asked]
    missing = [name for name in wanted if name not in names]
    if len(names) == len(wanted) == len(missing) and (unnamed or _is_default(names)):
        return list(range(len(wanted)))
    raise InputError(
        f"got {source} with the columns {some(names)}, without {some(missing)}; expected {some(wanted)}, as in training"
    )


def read_columns(source: Any, keep: Sequence[str] = ()) -> Columns:
    """Read a source of `load_table`.

    Args:
        source: as for `load_table`.
        keep: names of columns to keep as written, if they exist.

    Raises:
        InputError: the source is missing, cannot be read, or is not a table.
    """
    if isinstance(source, (str, os.PathLike)):
        columns = _read_file(Path(source).expanduser(), repr(os.fspath(source)), keep)
    else:
        columns = _read_object(source, f"{type(source).__name__} input", keep)
    if not columns.names:
        raise InputError(f"got {columns.source} without columns; expected at least one column of numbers")
    return columns


def in_order(frame: Any, names: Sequence[str]) -> Any:
    """A pandas DataFrame restricted to these columns, in this order; anything else unchanged."""
    if not hasattr(frame, "columns") or not hasattr(frame, "iloc"):
        return frame
    label = f"{type(frame).__name__} input"
    labels, found = _names(frame.columns, label)
    return frame.iloc[:, places_of(names, found, labels, label)]


def names_in(source: Any) -> tuple[str, ...] | None:
    """The names of the columns of a data frame; None for anything else."""
    if not hasattr(source, "columns") or not hasattr(source, "to_numpy"):
        return None
    return _names(source.columns, f"{type(source).__name__} input")[1]


def by_name(source: Any, names: Sequence[str]) -> list[Any] | None:
    """The values of a mapping, or of a Series with names in its index, in the order of `names`; None for anything else.

    Raises:
        InputError: a name is missing or repeated.
    """
    if isinstance(source, Mapping):
        index, values = list(source), list(source.values())
    elif hasattr(source, "to_numpy") and hasattr(source, "index") and np.ndim(source) == 1:
        index, values = list(source.index), list(source.to_numpy())
        if not all(isinstance(name, str) for name in index) and {str(name) for name in index} != set(names):
            return None  # row numbers, not names
    else:
        return None
    found = {str(name): value for name, value in zip(index, values, strict=True)}
    if len(found) < len(index) or not set(names) <= set(found):
        raise InputError(f"got numbers named {some(index)}; expected one for each of {some(names)}")
    return [found[name] for name in names]


def _read_object(source: Any, label: str, keep: Sequence[str]) -> Columns:
    """The columns of an array, a nested list, a DataFrame or a Series."""
    if hasattr(source, "columns") and hasattr(source, "to_numpy"):  # a DataFrame of pandas or polars
        if hasattr(source, "iloc"):  # by position: repeated names are refused below
            columns = (source.iloc[:, i].to_numpy() for i in range(len(source.columns)))
        else:
            columns = (source[column].to_numpy() for column in source.columns)
        return _stack(columns, source.columns, label, len(source), keep)
    if hasattr(source, "name") and hasattr(source, "to_numpy") and np.ndim(source) == 1:  # a Series
        name = "" if source.name is None else source.name
        return _stack([source.to_numpy()], [name], label, len(source), keep)
    if hasattr(source, "data_vars"):
        raise InputError(f"got {label}, which holds several arrays; {_EXPECTED}; try x.to_dataframe()")
    if isinstance(source, np.ma.MaskedArray) and source.dtype.kind in "biuf":
        source = source.astype(np.float64).filled(np.nan)
    try:
        values = np.asarray(source)
    except (TypeError, ValueError):
        raise InputError(f"got {label} that is not a rectangular array; {_EXPECTED}") from None
    return _read_array(values, label, keep)


def _read_array(values: np.ndarray, label: str, keep: Sequence[str]) -> Columns:
    if values.ndim not in (1, 2):
        advice = "; try x.reshape(len(x), -1)" if values.ndim > 2 else ""
        raise InputError(f"got {label} of shape {values.shape}; {_EXPECTED}{advice}")
    if (
        values.ndim == 1
        and values.dtype == object
        and any(isinstance(row, (list, tuple, np.ndarray)) for row in values)
    ):
        raise InputError(f"got {label} that is not a rectangular array; {_EXPECTED}")
    matrix = values[:, None] if values.ndim == 1 else values
    return _stack(matrix.T, [""] * matrix.shape[1], label, len(matrix), keep)


def _stack(
    columns: Iterable[np.ndarray], labels: Iterable[Any], source: str, rows: int, keep: Sequence[str]
) -> Columns:
    """Columns side by side."""
    labels, names = _names(labels, source)
    values, foreign, kept = np.full((rows, len(names)), np.nan), {}, {}
    for place, (name, column) in enumerate(zip(names, columns, strict=True)):
        if name in keep:
            kept[name] = column
            continue
        numbers = numbers_of(column)
        if isinstance(numbers, str):
            foreign[place] = numbers
        else:
            values[:, place] = numbers
    return Columns(source, labels, names, values, foreign, kept)


def columns_as_written(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The columns of a table that flowknife wrote, by name: cells of text files as text, those of Parquet as they are.

    Raises:
        InputError: the file is missing, cannot be read, or is not a table of named columns.
    """
    path, label = Path(path).expanduser(), repr(os.fspath(path))

    def read(suffix):
        if suffix == ".parquet":
            frame = _parquet(path, label)
            labels, columns = frame.columns, [frame.iloc[:, i].to_numpy() for i in range(len(frame.columns))]
        else:
            with _open_lines(path, suffix) as lines:
                labels, *rows = csv.reader(lines, delimiter="\t" if ".tsv" in suffix else ",")
            if any(len(row) != len(labels) for row in rows):
                raise ValueError("lines of several lengths")
            columns = [np.array([as_named(cell) for cell in column], object) for column in zip(*rows, strict=True)]
            columns = columns or [np.zeros(0, object)] * len(labels)
            labels = [as_named(name) for name in labels]
        if len(set(map(str, labels))) != len(labels) or not len(labels):
            raise ValueError("a name twice, or none")
        return dict(zip(map(str, labels), columns, strict=True))

    return _in_words(path, label, read, (*_OF_TEXT, ".parquet"))


_OF_TEXT = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


def _read_file(path: Path, label: str, keep: Sequence[str]) -> Columns:
    def read(suffix):
        if suffix in (".npy", ".npz"):
            return _read_array(_numpy_array(path, label), label, keep)
        if suffix == ".parquet":
            return _read_object(_parquet(path, label), label, keep)
        return _read_text(path, suffix, label, keep)

    return _in_words(path, label, read)


def _in_words(path: Path, label: str, read: Callable[[str], _Read], suffixes: Sequence[str] = TABLE_SUFFIXES) -> _Read:
    """The result of `read` for the file's extension; any failure becomes an InputError."""
    try:
        if path.is_dir():
            raise InputError(f"got the folder {label}; expected a table file ending in {' '.join(TABLE_SUFFIXES)}")
        if not path.exists():
            raise InputError(f"there is no file {label}; expected a table file; check the name and the working folder")
        suffix = suffix_of(path)
        if suffix not in suffixes:
            raise InputError(f"got {label}; expected an ending of {' '.join(suffixes)}")
        return read(suffix)
    except InputError:
        raise
    except PermissionError:
        raise InputError(f"no permission to read {label}; expected a readable table file; check its mode") from None
    except (ValueError, OSError, EOFError, MemoryError, OverflowError, csv.Error, zlib.error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{label} is damaged or not what its ending says ({reason}); save it again") from None


def _parquet(path: Path, label: str) -> Any:
    """A DataFrame; decoders raise many kinds of errors for invalid files."""
    frames = pandas()
    from pyarrow.parquet import ParquetFile

    with open_file(path) as stream:
        packed = os.fstat(stream.fileno()).st_size
        try:
            described = ParquetFile(stream).metadata
            numbers = described.num_rows * described.num_columns
            sizes = [described.row_group(i).total_byte_size for i in range(described.num_row_groups)]
        except Exception as error:
            raise ValueError(first_line(error)) from None
        _require_room(max(numbers, sum(sizes) // 8), packed, label)
        stream.seek(0)
        try:
            return frames.read_parquet(stream)
        except Exception as error:
            raise ValueError(first_line(error)) from None


def _numpy_array(path: Path, label: str) -> np.ndarray:
    with arrays_in(path) as content:
        if len(content) != 1:
            arrays = some(list(content)) or "none"
            raise InputError(f"got {label} with {len(content)} arrays ({arrays}); expected one; save it alone")
        (values,) = content.values()
    if values.dtype.kind in "SU":
        raise InputError(f"got {label} with an array of text ({values.dtype}); expected numbers; try a .csv file")
    return values


def _require_room(numbers: int, packed: int, label: str) -> None:
    """Refuse a table that would be much larger in memory than its file, before reading it."""
    if packed_too_tightly(8 * numbers, packed):
        raise InputError(
            f"got {label} with {numbers:,} cells in {packed:,} bytes; expected a table of data; try it unpacked"
        )


@contextmanager
def _open_lines(path: Path, suffix: str) -> Generator[Iterator[str]]:
    """The lines of a text file, of limited length; refuses compressed files with an implausible ratio."""
    with open_file(path) as stream:
        content: Any = stream
        if suffix.endswith(".gz"):
            packed = os.fstat(stream.fileno()).st_size
            content, most = gzip.GzipFile(fileobj=stream), max(_MOST_TEXT, _TIGHTEST_TEXT * packed)
            unpacked = 0
            while block := content.read(2**20):  # checked first, since parsing takes a hundred times as long
                unpacked += len(block)
                if unpacked > most:
                    raise ValueError(f"more than {most / 2**20:,.0f} MiB, packed to {packed:,} bytes")
            content.seek(0)
        with io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as text:
            yield _short_lines(text)


def _short_lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise ValueError(f"a line of more than {_LONGEST_LINE:,} characters")
        yield line


def _read_text(path: Path, suffix: str, label: str, keep: Sequence[str]) -> Columns:
    """Parse a CSV or TSV file in one pass, row by row."""
    with _open_lines(path, suffix) as lines:
        first = next(lines, "")
        delimiter = "\t" if ".tsv" in suffix else max(",;\t", key=first.count)
        reader = csv.reader(chain([first], lines), delimiter=delimiter, skipinitialspace=True)
        rows = ((reader.line_num, row) for row in reader if len(row) > 1 or "".join(row).strip())
        first_line_number, cells = next(rows, (0, []))
        if not cells:
            raise InputError(f"got the empty file {label}, with no rows; expected a table of numbers")
        if is_header(cells):
            header = [as_named(cell.strip()) for cell in cells]
            header[0] = header[0].removeprefix("#").strip()  # as written by numpy.savetxt
            _refuse_data_as_header(header, label)
        else:
            header = [""] * len(cells)
            rows = chain([(first_line_number, cells)], rows)
        labels, names = _names(header, label)
        columns = _parse_rows(rows, Columns(label, labels, names, np.empty((0, len(names))), {}, {}), keep)
    if not is_header(cells):
        _refuse_header_as_data(columns.values, label)
        return columns
    index = not header[0] and len(header) > 1 and names[0] not in columns.kept
    if index and np.array_equal(columns.values[:, 0], np.arange(len(columns.values))):  # as written by pandas
        labels, names = _names(header[1:], label)
        foreign = {place - 1: what for place, what in columns.foreign.items()}
        return Columns(label, labels, names, columns.values[:, 1:], foreign, columns.kept)
    return columns


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row has column names: a cell is text, or it is an empty cell and 0, 1, 2, ... (pandas)."""
    of_pandas = len(cells) > 1 and list(cells) == ["", *map(str, range(len(cells) - 1))]
    return of_pandas or any(number_in(cell) is None for cell in cells)


def _refuse_data_as_header(header: Sequence[str], label: str) -> None:
    """Refuse a first row of text and fractions, such as 5.1,3.5,setosa, which is data rather than a header."""
    for cell in header:
        number = number_in(cell)
        if (
            number is not None
            and np.isfinite(number)
            and not cell.isdecimal()
            and cell.lower() not in ("true", "false")
        ):
            raise InputError(
                f"got {label} whose first line has text and the number {cell}; expected a header of names, or numbers "
                "only; try to put a line of names on top"
            )


def _refuse_header_as_data(values: np.ndarray, label: str) -> None:
    """Refuse a first row of consecutive integers, such as 2019, 2020, ..., which may be names or data.

    Unless it starts at 0, such a row is ambiguous only above columns with fractions.
    """
    columns = values.shape[1]
    if columns < 3 or len(values) < 2 or not np.array_equal(np.diff(values[0]), np.ones(columns - 1)):
        return
    below = values[1:]
    fractions = np.any(np.isfinite(below) & (below != np.round(below)), axis=0)
    if values[0, 0] == 0 or (values[0, 0] == round(values[0, 0]) and fractions.all()):
        counted = ", ".join(f"{number:g}" for number in values[0, :3])
        raise InputError(
            f"got {label} whose first line counts {counted}, ..., which may be names or data; expected a header of "
            "words; try to put a line of names on top"
        )


def _parse_rows(rows: Iterable[tuple[int, list[str]]], empty: Columns, keep: Sequence[str]) -> Columns:
    """Cells as numbers, with NaN for missing cells and text; refuses rows of another length."""
    numbers = array("d")  # eight bytes per cell, a quarter of a list of floats
    foreign: dict[int, str] = {}
    count = len(empty.names)
    kept: dict[int, list[str]] = {place: [] for place, name in enumerate(empty.names) if name in keep}
    for line, cells in rows:
        if len(cells) != count:
            raise InputError(
                f"got {empty.source} with {len(cells)} instead of {count} cells in line {line}; "
                "expected every line as long as the first; fix or delete that line"
            )
        for place, column in kept.items():
            column.append(cells[place])
            cells[place] = "nan"
        try:
            if not plain(cells):
                raise ValueError
            numbers.extend([float(cell) for cell in cells])
        except ValueError:
            for place, cell in enumerate(cells):
                number = number_in(cell)
                if number is None or is_beyond_double(cell):
                    what = no_number(cell) if number is None else beyond_double(cell)
                    foreign.setdefault(place, f"{what} in line {line}")
                numbers.append(np.nan if number is None else number)
    values = np.frombuffer(numbers, dtype=np.float64).reshape(-1, count)
    written = {empty.names[place]: as_written(column) for place, column in kept.items()}
    return Columns(empty.source, empty.labels, empty.names, values, foreign, written)


def _names(labels: Iterable[Any], source: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Column labels as text, and distinct names; x1, x2, ... if the labels are empty or 0, 1, 2, ..."""
    written = tuple(str(label).strip() for label in labels)
    names = [""] * len(written) if list(written) == [str(i) for i in range(len(written))] else written
    names = tuple(name or f"x{i + 1}" for i, name in enumerate(names))
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(f"got {source} with a name twice: several columns named {some(repeated)}; try to rename them")
    return written, names


def _is_default(names: Sequence[str]) -> bool:
    """Whether these are default names."""
    return any(list(names) == [f"{letter}{i + 1}" for i in range(len(names))] for letter in "xy")


def suffix_of(path: Path) -> str:
    """The longest extension of `path` among TABLE_SUFFIXES."""
    name = path.name.lower()
    for suffix in sorted(TABLE_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise InputError(
        f"got {os.fspath(path)!r}, a file of unknown kind; expected an ending of {' '.join(TABLE_SUFFIXES)}"
    )


def pandas() -> Any:
    """Pandas, which reads and writes Parquet.

    Raises:
        InputError: pandas or pyarrow is not installed.
    """
    try:
        import pandas
        import pyarrow  # noqa: F401, pandas reads Parquet with it
    except ImportError:
        raise InputError(
            "Parquet files need pandas and pyarrow; try pip install 'flowknife[tables]', or a .csv file"
        ) from None
    return pandas


def some(items: Sequence[Any]) -> str:
    """The first five items, and whether there are more."""
    return ", ".join(str(item) for item in items[:5]) + (", ..." if len(items) > 5 else "")


def first_line(error: BaseException) -> str:
    """The first line of an error message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
