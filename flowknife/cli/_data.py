"""Data that the verbs read: rows, rows with labels, pictures, observations, and pairs of parameters and data."""

import csv
import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from flowknife.apps import Posterior
    from flowknife.data import ImageSet, Table
    from flowknife.data.images import Partition

LABEL = "label"
"""The column of labels, if no other is named."""


@dataclass(frozen=True)
class Labelled:
    """A table whose rows have labels.

    Attributes:
        table: the columns of numbers.
        labels: one for each row of `table`, words or numbers, "" or NaN where unknown; None if there are none.
        column: the name of the column they come from.
    """

    table: "Table"
    labels: "np.ndarray | None"
    column: str


def read_pictures(
    data: str, shape: Sequence[int], crop: float = 1.0, partition: "Partition | None" = None
) -> "ImageSet":
    """Pictures of a folder, its address (s3://...) or a file of them, in the shape (height, width, channels) asked."""
    from flowknife.apps._image_batches import as_pictures

    height, width, channels = shape
    return as_pictures(data, (height, width), show_progress=True, channels=channels, partition=partition, crop=crop)


def read_labelled(data: str, column: str = "", *, drop_invalid: bool = False, required: bool = True) -> Labelled:
    """The rows of a table and the label of each, from the column of that name, which may hold words.

    An .npz file holds two arrays, x and labels.

    Args:
        data: the path of the table.
        column: of the labels; "" for `LABEL`.
        drop_invalid: leave out rows with missing or infinite numbers.
        required: whether it is an error if there are no labels.

    Raises:
        InputError: the table cannot be used, or has no such column.
    """
    import numpy as np

    from flowknife.data import load_table

    column = column or LABEL
    if data.lower().endswith(".npz"):
        x, labels = arrays_of(data, ("x", "labels"))
        table = load_table(x, drop_invalid=drop_invalid, min_rows=1)
    else:
        columns = _columns(data)
        labels = columns.pop(column, None)
        if labels is None and required:
            raise InputError(
                f"got {data!r} without a column {column!r} (it has {_some(list(columns))}); expected a label for each "
                f"row; try --label {next(reversed(columns), 'NAME')}"
            )
        table = load_table(Columns(columns), drop_invalid=drop_invalid, min_rows=1)
    return Labelled(table, None if labels is None else np.delete(labels, table.dropped_rows), column)


@dataclass(frozen=True)
class _Column:
    """The cells of a column, as a data frame gives them."""

    cells: "np.ndarray"

    def to_numpy(self) -> "np.ndarray":
        return self.cells


@dataclass(frozen=True)
class Columns:
    """Columns by name, with what `load_table` asks of a data frame."""

    cells: "dict[str, np.ndarray]"

    @property
    def columns(self) -> list[str]:
        return list(self.cells)

    def __getitem__(self, name: str) -> _Column:
        return _Column(self.cells[name])

    def __len__(self) -> int:
        return max(map(len, self.cells.values()), default=0)

    def to_numpy(self) -> "np.ndarray":
        import numpy as np

        return np.stack(list(self.cells.values()), axis=1)


def _columns(data: str) -> "dict[str, np.ndarray]":
    """The columns of a table file by name, those of numbers as float64, those of words as text."""
    import numpy as np

    from flowknife.data import load_table

    path = Path(data).expanduser()
    header, rows = (
        _cells(path, data) if path.name.lower().endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz")) else ([], [])
    )
    if all(_number(cell) is not None for cell in header):  # a table without names, or in a format of numbers alone
        table = load_table(data, min_rows=1)
        return dict(zip(table.names, table.values.T, strict=True))
    wrong = next((line for line, row in enumerate(rows, start=2) if len(row) != len(header)), None)
    if wrong is not None or not rows or len(set(header)) < len(header):
        reason = (
            "no rows" if not rows else f"line {wrong} of another length than the first" if wrong else "a name twice"
        )
        raise InputError(f"got {data!r} with {reason}; expected a header of different names, and rows below it")
    cells = np.asarray(rows, dtype=str).T
    numbers = [[_number(cell) for cell in column] for column in cells]
    return {
        name: np.char.strip(column) if None in values else np.asarray(values, float)
        for name, column, values in zip(header, cells, numbers, strict=True)
    }


def _cells(path: Path, data: str) -> tuple[list[str], list[list[str]]]:
    """The first line of a text table, and the others, as words."""
    open_text: Callable[..., Any] = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with open_text(path, "rt", encoding="utf-8-sig", newline="") as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(",;\t", key=first.count), skipinitialspace=True)
            header, *rows = [row for row in reader if row] or [["nothing"]]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InputError(f"got the table {data!r}, which cannot be read ({error}); expected a .csv file") from None
    return [cell.strip() for cell in header], rows


def _number(cell: str) -> float | None:
    """The number in a cell, NaN if it is missing, None if it is a word."""
    from flowknife.data.tables import _parse_cell

    return _parse_cell(cell)


def read_observations(posterior: "Posterior", data: str, drop_invalid: bool = False) -> "tuple[np.ndarray, Table]":
    """Observations (k, m) of a table, one in each row; a plain array of m numbers is one observation."""
    from dataclasses import replace

    from flowknife.data import load_table

    table = load_table(data, drop_invalid=drop_invalid, min_rows=1)
    if table.values.shape == (len(posterior.y_names), 1) != (1, 1) and data.lower().endswith((".npy", ".npz")):
        table = replace(table, values=table.values.T, names=posterior.y_names)
    return table.columns(posterior.y_names, repr(data)), table


def read_pairs(
    data: str, parameters: Sequence[str] = (), y_names: Sequence[str] = ()
) -> "tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]":
    """Parameters, data, and the names of both.

    An .npz file holds two arrays, x and y. In a table some columns are parameters, all others (or those named) data.

    Raises:
        InputError: the file cannot be used, or no parameters are named in a table.
    """
    from flowknife.data import load_table

    if data.lower().endswith(".npz"):
        x, y = arrays_of(data, ("x", "y"))
        x, y = (values.reshape(len(values), -1) for values in (x, y))
        return x, y, tuple(parameters), tuple(y_names)
    table = load_table(data, min_rows=1)
    missing = [name for name in parameters if name not in table.names]
    if missing or not parameters:
        got = f"no column {missing[0]!r}" if missing else "no names of parameters"
        raise InputError(
            f"got {got} of {data!r} (columns {_some(table.names)}); expected which columns are parameters; try "
            f"--parameters {table.names[0]}"
        )
    rest = tuple(y_names) or tuple(name for name in table.names if name not in parameters)
    if not rest:
        raise InputError(f"got only parameters in {data!r}; expected columns of data beside them")
    return table.columns(parameters, repr(data)), table.columns(rest, repr(data)), tuple(parameters), rest


def arrays_of(data: str, names: tuple[str, str]) -> "tuple[np.ndarray, np.ndarray]":
    """Two arrays of an .npz file, with as many rows.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(Path(data).expanduser(), allow_pickle=False) as content:
            held = content.files
            first, second = (content[name] for name in names)
    except KeyError:
        raise InputError(
            f"got {data!r} with the arrays {_some(held) or 'none'}; expected {names[0]} and {names[1]}"
        ) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise InputError(f"got {data!r}, which cannot be read ({error}); expected an .npz file of two arrays") from None
    if not first.ndim or not second.ndim or len(first) != len(second):
        raise InputError(
            f"got {names[0]} of shape {first.shape} and {names[1]} of shape {second.shape} in {data!r}; expected as "
            "many rows in both"
        )
    return first, second


def _some(items: Sequence[str], most: int = 8) -> str:
    return ", ".join(map(str, items[:most])) + (", ..." if len(items) > most else "")
