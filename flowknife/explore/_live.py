"""What a live page is answered: a model in Python by named calls, whose numbers travel as JSON.

A page asks the same of every model, `sample`, `encode`, `decode`, `log_prob`, given y; some jobs add a few calls.
"""

import base64
import binascii
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from flowknife._files import plain_values
from flowknife.errors import FlowknifeError, InputError
from flowknife.explore._export import finite, packed

MOST_ROWS = 20_000  # of one call

Call = Callable[..., Any]

_KINDS = {"f4": "<f4", "f8": "<f8", "i4": "<i4", "u1": "<u1"}


@dataclass(frozen=True)
class Live:
    """A page that a model in Python answers.

    Attributes:
        title: of the page.
        content: what it reads, as JSON.
        calls: what it may ask, by name; arguments are numbers, words, or flat arrays, as the page sends them.
        slow: calls that take seconds, for which others do not wait.
        prepare: makes the first calls fast; it compiles.
    """

    title: str
    content: str
    calls: Mapping[str, Call]
    slow: frozenset[str] = frozenset()
    prepare: Callable[[], None] = lambda: None


def answer(call: Call, body: bytes) -> bytes:
    """What a call returns, as JSON, of arguments that came as JSON.

    Raises:
        InputError: for arguments that the call does not take, in words that can be shown.
    """
    try:
        arguments = unpacked(plain_values(body))
        if not isinstance(arguments, dict):
            raise TypeError
        bound = inspect.signature(call).bind(**arguments)
    except (ValueError, TypeError, RecursionError):
        raise InputError("got a question that is not one of this page; expected its arguments as JSON") from None
    try:
        found = call(*bound.args, **bound.kwargs)
    except FlowknifeError:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError, MemoryError) as error:
        # arguments of a wrong kind, wherever it shows
        raise InputError(f"got arguments that do not fit ({' '.join(str(error).split())[:200]})") from None
    return json.dumps(finite(packed(_narrow(found))), allow_nan=False).encode()


def rows_of(x: Any, n: Any, width: int) -> np.ndarray:
    """Numbers that the page sent as n rows.

    Raises:
        InputError: for more than 20,000 rows, or another count of numbers.
    """
    count = count_of(n)
    values = np.asarray(x)
    if values.dtype.kind not in "fiu" or values.size != count * width:
        raise InputError(f"got {values.size} numbers as {count} rows; expected {width} in each")
    return values.reshape(count, width)


def count_of(n: Any) -> int:
    """A number of rows.

    Raises:
        InputError: for no number from 1 to 20,000.
    """
    if not isinstance(n, int) or not 1 <= n <= MOST_ROWS:
        raise InputError(f"got n={str(n)[:20]}; expected a number from 1 to {MOST_ROWS:,}")
    return n


def seed_of(seed: Any) -> int:
    """A seed of draws, any whole number."""
    return int(seed) % 2**32


def unpacked(value: Any) -> Any:
    """The inverse of `packed`."""
    if isinstance(value, list):
        return [unpacked(item) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((kind, text),) = value.items()
        if kind in _KINDS and isinstance(text, str):
            try:
                return np.frombuffer(base64.b64decode(text, validate=True), _KINDS[kind])
            except binascii.Error:
                raise ValueError from None
    return {name: unpacked(item) for name, item in value.items()}


def _narrow(found):
    """Arrays flat, as the page has them; bytes stay bytes."""
    if isinstance(found, dict):
        return {name: _narrow(item) for name, item in found.items()}
    if isinstance(found, (list, tuple)):
        return [_narrow(item) for item in found]
    if hasattr(found, "__array__") and np.ndim(found):
        array = np.asarray(found)
        return array.tobytes() if array.dtype == np.uint8 else array.ravel()
    return found
