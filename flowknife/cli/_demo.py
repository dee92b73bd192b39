"""`flowknife demo`: each application on included data."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flowknife import demos
from flowknife._files import require_own
from flowknife.cli._app import app, say, verb
from flowknife.cli._files import run_to_write


@verb(
    app,
    "demo",
    "flowknife demo",
    "flowknife demo moons --out runs/moons",
    "flowknife demo images --out runs/digits --full",
)
def _demo(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help=f"{', '.join(demos.DEMOS)}; all of them if left out.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to write.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick/--full", help="Short training, or the default training.")] = True,
) -> None:
    """Train on included data and write a report.

    With a NAME, the run and its report are written to DIR. Without, each run is written to DIR/NAME, and
    DIR/report.html shows all of them. An existing run is replaced only if a demo wrote it.
    """
    if name is not None and name not in demos.DEMOS:
        raise typer.BadParameter(f"got {name!r}; expected one of {', '.join(demos.DEMOS)}", param_hint="NAME")
    with ExitStack() as stack:
        for folder in [out] if name else [out / each for each in demos.DEMOS]:
            stack.enter_context(run_to_write(folder, overwrite=demos.is_demo(folder)))
        if name is None:
            require_own(out / "report.html")
        page = demos.run(name, out, quick) if name else demos.run_all(out, quick)
    say(f"report: {page}")
