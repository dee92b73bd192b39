"""Labels of any kind as class numbers."""

import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from jaxtyping import Int

from flowknife.apps._images import as_pictures
from flowknife.data import ImageSet
from flowknife.data.tables import TABLE_SUFFIXES
from flowknife.errors import InputError

Names = tuple[int | str, ...]
"""The classes, whole numbers or words, in the order of their numbers."""

Codes = Int[np.ndarray, " n"]
"""Classes by number; -1 for unknown."""

_MISSING = {"", "nan", "none", "<na>", "nat", "-1"}


def is_picture_source(x: Any) -> bool:
    """Whether `x` is a folder of pictures, paths of pictures, or an array of more than two axes."""
    if isinstance(x, ImageSet):
        return True
    if isinstance(x, (str, os.PathLike)):
        return not os.fspath(x).lower().endswith(TABLE_SUFFIXES)
    if hasattr(x, "shape"):
        return len(x.shape) > 2
    return isinstance(x, Sequence) and len(x) > 0 and isinstance(x[0], (str, os.PathLike))


def read_pictures(x: Any, labels: Any, size: int, show_progress: bool) -> tuple[ImageSet, Any]:
    """Pictures and their labels: those given, or the folder in which each lies."""
    data = as_pictures(x, size, show_progress)
    if labels is not None:
        if data.skipped:
            raise InputError(
                f"got {len(data.skipped)} files that cannot be used ({data.skipped[0].path}: {data.skipped[0].reason}) "
                "and labels by place; expected pictures only; try one folder per class, without labels"
            )
        return data, labels
    if not any(data.folders):
        raise InputError("got pictures without labels; expected labels=..., or a folder with one subfolder per class")
    return data, data.folders


def label_codes(labels: Any, rows: int, classes: int | None = None) -> tuple[Names, Codes]:
    """The classes that occur, sorted, and the class of each item by number.

    Args:
        labels: one per item; None, NaN, "" and -1 are unknown.
        rows: number of items.
        classes: the classes are 0 ... classes - 1, whether they occur or not.

    Raises:
        InputError: for labels of another length, fractions, or fewer than two classes.
    """
    if labels is None:
        raise InputError("got no labels; expected one per item; try labels=..., or fk.density for items of one kind")
    if isinstance(labels, (str, bytes, Mapping)) or not hasattr(labels, "__len__"):
        raise InputError(f"got labels={labels!r}; expected one label per item")
    if np.ndim(labels) != 1 or len(labels) != rows:
        raise InputError(f"got labels of shape {np.shape(labels)} for {rows} items; expected one label per item")
    # numpy would turn the numbers of a list with a None or a word into words
    names = [_name(value) for value in (labels.tolist() if hasattr(labels, "tolist") else labels)]
    seen: set[Any] = {name for name in names if name is not None}
    if any(isinstance(name, str) for name in seen):
        names = [None if name is None else str(name) for name in names]
        seen = {str(name) for name in seen}
    if classes is not None:
        if not all(isinstance(name, int) and name < classes for name in seen):
            raise InputError(
                f"got labels {_some(seen)}; expected whole numbers 0 to {classes - 1}, as classes={classes}"
            )
        seen |= set(range(classes))
    if len(seen) < 2:
        raise InputError(
            f"got labels of {len(seen)} class{'es' * (not seen)}; expected at least 2; try fk.density or fk.images"
        )
    order = tuple(sorted(seen))
    place = {name: code for code, name in enumerate(order)}
    codes = np.array([-1 if name is None else place[name] for name in names], np.int32)
    if not np.any(codes >= 0):
        raise InputError("got no known label; expected some of each class")
    return order, codes


def _name(value: Any) -> int | str | None:
    """A label as a whole number or a word, None for unknown."""
    if value is None or str(value).strip().lower() in _MISSING:
        return None
    if isinstance(value, (Integral, np.bool_)):
        return int(value) if value >= 0 else _refused(value)
    if isinstance(value, Real):
        whole = int(value) if np.isfinite(value) else 0
        if whole == value == -1:
            return None
        return whole if whole == value and whole >= 0 else _refused(value)
    return str(value)


def _refused(value):
    raise InputError(f"got the label {value!r}; expected whole numbers from 0 or words, and -1 or None for unknown")


def _some(names):
    shown = sorted(map(repr, names))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def as_codes(labels: Any, classes: Names) -> Int[np.ndarray, "..."]:
    """Labels that the caller gives, one or many, as class numbers of shape () or (n,).

    Raises:
        InputError: for a label that was not among the classes.
    """
    single = isinstance(labels, str) or np.ndim(labels) == 0
    place: dict[Any, int] = {name: code for code, name in enumerate(classes)}
    values = [labels] if single else labels.tolist() if hasattr(labels, "tolist") else list(labels)
    words = isinstance(classes[0], str)
    codes = [place.get(str(value) if words else value, -1) for value in values]
    if -1 in codes:
        raise InputError(f"got the label {values[codes.index(-1)]!r}; expected one of {_some(classes)}")
    return np.array(codes[0] if single else codes, np.int32)
