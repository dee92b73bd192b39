"""Interruptions (Ctrl-C) of a fit: the best weights so far are kept, and the result is assembled first."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from flowknife.errors import Interrupted

Result = TypeVar("Result")


def until_interrupted(train: Callable[[], Result]) -> tuple[Result, bool]:
    """The result of training and whether it was interrupted; if so, the result has the best weights so far."""
    try:
        return train(), False
    except Interrupted as stop:
        return stop.result, True


def finish(make: Callable[[], Result], interrupted: bool = False) -> Result:
    """Assemble or write a result after training; a first interruption waits until this is done.

    Args:
        make: returns the result.
        interrupted: whether training was interrupted; if so, the next interruption takes effect at once.

    Raises:
        Interrupted: with the result, if there was an interruption before or during this.
    """
    with deferred(wanted=not interrupted) as late:
        result = make()
    if interrupted or late:
        raise Interrupted(result)
    return result


@contextmanager
def deferred(wanted: bool = True) -> Generator[list[int], None, None]:
    """Let the block finish after a first Ctrl-C or SIGTERM that Python handles; the list then holds the signal.

    A signal handler that raised at any point could lose its exception in a callback, such as one of the garbage
    collector.
    """
    late: list[int] = []
    previous: dict[int, Callable[..., Any]] = {}
    if wanted and threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        previous = {number: handler for number, handler in handlers.items() if callable(handler)}

    def wait(number, frame):
        if late:
            previous[number](number, frame)
        late.append(number)
        with suppress(KeyboardInterrupt):
            previous[number](number, frame)  # the previous handler may record which signal it was

    for number in previous:
        signal.signal(number, wait)
    try:
        yield late
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
