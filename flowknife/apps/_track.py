"""The argument `track` of the functions that fit."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flowknife._interrupts import finish, until_interrupted
from flowknife.tracking import Track, as_trackers, tracked_by

P = ParamSpec("P")
Fitted = TypeVar("Fitted")


def tracked(fit: Callable[P, Fitted]) -> Callable[P, Fitted]:
    """Decorate a function that fits: the trackers in its argument `track` receive its training and its result."""

    @functools.wraps(fit)
    def tracking(*args: P.args, **kwargs: P.kwargs) -> Fitted:
        track: Track = kwargs.get("track")  # ty: ignore[invalid-assignment]
        trackers = as_trackers(track)
        if not trackers:
            return fit(*args, **kwargs)
        with tracked_by(*trackers):
            result, interrupted = until_interrupted(lambda: fit(*args, **kwargs))

            def told() -> Fitted:
                for tracker in trackers:
                    tracker.fitted(result)
                return result

            return finish(told, interrupted)

    return tracking
