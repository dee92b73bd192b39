"""The tree of errors that a user can cause; and `Interrupted`, which carries the result of an interrupted fit.

    FlowknifeError
    ├── InputError (also ValueError)   an argument, a shape, a table or an image that cannot be used
    ├── StorageError (also OSError)    a run directory or model file that is missing, damaged or foreign
    └── TrainingError (also RuntimeError)   training stopped at a non-finite number

    UserWarning
    └── CalibrationWarning   a fit without p-values, or whose p-values can never be small enough to flag anything

Every message is one line with three parts: got, expected, try. The command line catches
`FlowknifeError`, prints that line and exits with status 1; any other exception is a bug in flowknife and keeps its
traceback.
"""

import re
from typing import Any

_LONGEST_WORD = 400  # characters without a space
_LONGEST = 2000


def printable(text: str) -> str:
    r"""Text as one line that is safe for a terminal: line breaks become spaces, control characters are escaped.

    Examples:
        >>> printable("red \x1b[31m")
        'red \\x1b[31m'
    """
    if not text.isprintable():
        text = "".join(letter if letter.isprintable() else _WRITTEN.get(letter) or _escaped(letter) for letter in text)
    return text


_WRITTEN = dict.fromkeys("\n\r\t", " ")


def _escaped(letter):
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")


def counted(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    Examples:
        >>> counted(1, "row"), counted(2000, "class", "classes")
        ('1 row', '2,000 classes')
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def reason_of(error: Exception) -> str:
    """A short reason why something could not be read: the system's message, or the first invalid field."""
    fields = getattr(error, "errors", None)
    if callable(fields):  # an error of pydantic
        first = fields()[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())


def shortened(text: str, most: int = _LONGEST) -> str:
    """Text of at most about `most` characters; of longer text the middle is left out."""
    return text if len(text) <= most else f"{text[: most * 3 // 4]}...{text[-most // 5 :]}"


class FlowknifeError(Exception):
    """Root of every error that a user can cause and fix.

    Messages quote input, which may come from an untrusted file. So a message is always one line of limited length
    without control characters.
    """

    def __init__(self, message: Any = "", *args: Any):
        text = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda word: shortened(word[0], _LONGEST_WORD), str(message))
        super().__init__(shortened(printable(text)), *args)


class InputError(FlowknifeError, ValueError):
    """An argument, array, table or image that cannot be used as given."""


class StorageError(FlowknifeError, OSError):
    """A run directory or model file that is missing, damaged, or written by something else."""


class TrainingError(FlowknifeError, RuntimeError):
    """Training met a non-finite number; the message names the place."""


class Interrupted(KeyboardInterrupt):
    """An interruption (Ctrl-C) of a fit after training had begun.

    Attributes:
        result: the result so far, of the type that the interrupted function returns, with the best weights so far.

    Examples:
        >>> try:  # doctest: +SKIP
        ...     flow = fk.density(x)
        ... except fk.errors.Interrupted as stop:
        ...     flow = stop.result
    """

    def __init__(self, result: Any):
        super().__init__("training was interrupted; the best weights so far are in `.result`")
        self.result = result


class CalibrationWarning(UserWarning):
    """A fit has no p-values, or too few calibration rows for a p-value below alpha; the message gives the reason."""
