"""The command-line application: registration of verbs, exit statuses, help, and printing of results."""

import errno
import functools
import inspect
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from flowknife import __version__
from flowknife._progress import is_silenced, silenced
from flowknife.errors import CalibrationWarning, FlowknifeError, printable

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, written by `flowknife fit`.")]
DropInvalid = Annotated[bool, typer.Option("--drop-invalid", help="Leave out rows with missing or infinite values.")]
OfPartition = Annotated[
    Literal["train", "validation", "test"] | None,
    typer.Option(help="Only images of this partition of list_eval_partition.txt, in the folder or next to it."),
]

# errors of the operating system, which are never bugs
_REFUSALS = {errno.EACCES, errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.EPERM, errno.EROFS}


_arguments: ContextVar[tuple[str, ...]] = ContextVar("arguments", default=())


def arguments() -> tuple[str, ...]:
    """The words after `flowknife` on the command line."""
    return _arguments.get()


Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and requested output.")]


def _quietable(function: Callable[..., None]) -> Callable[..., None]:
    """Add the option --quiet to a verb."""

    @functools.wraps(function)
    def quietable(*, quiet: bool = False, **given: Any) -> None:
        with silenced(quiet):
            function(**given)

    own = inspect.signature(function)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    vars(quietable)["__signature__"] = own.replace(parameters=[*own.parameters.values(), option])
    quietable.__annotations__ = {**function.__annotations__, "quiet": Quiet}
    return quietable


def say(text: str, err: bool = False) -> None:
    """Print a status line; nothing with --quiet."""
    if not is_silenced():
        typer.echo(text, err=err)


class Group(TyperGroup):
    """A group whose help shows the full first line of the help of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List each verb with the full first line of its help, wrapped on narrow terminals."""
        verbs = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, (verb.help or "").partition("\n")[0]) for name, verb in verbs if verb])


class _Verbs(Group):
    """Reports user errors as one line and an exit status; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        received.clear()

        def terminate(number, frame):
            now, before = time.monotonic(), received.get(number, -math.inf)
            received[number] = now
            # a scheduler signals all processes of a job, and the parent process passes the signal on
            if now - before > _SAME:
                raise KeyboardInterrupt

        try:
            with warnings.catch_warnings(), _handled(signal.SIGTERM, terminate):
                # the verbs print the message themselves
                warnings.simplefilter("ignore", CalibrationWarning)
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            end(*ended_by(stop))
        except Exception as error:
            line = _user_error(error)
            if line is None:
                raise
            end(1, f"error: {line}")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _arguments.set(tuple(args))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """The verbs, in order of use."""
        first = ["demo", "fit"]
        return [*first, *(name for name in super().list_commands(ctx) if name not in first)]


class Explained(KeyboardInterrupt):
    """An interruption whose text says what was written."""


received: dict[int, float] = {}
"""Signals other than Ctrl-C that this process received, with times."""

_SAME = 2.0  # a signal repeated within so many seconds counts once


def ended_by(stop: KeyboardInterrupt) -> tuple[int, str]:
    """The exit status after an interruption, with a one-line message."""
    status = 128 + next(iter(received), signal.SIGINT)
    if isinstance(stop, Explained):
        return status, f"interrupted: {stop}"
    return status, "terminated" if received else "interrupted"


@contextmanager
def _handled(number: int, handler: Callable[..., Any]) -> Generator[None, None, None]:
    """Handle a signal inside the block; Python supports this only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)


def _user_error(error: Exception) -> str | None:
    """The message of an error that the user or the machine caused; None for a bug."""
    if isinstance(error, FlowknifeError):
        return str(error)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # JAX's message for it
        return "got more than fits in memory; try less at once: fewer rows, smaller images, smaller batches"
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return f"{error.strerror}: {error.filename or 'the output'}; try another place"
    return None


def end(status: int, line: str) -> NoReturn:
    """Print one line to standard error and exit."""
    typer.echo(printable(line), err=True)
    raise typer.Exit(status)


def with_examples(text: str, *examples: str) -> str:
    """A help text followed by examples, which keep their line breaks."""
    return "\n".join([inspect.cleandoc(text), "", "\b", "Examples:", *(f"  {example}" for example in examples)])


def verb(
    group: typer.Typer, name: str, *examples: str, cls: type[TyperCommand] | None = None
) -> Callable[[Callable], Callable]:
    """Register a function as a verb; its docstring and the examples are its help."""

    def register(function: Callable) -> Callable:
        group.command(name, cls=cls, help=with_examples(function.__doc__ or "", *examples))(_quietable(function))
        return function

    return register


app = typer.Typer(
    cls=_Verbs,
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help is twice as fast
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"flowknife {__version__}")
        raise typer.Exit
    return wanted


@app.callback(
    help=with_examples(
        "One invertible network for seven jobs: each job is a choice of the blocks at its two ends.",
        "flowknife demo --out runs/demo",
        "flowknife fit density points.csv --out runs/points",
        "flowknife sample runs/points -n 1000 --out new.csv",
    )
)
def _flowknife(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def show(title: str, rows: Mapping[str, object]) -> None:
    """Print a heading and aligned rows; nothing without rows."""
    if rows:
        typer.secho(printable(title), bold=True)
        width = max(map(len, rows))
        for name, value in rows.items():  # the run may come from an untrusted source
            typer.echo(printable(f"  {name:<{width}}  {value}"))


def with_units(fitted: Any) -> dict[str, str]:
    """The metrics of a result as text, with the units used in reports."""
    from flowknife.report import UNITS, item_of

    metrics, item = fitted.metrics, item_of(fitted)
    units = {name: UNITS.get(name.removeprefix("training_"), ("", ""))[1] for name in metrics}
    return {name: f"{value:.4g} {units[name].replace('item', item)}".rstrip() for name, value in metrics.items()}
