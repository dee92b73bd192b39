"""Parsing the cells of a table as numbers, missing values or text, and labels in their written form.

All readers of tables (files, data frames and arrays) use these functions, so that they agree.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np

_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)", re.ASCII | re.IGNORECASE)
_WHOLE = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_LONG_WHOLE = re.compile(r"[+-]?\d{16,}", re.ASCII)
_MISSING = {"", "na", "n/a", "nan", "+nan", "-nan", "null", "none", "<na>", "-", "?"}
_TRUTH = {"true": 1.0, "false": 0.0}


def number_in(cell: str) -> float | None:
    """The number in a cell of text: NaN for a missing value, None if the cell is not a number.

    A number is written in decimal digits: `1_0`, `0x10`, `1,5` and digits of other scripts are text.
    """
    text = cell.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    text = text.lower()
    return np.nan if text in _MISSING else _TRUTH.get(text)


def plain(cells: Sequence[str]) -> bool:
    """Whether `float` agrees with `number_in` on all of these cells that it accepts.

    `float` also takes underscores and the digits of other scripts, and rounds long whole numbers.
    """
    joined = "".join(cells)
    return joined.isascii() and "_" not in joined and not any(map(is_beyond_double, cells))


def is_beyond_double(cell: Any) -> bool:
    """Whether a cell holds an integer that double precision cannot represent exactly."""
    if isinstance(cell, str):
        text = cell.strip()
        if len(text) < 16 or not _LONG_WHOLE.fullmatch(text):
            return False
        return len(text) > 400 or is_beyond_double(int(text))
    if not isinstance(cell, Integral):
        return False
    try:
        return int(float(cell)) != int(cell)
    except OverflowError:
        return True


def numbers_of(column: np.ndarray) -> np.ndarray | str:
    """A column as float64, missing values as NaN; or a description of its non-numeric content."""
    if column.ndim != 1:
        return f"shape {column.shape}"
    if column.dtype.kind in "iu":
        beyond = [value for value in column[np.abs(column.astype(np.float64)) >= 2**53] if is_beyond_double(value)]
        return beyond_double(beyond[0]) if beyond else column.astype(np.float64)
    if column.dtype.kind in "bf":
        return column.astype(np.float64)
    if column.dtype.kind == "V" and column.dtype.type is not np.void:  # bfloat16 and the other small floats of JAX
        return column.astype(np.float32).astype(np.float64)
    if column.dtype.kind not in "OUST":
        return str(column.dtype)
    numbers = np.empty(len(column))
    for row, cell in enumerate(column):
        if isinstance(cell, (Real, Decimal, np.bool_)) and not is_beyond_double(cell):
            numbers[row] = cell
        elif is_missing(cell):
            numbers[row] = np.nan
        else:
            number = None if is_beyond_double(cell) else number_in(cell) if isinstance(cell, str) else None
            if number is None:
                what = beyond_double(cell) if is_beyond_double(cell) else no_number(cell)
                return f"{what} in row {row}"
            numbers[row] = number
    return numbers


_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def no_number(cell: Any) -> str:
    """Description of a non-numeric cell.

    Examples:
        >>> no_number("red"), no_number("0,25")
        ("'red'", "'0,25', with a decimal comma where 0.25 is read")
    """
    text = reprlib.repr(str(cell))
    if isinstance(cell, str) and _COMMA.fullmatch(cell.strip()):
        return f"{text}, with a decimal comma where {cell.strip().replace(',', '.')[:12]} is read"
    return text


def beyond_double(cell: Any) -> str:
    """Description of an integer that double precision would round."""
    return f"{str(cell).strip()}, which double precision cannot hold exactly"


_FORMULA = tuple("=+-@\t\r")


def inert(cell: str) -> str:
    """Text for a file that a spreadsheet may open: formulas are quoted by an apostrophe.

    Text that looks already quoted is quoted again, so that `as_named` is the exact inverse.

    Examples:
        >>> inert("=cmd|' /C calc'!A0"), inert("-1.5"), as_named(inert("-left"))
        ("'=cmd|' /C calc'!A0", '-1.5', '-left')
    """
    return f"'{cell}" if _computed(cell) and number_in(cell) is None else cell


def as_named(cell: str) -> str:
    """The inverse of `inert`."""
    return cell[1:] if cell.startswith("'") and _computed(cell) else cell


def _computed(cell):
    """Whether a spreadsheet may evaluate this text as a formula, with or without leading apostrophes."""
    return cell.lstrip("'").startswith(_FORMULA)


def is_missing(value: Any) -> bool:
    """Whether a value is missing: None, NaN, NA, NaT or an empty cell."""
    if value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    return isinstance(value, (Real, Decimal)) and math.isnan(value)


def as_written(cells: Sequence[str]) -> np.ndarray:
    """Cells of text as values of one type: integers, floats, booleans, or else text.

    A type is used only if every cell is written as Python writes it: 1 and 2, but not 01; 0.5, but not 5e-1; True, but
    not true. So different cells remain different, and the conversion is reversible. Empty cells become None, in text
    columns "".
    """
    text = [as_named(cell.strip()) for cell in cells]
    known = [cell for cell in text if cell]
    for kind, fits in ((int, _is_whole), (float, _is_float), (_truth, _is_truth)):
        if known and all(map(fits, known)):
            values = [kind(cell) if cell else None for cell in text]
            return array_of(values)
    return text_array(text)


_MOST_TEXT = 2**24  # characters of an array of text, where every cell takes the space of the longest


def text_array(cells: Sequence[str]) -> np.ndarray:
    """An array of text; an object array if one long cell would make it huge."""
    longest = max(map(len, cells), default=0)
    return np.array(cells, dtype=str if longest * len(cells) <= _MOST_TEXT else object)


def array_of(values: Sequence[Any]) -> np.ndarray:
    """An array of these values unchanged: an object array if NumPy would convert them."""
    kinds = {type(value) for value in values}
    array = text_array(values) if kinds == {str} else np.asarray(values)
    if len(kinds) <= 1 and array.ndim == 1 and array.dtype.kind in "biufUO" and array.tolist() == list(values):
        return array
    objects = np.empty(len(values), dtype=object)
    objects[:] = values
    return objects


def _is_whole(cell: str) -> bool:
    return bool(_WHOLE.fullmatch(cell)) and len(cell) < 4000  # Python refuses to read longer ones


def _is_float(cell: str) -> bool:
    return bool(_NUMBER.fullmatch(cell)) and repr(float(cell)) == cell and math.isfinite(float(cell))


def _is_truth(cell: str) -> bool:
    return cell in ("True", "False")


def _truth(cell: str) -> bool:
    return cell == "True"
