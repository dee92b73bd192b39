"""`flowknife explore`: an interactive page of a run, answered by the model in Python."""

import os
import sys
import threading
import webbrowser
from typing import Annotated, Any

import typer

from flowknife.cli._app import Run, app, verb
from flowknife.cli._kinds import only_for


@verb(
    app,
    "explore",
    "flowknife explore runs/cats",
    "flowknife explore runs/cats --images data/new",
    "flowknife explore runs/cats --port 9000 --no-browser",
    "flowknife explore runs/cats --host 0.0.0.0",
)
def _explore(
    run: Run,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Images to score and to sort by p-value on the page; a model of images only."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="0 for any that is free; if left out 8765, or any if it is taken."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="An address of this machine; beyond it, a token is asked for.")
    ] = "127.0.0.1",
    browser: Annotated[
        bool | None,
        typer.Option("--open/--no-browser", help="Open the page in a browser; if left out, where there is a screen."),
    ] = None,
) -> None:
    """Serve an interactive page of a run, of images too, until Ctrl-C.

    The page asks the model: the latents of images as points, images changed along directions of the latent, rows with
    their p-values, posteriors of an observation that is dragged. With --images it also has the images of a folder, up
    to 5,000, scored while the page is open, the most anomalous first. It needs the extra [explore].

    Only this machine can reach it. With --host 0.0.0.0 others can too, by the address that is printed, which has a
    secret token; the connection is not encrypted.
    """
    from flowknife.apps import load
    from flowknife.explore import require_server

    require_server()
    fitted: Any = load(run)
    only_for(["images", "classify"], fitted, images=images)
    typer.echo("preparing the page", err=True)

    def opened(address: str) -> None:
        typer.echo(f"{fitted.title} at {address} (Ctrl-C ends it)")
        sys.stdout.flush()  # a script that waits for the address reads it from a pipe
        if _has_screen() if browser is None else browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    fitted.explore(host=host, port=port, opened=opened, images=images)
    typer.echo("ended", err=True)


def _has_screen() -> bool:
    """Whether a browser of this machine would be seen."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
