"""The verbs for image models only: `interpolate` and `attribute`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowknife._files import replacing
from flowknife.cli._app import Run, app, say, verb
from flowknife.cli._files import Replace, require_output
from flowknife.errors import InputError, counted

if TYPE_CHECKING:
    from flowknife.apps import Images

Given = Annotated[str | None, typer.Option(metavar="CLASS", help="Their class, for a run with classes.")]

_SHOWN = 4  # held-out images, if no images are given


@verb(
    app,
    "interpolate",
    "flowknife interpolate runs/cats mine.png yours.png --out between.png",
    "flowknife interpolate runs/cats mine.png yours.png --steps 24 --out between.gif",
)
def _interpolate(
    run: Run,
    first: Annotated[Path, typer.Argument(metavar="A", help="An image file.")],
    last: Annotated[Path, typer.Argument(metavar="B", help="Another image file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="FILE.png for a strip, FILE.gif for an animation.")
    ],
    steps: Annotated[int, typer.Option(min=2, help="Number of images, both ends included.")] = 8,
    given: Given = None,
    linear: Annotated[bool, typer.Option("--linear", help="Interpolate linearly, not spherically.")] = False,
    overwrite: Replace = False,
) -> None:
    """Interpolate between two images in latent space."""
    from flowknife import plots

    _require_ending(out, ".png", ".gif")
    require_output(out, first, last, run=run, overwrite=overwrite)
    model = _images(run)
    images = model.interpolate(first, last, steps, how="linear" if linear else "spherical", given=given)
    if out.suffix.lower() == ".gif":
        plots.interpolation_animation(out, images)
    else:
        _save(plots.interpolation(images), out)
    say(f"wrote {steps} images to {out}")


@verb(
    app,
    "attribute",
    "flowknife attribute runs/cats --positive data/open --negative data/shut --out open.png",
    "flowknife attribute runs/cats --positive data/open --negative data/shut my.png --strengths=0,1 --out my.png",
)
def _attribute(
    run: Run,
    positive: Annotated[str, typer.Option(metavar="DIR", help="Images with the attribute.")],
    negative: Annotated[str, typer.Option(metavar="DIR", help="Images without the attribute.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.png", help="The image to write.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="[IMAGE]...", help="Image files; if left out, held-out ones.")
    ] = None,
    strengths: Annotated[
        str, typer.Option(metavar="S,S,...", help="Step sizes; 1 is the distance between the two means.")
    ] = "-2,-1,-0.5,0,0.5,1,2",
    given: Given = None,
    overwrite: Replace = False,
) -> None:
    """Add an attribute to images, or remove it.

    The direction is the difference of the mean latents of the two folders.
    """
    import numpy as np

    from flowknife import plots

    _require_ending(out, ".png")
    require_output(out, positive, negative, *(images or ()), run=run, overwrite=overwrite)
    steps = [number_in(part, "--strengths") for part in strengths.split(",")]
    model = _images(run)
    direction = model.attribute(positive, negative, given)
    if images:
        rows = np.concatenate([model.along(image, direction, steps, given) for image in images])
    else:
        classes = model.example_classes
        rows = model.along(model.examples[:_SHOWN], direction, steps, None if classes is None else classes[:_SHOWN])
    _save(plots.along(rows, steps, f"From {Path(negative).name} to {Path(positive).name}; 0 is the image."), out)
    say(f"wrote {counted(len(rows), 'row')} of images to {out}")


def number_in(text: str, option: str) -> float:
    """The number in a text.

    Raises:
        InputError: it is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number - number != 0:
        raise InputError(f"got {text!r} in {option}; expected a number such as 0.7")
    return number


def _images(run: Path) -> "Images":
    from flowknife.apps import load

    model: Any = load(run)
    if model.application != "images":
        raise InputError(f"got a run of {model.application}; expected one of images; try flowknife fit images")
    return model


def _require_ending(out: Path, *endings: str) -> None:
    if out.suffix.lower() not in endings:
        raise InputError(f"got --out {out}; expected a file that ends in {' or '.join(endings)}")


def _save(figure, out):
    with replacing(out) as place:
        figure.savefig(place, format="png")
