"""Encoding tables with categories, dates and missing values as numbers, and decoding them.

category   its index in the sorted dictionary, 0, 1, ...; a missing one has one more index; unknown ones are -1
date       days since 1970-01-01, in double precision
missing    an observed number as placeholder, and 1 (else 0) in an indicator column, "missing(NAME)"
"""

import datetime
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from flowknife.data._cells import array_of, is_missing, number_in
from flowknife.data._read import Columns, first_line, read_columns, some
from flowknife.data.labels import Names, codes_of, names_of
from flowknife.data.tables import Table, table_of
from flowknife.errors import InputError

Unit = Literal["D", "s"]
"""Unit of dates: days or seconds."""

_DAY = 86_400e6  # microseconds
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?", re.ASCII)
_MOST_SHARE = 0.5  # of the rows; with more categories than this, a column identifies single rows
_AUTO = "auto"


@dataclass(frozen=True)
class Coded:
    """Rows of a table as numbers, in the columns of an `Encoding` (and the conditions, last)."""

    values: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Encoding:
    """Encodes the columns of a table as numbers, and decodes them.

    Attributes:
        names: names of the columns.
        categories: the sorted categories of each categorical column.
        dates: the unit of each date column.
        missing: the placeholder of each column with missing values.
    """

    names: tuple[str, ...]
    categories: Mapping[str, Names] = field(default_factory=dict)
    dates: Mapping[str, Unit] = field(default_factory=dict)
    missing: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        source: Any,
        names: Sequence[str] | None = None,
        *,
        beside: Sequence[str] = (),
        categories: Sequence[str] | str | None = None,
        dates: Sequence[str] | str | None = None,
        missing: bool = False,
    ) -> "Encoding":
        """The encoding of the columns of a table.

        Args:
            source: as for `load_table`.
            names: names of the columns; default all but those in `beside`.
            beside: names of numeric columns that are not encoded, such as conditions.
            categories: names of categorical columns, of any type; "auto" for all columns of text or booleans.
            dates: names of date columns; "auto" for all columns that hold only dates.
            missing: whether there may be missing values.

        Raises:
            InputError: a column has other values, or nearly every row has its own category.
        """
        found = read_columns(source)
        if absent := [name for name in beside if name not in found.names]:
            raise InputError(f"got the condition {absent[0]!r}; expected some of the columns {', '.join(found.names)}")
        names = tuple(names or (name for name in found.names if name not in beside))
        written = _as_written(source, found, names, (*_listed(categories), *_listed(dates)))
        kinds: dict[str, Names] = {}
        days: dict[str, Unit] = {}
        gaps: dict[str, float] = {}
        for name, place in zip(names, found.places(names), strict=True):
            cells, of_words = written.get(name), place in found.foreign
            numbers = found.values[:, place]
            if cells is not None:
                time = _days(cells)
                if name in _listed(dates) or (dates == _AUTO and time is not None and of_words):
                    if time is None:
                        raise InputError(f"got {name!r} as dates; expected such as 2024-01-31; try categories='auto'")
                    days[name], numbers = _unit(time), time
                elif name in _listed(categories) or (
                    categories == _AUTO and ((of_words and time is None) or _of_truths(cells))
                ):
                    kinds[name] = _dictionary(name, cells)
                    numbers = np.where(codes_of(cells, kinds[name]) == -1, np.nan, 0.0)
            if missing and np.isnan(numbers).any() and not (of_words and name not in {**kinds, **days}):
                observed = numbers[np.isfinite(numbers)]
                if not len(observed):
                    raise InputError(f"got {name!r} without any value; expected some; try the table without it")
                gaps[name] = float(np.sort(observed)[len(observed) // 2])
        return cls(names, kinds, days, gaps)

    def widened(self, source: Any, missing: bool) -> "Encoding":
        """Extended to another table of the same columns: with its categories and, if `missing`, its missing values."""
        found, places = self._found(source)
        kinds, gaps = dict(self.categories), dict(self.missing)
        for name, place in zip(self.names, places, strict=True):
            if name in kinds:
                cells = found.kept[found.names[place]]
                new = cells[codes_of(cells, kinds[name]) < -1]
                kinds[name] = names_of([*kinds[name], *new]) if len(new) else kinds[name]
            elif place in found.foreign:
                continue
            numbers = self._numbers(name, found, place)
            if missing and name not in gaps and np.isnan(numbers).any() and not np.isnan(numbers).all():
                gaps[name] = 0.0 if name in kinds else float(np.nanmedian(numbers))
        return Encoding(self.names, kinds, self.dates, gaps)

    def __bool__(self) -> bool:
        return bool(self.categories or self.dates or self.missing)

    @property
    def gaps(self) -> tuple[str, ...]:
        """The numeric and date columns with missing values."""
        return tuple(name for name in self.names if name in self.missing and name not in self.categories)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return (*self.names, *(f"missing({name})" for name in self.gaps))

    @property
    def sizes(self) -> dict[int, int]:
        """Number of values of each discrete encoded column, by index."""
        own = {self.names.index(name): len(known) + (name in self.missing) for name, known in self.categories.items()}
        return own | {len(self.names) + place: 2 for place in range(len(self.gaps))}

    def flag(self, name: str) -> int | None:
        """Index of the missing-value indicator of the column `name`; None if it has none."""
        return len(self.names) + self.gaps.index(name) if name in self.gaps else None

    def read(
        self,
        source: Any,
        others: Sequence[str] = (),
        keep: Sequence[str] = (),
        *,
        drop_invalid: bool = False,
        min_rows: int = 1,
        at_random: bool = False,
    ) -> Table:
        """Read a table and encode it: `columns`, followed by the numeric columns `others`.

        Args:
            source: as for `load_table`, with the columns `names`.
            others: names of further columns.
            keep: names of columns to keep as written, if they exist.
            drop_invalid: leave out rows with missing values in columns that had none in training.
            min_rows: smallest number of usable rows.
            at_random: use a random observed number as the placeholder of a missing one; default a fixed number.

        Raises:
            InputError: as by `load_table`.
        """
        found, places = self._found(source, others, keep)
        coded = [self._numbers(name, found, place) for name, place in zip(self.names, places, strict=False)]
        gaps = {name: np.isnan(column) for name, column in zip(self.names, coded, strict=True) if name in self.gaps}
        generator = np.random.default_rng(0)
        for place, name in enumerate(self.names):
            if name in gaps:
                observed = coded[place][~gaps[name]]
                fill = generator.choice(observed, len(found.values)) if at_random else self.missing[name]
                coded[place] = np.where(gaps[name], fill, coded[place])
        beside = found.values[:, places[len(self.names) :]]
        values = np.column_stack([*coded, *(gaps[name].astype(float) for name in self.gaps), beside])
        names = (*self.columns, *others)
        plain = {name: place for name, place in zip(self.names, places, strict=False) if name not in self._text}
        foreign = {names.index(name): found.foreign[place] for name, place in plain.items() if place in found.foreign}
        kept = {name: found.kept[name] for name in keep if name in found.kept}
        table = Columns(found.source, names, names, values, foreign, kept)
        return table_of(table, names, drop_invalid=drop_invalid, min_rows=min_rows, narrow=not self.dates)

    @property
    def _text(self):
        """The columns to read as written."""
        return [name for name in self.names if name in self.categories or name in self.dates]

    def _found(self, source, others=(), keep=()):
        """The columns of a table, and the indices of those of this encoding, followed by the `others`."""
        found = read_columns(source, (*self._text, *keep))
        places = found.places((*self.names, *others))
        here = {name: found.names[place] for name, place in zip(self.names, places, strict=False)}
        if not {here[name] for name in self._text} <= set(found.kept):  # columns matched by position
            found = read_columns(source, (*(here[name] for name in self._text), *keep))
        return found, places

    def _numbers(self, name, found, place):
        """A column as numbers, NaN where they are missing."""
        if name in self.categories:
            codes = codes_of(found.kept[found.names[place]], self.categories[name])
            gap = len(self.categories[name]) if name in self.missing else np.nan
            return np.where(codes == -1, gap, np.maximum(codes, -1))
        if name in self.dates:
            time = _days(found.kept[found.names[place]])
            if time is None:
                raise InputError(f"got {found.source} with {name!r} that are not dates; expected such as 2024-01-31")
            return time
        return found.values[:, place].copy()

    def decode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Decode rows (n, columns) to columns by name: categories, dates, and numbers with missing values."""
        return {name: self.decoded(name, values) for name in self.names}

    def decoded(self, name: str, values: np.ndarray) -> np.ndarray:
        """Decode one column of encoded rows."""
        column, flag = values[:, self.names.index(name)], self.flag(name)
        if name in self.categories:
            known = [*self.categories[name], None]
            codes = np.clip(np.round(column), 0, len(known) - 1).astype(int)
            return array_of([known[code] for code in codes])
        if name in self.dates:
            ticks = np.round(column * (1 if self.dates[name] == "D" else _DAY / 1e6))
            column = ticks.astype(np.int64).astype(f"datetime64[{self.dates[name]}]")
        if flag is None:
            return column
        return np.where(values[:, flag] > 0.5, _MISSING[name in self.dates], column)


_MISSING = {False: np.float64(np.nan), True: np.datetime64("NaT", "D")}


def to_frame(columns: Mapping[str, np.ndarray]) -> Any:
    """Columns as a pandas DataFrame.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise InputError('pandas is not installed; try pip install "flowknife[tables]"') from None
    return pandas.DataFrame(dict(columns))


def remedy(
    source: Any, names: Sequence[str] | None, drop_invalid: bool, beside: Sequence[str] = (), shell: bool = True
) -> str:
    """The settings that a table with non-numeric or missing values needs, in words; "" if none would help.

    Args:
        source: the table.
        names: names of its columns; default all but those in `beside`.
        drop_invalid: whether rows with missing values are left out.
        beside: names of columns that are not checked.
        shell: include the command line options.
    """
    words, of_dates, gaps = _no_numbers(source, names, beside)
    needed = {
        "categories": _AUTO if words else "",
        "dates": _AUTO if of_dates else "",
        "missing": "model" if gaps else "",
    }
    needed = {name: value for name, value in needed.items() if value and not (name == "missing" and drop_invalid)}
    if not needed:
        return ""
    python = ", ".join(f'{name}="{value}"' for name, value in needed.items())
    if not shell:
        return python
    return f"{python} (command line: {' '.join(f'--set {name}={value}' for name, value in needed.items())})"


@contextmanager
def suggesting(advice: Callable[[], str], of: type[Exception] = InputError) -> Generator[None]:
    """Add advice to errors raised inside the block.

    Args:
        advice: returns the advice or ""; called only after an error.
        of: type of errors to extend; others pass unchanged.

    Raises:
        InputError: with the first line of the error and the advice.
    """
    try:
        yield
    except of as error:
        try:
            helps = advice()
        except InputError:
            helps = ""
        if not helps:
            raise
        raise InputError(f"{first_line(error).rstrip('.')}; {helps}") from None


def in_numbers(source: Any, names: Sequence[str] | None) -> str:
    """Advice on converting a table to finite numbers; "" if it is already numeric.

    For inputs that must be numeric: conditions, and the pairs of an inverse problem.
    """
    words, of_dates, gaps = _no_numbers(source, names)
    ways = []
    if words:
        ways.append(f"one column of 0 and 1 for each category, as by pandas.get_dummies(x, columns={list(words)})")
    if of_dates:
        ways.append(f"days for dates, as by x[{of_dates[0]!r}].astype('datetime64[s]').astype(int) / 86400")
    if gaps:
        name = gaps[0]
        ways.append(f"x[{name!r}].fillna(x[{name!r}].median()) and a column x[{name!r}].isna() for missing values")
    return "; ".join(ways)


def _no_numbers(source, names, beside=()) -> tuple[list[str], list[str], list[str]]:
    """Names of the columns of text or booleans, of dates, and of those with missing values."""
    found = read_columns(source)
    names = [name for name in found.names if name not in beside] if names is None else names
    written = _as_written(source, found, names, ())
    places = dict(zip(names, found.places(names), strict=True))
    foreign = [name for name, place in places.items() if place in found.foreign]
    of_dates = [name for name in foreign if _days(written[name]) is not None]
    gaps = [name for name in names if name not in foreign and np.isnan(found.values[:, places[name]]).any()]
    gaps += [name for name in foreign if any(map(is_missing, written[name]))]
    return [name for name in foreign if name not in of_dates], of_dates, gaps


def _listed(names: Sequence[str] | str | None) -> tuple[str, ...]:
    """Explicitly listed column names."""
    return () if names is None or names == _AUTO else (names,) if isinstance(names, str) else tuple(names)


def _as_written(source: Any, found: Columns, names: Sequence[str], listed: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns as written, by name, that are non-numeric, listed, or may be boolean."""
    if missing := [name for name in listed if name not in names]:
        raise InputError(f"got no column {missing[0]!r} of {found.source}; expected some of {some(list(names))}")

    def truths(place):
        column = found.values[:, place]
        return np.isin(column[~np.isnan(column)], (0.0, 1.0)).all()

    here = {
        name: found.names[place]
        for name, place in zip(names, found.places(names), strict=True)
        if place in found.foreign or name in listed or truths(place)
    }
    kept = read_columns(source, tuple(here.values())).kept if here else {}
    return {name: kept[own] for name, own in here.items()}


def _of_truths(cells: np.ndarray) -> bool:
    """Whether all non-missing cells are booleans."""
    values = [cell for cell in cells.tolist() if not is_missing(cell)]
    return bool(values) and all(
        isinstance(cell, (bool, np.bool_)) or (isinstance(cell, str) and cell.strip().lower() in ("true", "false"))
        for cell in values
    )


def _dictionary(name: str, cells: np.ndarray) -> Names:
    known = names_of(cells)
    if not known:
        raise InputError(f"got {name!r} without any category; expected some; try the table without it")
    if len(known) > max(_MOST_SHARE * len(cells), 2):
        raise InputError(
            f"got {name!r} with {len(known)} categories in {len(cells)} rows; expected categories that repeat; try the "
            "table without it, as by names=[...]"
        )
    return known


def _days(cells: np.ndarray) -> np.ndarray | None:
    """Days since 1970-01-01, NaN for missing dates; None if the cells are not dates."""
    if cells.dtype.kind == "M":
        stamps = cells.astype("datetime64[us]")
    elif cells.dtype.kind in "OUT":
        stamps = np.array([_stamp(cell) for cell in cells.tolist()], dtype=object)
        if any(stamp is None for stamp in stamps):
            return None
        stamps = stamps.astype("datetime64[us]")
    else:
        return None
    gone = np.isnat(stamps)
    return None if gone.all() else np.where(gone, np.nan, stamps.astype(np.int64) / _DAY)


def _stamp(cell: Any) -> np.datetime64 | None:
    """The date and time in a cell, in microseconds; NaT if missing, None if it is not a date."""
    if is_missing(cell):
        return np.datetime64("NaT", "us")
    if isinstance(cell, datetime.datetime):
        utc = cell if cell.tzinfo is None else cell.astimezone(datetime.UTC).replace(tzinfo=None)
        return np.datetime64(utc, "us")
    if isinstance(cell, datetime.date):
        return np.datetime64(cell, "us")
    if isinstance(cell, str):
        text = cell.strip()
        if _DATE.fullmatch(text):
            try:
                return np.datetime64(text.replace(" ", "T"), "us")
            except ValueError:
                return None
        number = number_in(text)
        return np.datetime64("NaT", "us") if number is not None and np.isnan(number) else None
    return None


def _unit(days: np.ndarray) -> Unit:
    known = days[np.isfinite(days)]
    return "D" if np.array_equal(known, np.round(known)) else "s"
