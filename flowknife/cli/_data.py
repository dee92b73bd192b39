"""Data that the verbs read: rows, rows with labels, images, observations, and pairs of parameters and data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from flowknife.apps import Posterior
    from flowknife.data import ImageSet, Table, White
    from flowknife.data.images import Partition

LABEL = "label"
"""The column of labels, if no other is named."""


@dataclass(frozen=True)
class Labelled:
    """A table whose rows have labels.

    Attributes:
        table: the columns of numbers.
        labels: one for each row of `table`, as written; "", None or NaN where unknown.
        column: the name of the column they come from.
    """

    table: "Table"
    labels: "np.ndarray"
    column: str


def read_images(
    data: str,
    shape: Sequence[int],
    crop: float = 1.0,
    partition: "Partition | None" = None,
    white: "White | None" = None,
) -> "ImageSet":
    """Images of a folder, its address (s3://...) or a file of them, in the shape (height, width, channels) asked."""
    from flowknife.data.images import as_images

    height, width, channels = shape
    form: dict[str, Any] = {"channels": channels, "partition": partition, "crop": crop, "white": white}
    return as_images(data, (height, width), show_progress=True, **form)


def read_labelled(data: str, column: str = "", *, drop_invalid: bool = False) -> Labelled:
    """The rows of a table and the label of each, from the column of that name, which may hold words.

    An .npz file holds two arrays, x and labels.

    Args:
        data: the path of the table.
        column: of the labels; "" for `LABEL`.
        drop_invalid: leave out rows with missing or infinite numbers.

    Raises:
        InputError: the table cannot be used, or has no such column.
    """
    import numpy as np

    from flowknife.data import load_table
    from flowknife.data.tables import read_columns, table_of

    column = column or LABEL
    if data.lower().endswith(".npz"):
        x, labels = arrays_of(data, ("x", "labels"))
        table = load_table(x, drop_invalid=drop_invalid, min_rows=1)
        return Labelled(table, np.delete(labels, table.dropped_rows), column)
    found = read_columns(data, keep=(column,))
    if column not in found.kept:
        raise InputError(
            f"got {data!r} without a column {column!r} (it has {_some(found.names)}); expected a label for each row; "
            f"try --label {found.names[-1]}"
        )
    if not len(found.values):
        raise InputError(f"got {data!r} with no rows; expected a header of different names, and rows below it")
    table = table_of(found, drop_invalid=drop_invalid, min_rows=1)
    return Labelled(table, table.kept[column], column)


def read_rows(data: str, names: Sequence[str], keep: Sequence[str] = (), *, drop_invalid: bool = False) -> "Table":
    """The columns of these names, as in training, and those kept as written; other columns may hold anything.

    Args:
        data: the path of the table.
        names: of the columns of numbers, in their order.
        keep: of columns that are kept as written, if they are there.
        drop_invalid: leave out rows with missing or infinite numbers.
    """
    from flowknife.data import load_table

    return load_table(data, columns=names, keep=keep, drop_invalid=drop_invalid, min_rows=1)


def read_observations(
    posterior: "Posterior", data: str, keep: Sequence[str] = (), *, drop_invalid: bool = False
) -> "Table":
    """Observations (k, m) of a table, one in each row; a plain array of m numbers is one observation."""
    from dataclasses import replace

    from flowknife.data import load_table

    length = len(posterior.y_names)
    if data.lower().endswith((".npy", ".npz")):
        table = load_table(data, drop_invalid=drop_invalid, min_rows=1)
        if table.values.shape == (length, 1) != (1, 1):
            return replace(table, values=table.values.T, names=posterior.y_names)
    return read_rows(data, posterior.y_names, keep, drop_invalid=drop_invalid)


def read_pairs(
    data: str, parameters: Sequence[str] = (), y_names: Sequence[str] = ()
) -> "tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]":
    """Parameters, data, and the names of both.

    An .npz file holds two arrays, x and y. In a table some columns are parameters, all others (or those named) data.

    Raises:
        InputError: the file cannot be used, or no parameters are named in a table.
    """
    import numpy as np

    from flowknife.data.tables import read_columns, table_of

    if data.lower().endswith(".npz"):
        x, y = arrays_of(data, ("x", "y"))
        x, y = (values.reshape(len(values), -1) for values in (x, y))
        return x, y, tuple(parameters), tuple(y_names)
    found = read_columns(data)
    missing = [name for name in parameters if name not in found.names]
    if missing or not parameters:
        got = f"no column {missing[0]!r}" if missing else "no names of parameters"
        raise InputError(
            f"got {got} of {data!r} (columns {_some(found.names)}); expected which columns are parameters; try "
            f"--parameters {found.names[0]}"
        )
    rest = tuple(y_names) or tuple(name for name in found.names if name not in parameters)
    if not rest:
        raise InputError(f"got only parameters in {data!r}; expected columns of data too")
    x, y = np.split(table_of(found, (*parameters, *rest), drop_invalid=False, min_rows=1).values, [len(parameters)], 1)
    return x, y, tuple(parameters), rest


def arrays_of(data: str, names: tuple[str, str]) -> "tuple[np.ndarray, np.ndarray]":
    """Two arrays of an .npz file, with as many rows.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    import zipfile

    import numpy as np

    try:
        with np.load(Path(data).expanduser(), allow_pickle=False) as content:
            arrays = content.files
            first, second = (content[name] for name in names)
    except KeyError:
        raise InputError(
            f"got {data!r} with the arrays {_some(arrays) or 'none'}; expected {names[0]} and {names[1]}"
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
