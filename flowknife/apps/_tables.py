"""Tables with categories, dates and missing values: settings, reading, and discrete columns."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

import numpy as np
import pydantic

from flowknife._frame import Frame
from flowknife._mixed import Mixed
from flowknife.data import Table
from flowknife.data.encoding import Encoding, remedy, suggesting

Categories = Annotated[
    Literal["auto"] | tuple[str, ...] | None,
    pydantic.Field(description="columns of categories, by name; auto: all columns of text or booleans; default: none"),
]
Dates = Annotated[
    Literal["auto"] | tuple[str, ...] | None,
    pydantic.Field(description="columns of dates, by name; auto: all columns that hold only dates; default: none"),
]


Modelled = Any
"""Settings with `categories`, `dates` and `missing`."""


def models_more(config: Modelled) -> bool:
    """Whether the settings add categories, dates or missing values to the model."""
    return not (config.categories is None and config.dates is None and config.missing in (None, "refuse"))


def encoding_of(x: Any, names: Sequence[str] | None, config: Modelled, beside: Sequence[str] = ()) -> Encoding:
    """The encoding of the columns of a table as numbers, see `Encoding.of`.

    Raises:
        InputError: a column does not match the settings.
    """
    how = {"categories": config.categories, "dates": config.dates, "missing": config.missing == "model"}
    return Encoding.of(x, names, beside=beside, **how)


def of_numbers(
    x: Any, names: Sequence[str] | None, drop_invalid: bool, beside: Sequence[str] = ()
) -> AbstractContextManager[None]:
    """A context for reading a numeric table; the error for any other table names the settings that would help."""

    def advice() -> str:
        helps = remedy(x, names, drop_invalid, beside)
        return f"or have them modelled: try {helps}" if helps else ""

    return suggesting(advice)


def discrete_columns(encoding: Encoding | None) -> list[int]:
    """Indices of the discrete columns of a table."""
    return sorted(encoding.sizes) if encoding else []


def continuous(table: Table, encoding: Encoding | None) -> tuple[np.ndarray, list[str]]:
    """The other columns of a table, and their names."""
    places = np.setdiff1d(np.arange(len(table.names)), discrete_columns(encoding))
    return table.values[:, places], [table.names[place] for place in places]


def mixed_of(rows: np.ndarray, frame: Frame, encoding: Encoding | None) -> Mixed | None:
    """The discrete columns of rows in the units of the model; None if there are none."""
    if not encoding:
        return None
    place = {int(own): i for i, own in enumerate(frame.kept)}
    sizes = {place[own]: size for own, size in encoding.sizes.items() if own in place}
    if not sizes:
        return None
    gaps = [(encoding.names.index(name), encoding.flag(name)) for name in encoding.gaps]
    return Mixed.of(rows, sizes, [(place[own], place[flag]) for own, flag in gaps if own in place and flag in place])


def filled(rows: np.ndarray, mixed: Mixed | None) -> np.ndarray:
    """Rows for the network, with discrete columns dequantised by one fixed draw."""
    return rows if mixed is None else mixed.at_random(rows)[0]


def restored(rows: np.ndarray, mixed: Mixed | None) -> np.ndarray:
    """Rows of the network with the discrete columns restored to integers."""
    return rows if mixed is None else np.asarray(mixed.restore(rows))


def described_columns(encoding: Encoding | None) -> dict[str, Any]:
    """The fields of a record that describe non-numeric columns of a table."""
    if not encoding:
        return {}
    return {
        "categories": dict(encoding.categories),
        "dates": dict(encoding.dates),
        "missing": dict(encoding.missing),
    }
