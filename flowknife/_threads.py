"""Threads: prefetching, and calls that run in parallel."""

import contextlib
import contextvars
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from flowknife._interrupts import deferred
from flowknife.errors import Interrupted


def prefetch(items: Iterator, size: int = 4) -> Generator:
    """Prefetch up to `size` items in a thread; errors of the thread are raised here, closing ends the thread."""
    ready: queue.Queue = queue.Queue(maxsize=size)
    end, closed = object(), threading.Event()

    def put(item):
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work():
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join(timeout=1.0)  # longer than a put waits; a slower source ends by itself


_worker = threading.local()

_LOOKS = 0.1  # seconds between checks for an interruption


def raise_if_interrupted() -> None:
    """In a thread of `in_threads`, raise KeyboardInterrupt once the caller was interrupted; elsewhere, do nothing."""
    interrupted = getattr(_worker, "interrupted", None)
    if interrupted is not None and interrupted.is_set():
        raise KeyboardInterrupt


def in_threads(calls: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    """Results of the calls, run in `threads` threads; with one, in the calling thread.

    An interruption reaches the threads, and the threads that they start in this way, through `raise_if_interrupted`. A
    second one does not wait for them. The threads see the context variables of the caller.

    Raises:
        Interrupted: its `result` lists the results of the calls, complete or partial; None for calls without one.
    """
    results: list[Any] = [None] * len(calls)
    if threads == 1:
        for place, call in enumerate(calls):
            try:
                results[place] = call()
            except KeyboardInterrupt as stop:
                results[place] = stop.result if isinstance(stop, Interrupted) else None
                raise Interrupted(results) from None
        return results
    todo: queue.SimpleQueue = queue.SimpleQueue()
    interrupted, stirred = threading.Event(), threading.Event()
    outer: threading.Event | None = getattr(_worker, "interrupted", None)
    errors: list[BaseException] = []
    ended: list[int] = []
    for place in range(len(calls)):
        todo.put(place)

    def work():
        _worker.interrupted = interrupted
        with contextlib.suppress(queue.Empty):
            while True:
                place = todo.get_nowait()
                try:
                    results[place] = None if interrupted.is_set() else calls[place]()
                except Interrupted as stop:
                    results[place] = stop.result
                except BaseException as error:
                    if not (interrupted.is_set() and isinstance(error, KeyboardInterrupt)):
                        errors.append(error)
                ended.append(place)
                stirred.set()

    workers = [
        threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
        for _ in range(min(threads, len(calls)))
    ]
    with deferred() as late:
        while not errors and len(ended) < len(calls):
            while workers:
                workers.pop().start()
            stirred.wait(_LOOKS)  # a signal that is only recorded wakes no thread
            stirred.clear()
            if late or (outer is not None and outer.is_set()):
                interrupted.set()
    if errors:
        raise errors[0]
    if interrupted.is_set():
        raise Interrupted(results)
    return results
