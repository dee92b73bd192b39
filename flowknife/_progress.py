"""Progress of long work: a bar on a terminal or in a notebook, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from html import escape
from typing import Any, Protocol, runtime_checkable

_LINE_EVERY = 15.0  # seconds between plain lines


@runtime_checkable
class Report(Protocol):
    """Show the share of the work that is done: `report(0.4, "loss 1.23")`."""

    def __call__(self, fraction: float, text: str = "") -> None: ...


def unreported(fraction: float, text: str = "") -> None:
    """A report that shows nothing."""


_silent = 0  # how many blocks of `silenced` there are


@contextmanager
def silenced(wanted: bool = True) -> Generator[None, None, None]:
    """Show neither progress nor notes inside the block, whatever the settings are."""
    global _silent
    _silent += wanted
    try:
        yield
    finally:
        _silent -= wanted


def is_silenced() -> bool:
    """Whether progress and notes are switched off, by `silenced`."""
    return _silent > 0


_job: ContextVar[str] = ContextVar("job", default="")


@contextmanager
def of_job(name: str) -> Generator[None, None, None]:
    """Begin the labels of progress and notes inside the block with a name, where several jobs run at a time."""
    token = _job.set(f"{name}: ")
    try:
        yield
    finally:
        _job.reset(token)


def note(text: str, show: bool = True) -> None:
    """Write a line about a running fit to standard error; nothing if `text` is empty."""
    if text and show and not _silent:
        sys.stderr.write(f"note: {_job.get()}{text}\n")
        sys.stderr.flush()


@contextmanager
def progress(label: str, show: bool = True) -> Generator[Report, None, None]:
    """Show the progress of the work inside the block on standard error.

    Args:
        label: what is being done, in a few words.
        show: False shows nothing.

    Yields:
        a function of the finished fraction in [0, 1] and a short text.
    """
    label = f"{_job.get()}{label}"
    if not show or _silent:
        yield unreported
    elif _is_notebook():
        with _in_notebook(label) as report:
            yield report
    elif sys.stderr.isatty():
        with _bar(label) as report:
            yield report
    else:
        with _lines(label) as report:
            yield report


def _is_notebook() -> bool:
    """Whether IPython runs in a front end that shows HTML."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ in ("ZMQInteractiveShell", "Shell")  # Jupyter, Colab


_NOTEBOOK_EVERY = 0.2  # seconds between updates


@contextmanager
def _in_notebook(label):
    from IPython.display import HTML, display  # ty: ignore[import-not-found]

    start, last = time.monotonic(), 0.0

    def shown(fraction, text):
        words = f"{label}: {100 * fraction:.0f} %, {time.monotonic() - start:.0f} s {text}"
        bar = f'<progress value="{fraction:.3f}" max="1" style="width:16em;vertical-align:middle"></progress>'
        return HTML(f'<div style="font-family:monospace">{bar} {escape(words)}</div>')

    latest = (0.0, "")
    place = display(shown(*latest), display_id=True)

    def report(fraction, text=""):
        nonlocal last, latest
        latest = (fraction, text)
        if time.monotonic() - last >= _NOTEBOOK_EVERY:
            last = time.monotonic()
            place.update(shown(*latest))

    try:
        yield report
    finally:
        place.update(shown(*latest))


_lock = threading.Lock()
_bars: list[Any] = []  # the one display of a terminal, repeated for each bar beyond the first


@contextmanager
def _bar(label):
    bars = _join_display()
    task = bars.add_task(label, total=1.0, text="")
    try:
        yield lambda fraction, text="": bars.update(task, completed=fraction, text=text)
    finally:
        _leave_display()


def _join_display():
    """The display that all bars share: work in several threads shows one bar per thread."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    with _lock:
        if not _bars:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            _bars.append(Progress(*columns, console=Console(stderr=True)))
            _bars[0].start()
        else:
            _bars.append(_bars[0])
        return _bars[0]


def _leave_display():
    with _lock:
        bars = _bars.pop()
        if not _bars:
            bars.stop()


@contextmanager
def _lines(label):
    start = last = time.monotonic()
    latest = (0.0, "")

    def line():
        fraction, text = latest
        parts = [f"{label}: {100 * fraction:.0f} %", f"{time.monotonic() - start:.0f} s", text]
        sys.stderr.write(", ".join(part for part in parts if part) + "\n")
        sys.stderr.flush()

    def report(fraction, text=""):
        nonlocal last, latest
        latest = (fraction, text)
        if time.monotonic() - last >= _LINE_EVERY:
            last = time.monotonic()
            line()

    yield report
    line()
