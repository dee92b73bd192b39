"""`flowknife explore`: an interactive page of a run, computed by the model in Python."""

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
        typer.Option(min=0, max=65535, help="0 for any free port; default 8765, or any free port if it is taken."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="An address of this machine; other machines need the token.")
    ] = "127.0.0.1",
    browser: Annotated[
        bool | None,
        typer.Option("--open/--no-browser", help="Open the page in a browser; default: if there is a screen."),
    ] = None,
) -> None:
    """Serve an interactive page of a run, including image models, until Ctrl-C.

    The page evaluates the model: latents of images, images changed along latent directions, rows with their p-values,
    posteriors for draggable observations. With --images it also shows the images of a folder, up to 5,000, scored while
    the page is open, the most anomalous first. It needs the extra [explore].

    Only this machine can reach the page. With --host 0.0.0.0 others can too, through the printed address, which
    contains a secret token; the connection is not encrypted.
    """
    from flowknife.apps import load
    from flowknife.explore import require_server

    require_server()
    fitted: Any = load(run)
    only_for(["images", "classify"], fitted, images=images)
    typer.echo("preparing the page", err=True)

    def opened(address: str) -> None:
        typer.echo(f"{fitted.title} at {address} (Ctrl-C ends it)")
        sys.stdout.flush()  # a script may wait for the address on a pipe
        if _has_screen() if browser is None else browser:
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    fitted.explore(host=host, port=port, opened=opened, images=images)
    typer.echo("ended", err=True)


def _has_screen() -> bool:
    """Whether this machine has a screen for a browser."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
