"""`--distributed` and its kin: one fit by several processes."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from flowknife.errors import FlowknifeError, InputError, printable

Distributed = Annotated[
    Literal["auto"] | None,
    typer.Option(
        help="auto: one of the processes of Slurm, Open MPI, Kubernetes, Cloud TPU or a multi-node job of AWS Batch, "
        "which train one model together."
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="The same without such a cluster: the first process, and a port there."),
]
Processes = Annotated[int | None, typer.Option(min=1, metavar="N", help="How many processes there are.")]
ProcessId = Annotated[int | None, typer.Option(min=0, metavar="I", help="Which one this is, from 0.")]

_OPTIONS: dict[str, Any] = {
    "distributed": Distributed,
    "coordinator": Coordinator,
    "processes": Processes,
    "process_id": ProcessId,
}


def with_cluster(function: Callable[..., None]) -> Callable[..., None]:
    """A verb with the options of a cluster, which joins it before anything computes.

    All processes call the verb; the first one writes what it writes.
    """

    @functools.wraps(function)
    def joined(**given: Any) -> None:
        own = {name: given.pop(name) for name in _OPTIONS}
        if not _joins(own):
            function(**given)
            return
        try:
            function(**given)
        except (FlowknifeError, KeyboardInterrupt) as error:
            # the others may wait for this process, or be gone: nothing is to be said to them at the end
            _leave(error)

    old = inspect.signature(function)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    own = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in old.parameters.values()]
    vars(joined)["__signature__"] = old.replace(parameters=[*own, *options])
    joined.__annotations__ = {**function.__annotations__, **_OPTIONS}
    return joined


def _joins(own: dict[str, Any]) -> bool:
    """Join the cluster that the options name; whether there is one."""
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
    from flowknife._cluster import join

    join(*explicit)
    return True


def _leave(error: BaseException) -> None:
    """End this process with one line, without waiting for those that may be gone."""
    words = "interrupted" if isinstance(error, KeyboardInterrupt) else f"error: {error}"
    sys.stdout.flush()
    sys.stderr.write(printable(words) + "\n")
    sys.stderr.flush()
    os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)
