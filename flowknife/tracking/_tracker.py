"""The interface of trackers, and the active trackers of this process."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from flowknife.errors import InputError


class Tracker(ABC):
    """Receives the numbers of a fit during training, and its result.

    Examples:
        >>> class Printed(Tracker):
        ...     def measured(self, part, step, values):
        ...         print(part, step, *values)
        ...     def fitted(self, result):
        ...         print("done")
        >>> with tracked_by(Printed()):
        ...     measured("density", 25, {"train": 1.0, "validation": 1.1})
        density 25 train validation
    """

    @abstractmethod
    def measured(self, part: str, step: int, values: Mapping[str, float]) -> None:
        """Receive numbers after some steps of training; `part` is the label of the progress bar."""

    @abstractmethod
    def fitted(self, result: Any) -> None:
        """Receive the result of the fit, such as a `flowknife.Density`."""

    def close(self) -> None:  # noqa: B027, most have nothing to do
        """Called when the fit has ended, with or without a result."""


Track = str | Tracker | Sequence[str | Tracker] | None
"""Trackers of a fit: texts such as "tensorboard:DIR" and "mlflow:URI", or trackers; None for none."""

_KINDS = ("tensorboard:DIR", "mlflow:URI", "mlflow:URI#EXPERIMENT")


def as_trackers(track: Track) -> list[Tracker]:
    """Convert the argument `track` to trackers.

    Raises:
        InputError: for an unknown kind, or one whose package is not installed.
    """
    if track is None:
        return []
    if isinstance(track, (str, Tracker)):
        return [_tracker(track)]
    if not isinstance(track, Sequence):
        raise InputError(f"got track={track!r}; expected {' or '.join(_KINDS)}, or a Tracker")
    return [_tracker(each) for each in track]


def _tracker(of: Any) -> Tracker:
    if isinstance(of, Tracker):
        return of
    kind, colon, place = of.partition(":") if isinstance(of, str) else ("", "", "")
    if not colon or not place or kind not in ("tensorboard", "mlflow"):
        raise InputError(
            f"got track={of!r}; expected {' or '.join(_KINDS)}, or a Tracker; try track='tensorboard:logs'"
        )
    if kind == "tensorboard":
        from flowknife.tracking._tensorboard import TensorBoard

        return TensorBoard(place)
    from flowknife.tracking._mlflow import MLflow

    uri, _, experiment = place.partition("#")
    return MLflow(uri, experiment or "flowknife")


_lock = threading.Lock()  # parts of a fit may train in separate threads
_listening: list[Tracker] = []


@contextmanager
def tracked_by(*trackers: Tracker) -> Generator[None, None, None]:
    """Send the fits in the block to these trackers, and close them at its end."""
    with ExitStack() as stack:
        for tracker in trackers:
            stack.callback(tracker.close)
        _listening.extend(trackers)
        try:
            yield
        finally:
            for tracker in trackers:
                _listening.remove(tracker)


def measured(part: str, step: int, values: Mapping[str, float]) -> None:
    """Send numbers after some steps to the trackers of this fit."""
    if _listening:
        with _lock:
            for tracker in _listening:
                tracker.measured(part, step, values)
