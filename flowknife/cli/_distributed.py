"""`--distributed` and related options: one fit in several processes."""

import functools
import inspect
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from flowknife.cli._app import arguments, end, ended_by
from flowknife.errors import FlowknifeError, InputError, printable

LOST = (
    "lost the first process of this fit, or the connection to it; its progress is in its checkpoints; try the same "
    "command with --resume, with any number of processes"
)

Distributed = Annotated[
    Literal["auto"] | None,
    typer.Option(
        help="auto: train one model together with the other processes of a job of Slurm, Open MPI, Kubernetes, "
        "Cloud TPU or AWS Batch (multi-node)."
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Without such a cluster: address and port of the first process."),
]
Processes = Annotated[int | None, typer.Option(min=1, metavar="N", help="Number of processes.")]
ProcessId = Annotated[int | None, typer.Option(min=0, metavar="I", help="Index of this process, from 0.")]

_OPTIONS: dict[str, Any] = {
    "distributed": Distributed,
    "coordinator": Coordinator,
    "processes": Processes,
    "process_id": ProcessId,
}


def with_cluster(function: Callable[..., None]) -> Callable[..., None]:
    """Add the cluster options to a verb, which joins the cluster before any computation.

    All processes call the verb, but only the first one writes files.
    """

    @functools.wraps(function)
    def joined(**given: Any) -> None:
        own = {name: given.pop(name) for name in _OPTIONS}
        if not _wanted(own):
            function(**given)
        elif _CHILD not in os.environ:
            _supervised()
        else:
            _end_with_parent()
            _join(own)
            try:
                function(**given)
            except (FlowknifeError, KeyboardInterrupt) as error:
                # the others may be waiting or gone, so they are not contacted at the end
                _leave(error)
            except (RuntimeError, ValueError) as error:  # raised by JAX before training begins
                from flowknife._cluster import is_of_runtime, lost

                if not is_of_runtime(error):
                    raise
                _leave(lost(error))

    old = inspect.signature(function)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    own = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in old.parameters.values()]
    vars(joined)["__signature__"] = old.replace(parameters=[*own, *options])
    joined.__annotations__ = {**function.__annotations__, **_OPTIONS}
    return joined


def _wanted(own: dict[str, Any]) -> bool:
    """Whether the options name a cluster."""
    explicit = [own["coordinator"], own["processes"], own["process_id"]]
    if own["distributed"] is None and explicit == [None] * 3:
        return False
    if own["distributed"] is None and None in explicit:
        raise InputError(
            "got some of --coordinator, --processes and --process-id; expected all three; try --coordinator "
            "HOST:PORT --processes 2 --process-id 0, or --distributed auto"
        )
    if own["distributed"] is not None and explicit != [None] * 3:
        raise InputError("got --distributed auto and --coordinator, --processes or --process-id; expected one way")
    if own["coordinator"] is not None and not own["coordinator"].rpartition(":")[2].isdigit():
        raise InputError(f"got --coordinator {own['coordinator']}; expected HOST:PORT; try 10.0.0.7:12355")
    if own["processes"] is not None and own["process_id"] >= own["processes"]:
        raise InputError(f"got --process-id {own['process_id']} of {own['processes']}; expected from 0 on")
    return True


def _join(own: dict[str, Any]) -> None:
    from flowknife._cluster import join

    join(own["coordinator"], own["processes"], own["process_id"])


_CHILD = "FLOWKNIFE_CLUSTER_PROCESS"

_NOISE = re.compile(rb"[EFW]\d{4} .*(coordination|preemption|client\.h)|\*\*\* Check failure")
"""Beginning of JAX's last message when the first process or the network is lost."""


_TOLD = (b"error: ", b"interrupted", b"terminated")
"""Beginning of the last line when this program reports why it ended."""


def _supervised() -> None:
    """Run this command in a child process, since JAX aborts the process if the first process is lost.

    The exit status is that of the child; if it was aborted, one line gives the reason.
    """
    command = [sys.executable, "-m", "flowknife", *arguments()]
    child = subprocess.Popen(command, env={**os.environ, _CHILD: str(os.getpid())}, stderr=subprocess.PIPE)
    handlers = {signal.SIGTERM: lambda *_: child.terminate(), signal.SIGINT: lambda *_: None}  # Ctrl-C reaches both
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    assert child.stderr is not None
    last, told = b"", False
    try:
        for line in child.stderr:
            last = last or (line if _NOISE.match(line) else b"")
            told = told or line.startswith(_TOLD)
            if not last or line.startswith(_TOLD):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()
        status = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status and last and not told:
        end(1, f"error: {LOST}")
    raise typer.Exit(status if status >= 0 else 128 - status)


def _end_with_parent() -> None:
    """End this process when its parent is gone."""

    def watch() -> None:
        while os.getppid() == int(os.environ[_CHILD]):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave(error: BaseException) -> None:
    """End this process with a one-line message, without waiting for processes that may be gone."""
    status, words = ended_by(error) if isinstance(error, KeyboardInterrupt) else (1, f"error: {error}")
    sys.stdout.flush()
    sys.stderr.write(printable(words) + "\n")
    sys.stderr.flush()
    os._exit(status)
