"""Converting labels of rows and images to class numbers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowknife.data._cells import as_written, is_missing
from flowknife.data.images import ImageSet
from flowknife.data.tables import TABLE_SUFFIXES
from flowknife.errors import InputError

Names = tuple[bool | int | float | str, ...]
"""The class labels (booleans, numbers or text), in the order of the class numbers."""

Codes = Int[np.ndarray, " n"]
"""Class numbers; -1 for unknown."""

_FOREIGN = -2  # code of a label that is not among the classes


def is_image_source(x: Any) -> bool:
    """Whether `x` is a folder of images, paths of images, or an array of more than two axes."""
    if isinstance(x, ImageSet):
        return True
    if isinstance(x, (str, os.PathLike)):
        return not os.fspath(x).lower().endswith(TABLE_SUFFIXES)
    if hasattr(x, "shape"):
        return len(x.shape) > 2
    return isinstance(x, Sequence) and len(x) > 0 and isinstance(x[0], (str, os.PathLike))


def labels_of(data: ImageSet, labels: Any = None) -> Any:
    """The labels of images: the given ones, in order, or the folder of each image.

    Raises:
        InputError: for unreadable files together with labels by position, class folders without a usable image, or no
            labels at all.
    """
    if labels is not None:
        if data.skipped:
            raise InputError(
                f"got {len(data.skipped)} files that cannot be used ({data.skipped[0].path}: {data.skipped[0].reason}) "
                "and labels by place; expected images only; try one folder per class, without labels"
            )
        return labels
    if data.unused_folders:
        raise InputError(
            f"got the class folders {', '.join(data.unused_folders[:5])} without a usable image; expected some in "
            "each; try to repair or remove them"
        )
    if not any(data.folders):
        raise InputError("got images without labels; expected labels=..., or a folder with one subfolder per class")
    return data.folders


def label_codes(labels: Any, rows: int, classes: int | None = None) -> tuple[Names, Codes]:
    """The classes that occur, sorted, and the class number of each item.

    Labels are booleans, numbers or text, and keep their type; if types are mixed, all become text.

    Args:
        labels: one per item; only None, NaN, NA and "" are unknown.
        rows: number of items.
        classes: number of classes 0 ... classes - 1, including those that do not occur.

    Raises:
        InputError: for another number of labels, labels of another type, fractions, or fewer than two classes.
    """
    if labels is None:
        raise InputError("got no labels; expected one per item; try labels=..., or fk.density for items of one kind")
    if isinstance(labels, (str, bytes, Mapping)) or not hasattr(labels, "__len__"):
        raise InputError(f"got labels={labels!r}; expected one label per item")
    names = _listed(labels)
    if len(names) != rows:
        raise InputError(f"got {len(names)} labels for {rows} items; expected one label per item")
    names = _of_one_kind(names)
    seen: set[Any] = {name for name in names if name is not None}
    if classes is not None:
        if not seen <= set(range(classes)):
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
    return order, np.array([-1 if name is None else place[name] for name in names], np.int32)


def minus_one_note(classes: Names) -> str:
    """A note if -1 precedes 0, 1, ..., since in scikit-learn -1 means unknown; or "".

    Examples:
        >>> minus_one_note((-1, 0, 1)), minus_one_note((-1, 1))
        ('-1 is a class like the others; a label that is unknown is None, NaN or empty', '')
    """
    if len(classes) > 2 and list(classes) == list(range(-1, len(classes) - 1)):
        return "-1 is a class like the others; a label that is unknown is None, NaN or empty"
    return ""


def names_of(labels: Any) -> Names:
    """The classes that occur among labels, sorted.

    Raises:
        InputError: for labels of a kind that no class can have.
    """
    return tuple(sorted({name for name in _of_one_kind(_listed(labels)) if name is not None}))


def _listed(labels):
    """Labels as Python values, None if unknown."""
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return [_name(value) for value in values]


def _name(value: Any) -> bool | int | float | str | None:
    """A label as a Python value, None if unknown."""
    if is_missing(value):
        return None
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value % 1:
        raise InputError(
            f"got the label {value!r}; expected whole numbers, words or truth values; try fk.invert(pairs=(labels, x)) "
            "for a quantity, labels.astype(str) for classes"
        )
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (list, tuple, np.ndarray)):
        raise InputError(f"got {_some([value])} as a label; expected one label per item, a word or a number")
    raise InputError(
        f"got the label {_some([value])} of type {type(value).__name__}; expected words, numbers or truth values; try "
        "labels.astype(str)"
    )


def _of_one_kind(names):
    """Booleans, numbers and text unchanged; a mixture of them as text.

    Raises:
        InputError: if different labels would become the same text, as 1 and "1", or one number is written as 1 and 1.0.
    """
    known = [name for name in names if name is not None]
    kinds = {(isinstance(name, bool), isinstance(name, str)) for name in known}
    if len(kinds) < 2:
        return names
    word_of: dict[str, Any] = {}
    for name in known:
        # 1.0 is 1, not another class
        for word in {str(name), str(int(name))} if isinstance(name, float) else {str(name)}:
            if type(word_of.setdefault(word, name)) is not type(name):
                raise InputError(f"got the labels {word_of[word]!r} and {name!r}; expected labels of one kind")
    return [None if name is None else str(name) for name in names]


def _some(names):
    shown = sorted(map(repr, names))
    return ", ".join(shown[:5]) + (", ..." if len(shown) > 5 else "")


def codes_of(labels: Any, classes: Names) -> Codes:
    """Class numbers of labels: -1 for unknown ones, -2 for labels that are not among the classes.

    Labels may have another form than in training: 1 matches the class 1.0 and the text "1".
    """
    place: dict[Any, int] = {name: code for code, name in enumerate(classes)}
    as_word = {str(name): code for name, code in place.items()}

    def code(name):
        if name is None:
            return -1
        if isinstance(name, bool) and not isinstance(classes[0], bool):
            return as_word.get(str(name), _FOREIGN)
        if name in place or str(name) in as_word:
            return place.get(name, as_word.get(str(name), _FOREIGN))
        return place.get(as_written([name]).tolist()[0], _FOREIGN) if isinstance(name, str) else _FOREIGN

    return np.array([code(name) for name in _listed(labels)], np.int32)


def as_codes(labels: Any, classes: Names) -> Int[np.ndarray, "..."]:
    """Labels, one or many, as class numbers of shape () or (n,).

    Raises:
        InputError: for a label that is not among the classes.
    """
    single = isinstance(labels, str) or np.ndim(labels) == 0
    values = [labels] if single else labels
    codes = codes_of(values, classes)
    if np.any(codes < 0):
        wrong = _listed(values)[int(np.argmax(codes < 0))]
        raise InputError(f"got the label {wrong!r}; expected one of {_some(classes)}")
    return codes.reshape(()) if single else codes


def one_hot(codes: Codes | None, classes: int) -> dict[str, Float[np.ndarray, "n k"]]:
    """The one-hot condition `y` for items of these classes; empty without classes."""
    return {} if codes is None else {"y": np.eye(classes, dtype=np.float32)[codes]}
