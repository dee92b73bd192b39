"""The tree of errors that a user can cause; and `Interrupted`, which carries the result of an interrupted fit.

    FlowknifeError
    ├── InputError (also ValueError)   an argument, a shape, a table or an image that cannot be used
    ├── StorageError (also OSError)    a run directory or model file that is missing, damaged or foreign
    └── TrainingError (also RuntimeError)   training stopped at a non-finite number

    UserWarning
    └── CalibrationWarning   a fit without p-values, or whose p-values can never be small enough to flag anything

Every message is one line: what was got, what was expected, what to try. The command line catches
`FlowknifeError`, prints that line and exits with status 1; anything else is a defect of ours and keeps its traceback.
"""

from typing import Any


class FlowknifeError(Exception):
    """Root of every error that a user can cause and fix."""


class InputError(FlowknifeError, ValueError):
    """An argument, array, table or image that cannot be used as given."""


class StorageError(FlowknifeError, OSError):
    """A run directory or model file that is missing, damaged, or written by something else."""


class TrainingError(FlowknifeError, RuntimeError):
    """Training met a non-finite number; the message names the place."""


class Interrupted(KeyboardInterrupt):
    """An interruption (Ctrl-C) of a fit after training had begun.

    Attributes:
        result: what was reached, of the type that the interrupted function returns, with the best weights so far.

    Example:
        >>> try:  # doctest: +SKIP
        ...     flow = fk.density(x)
        ... except fk.errors.Interrupted as stop:
        ...     flow = stop.result
    """

    def __init__(self, result: Any):
        super().__init__("training was interrupted; the best weights so far are in `.result`")
        self.result = result


class CalibrationWarning(UserWarning):
    """A fit has no p-values, or too few calibration rows for a p-value below alpha; the message has the reason."""
