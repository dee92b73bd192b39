"""A contact sheet: images in labelled blocks, where every image pixel is an integer number of figure pixels."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCH = style.DPI
GAP = round(0.06 * INCH)
MARGIN = round(0.16 * INCH)
LINE = round(0.165 * INCH)  # height of one line of a caption


@dataclass(frozen=True)
class Block:
    """Images under one label, row by row.

    Attributes:
        images: uint8, shape (n, H, W, C).
        label: text at the left of the block.
        captions: one below each image, or none.
        colour: colour of label and captions.
    """

    images: np.ndarray
    label: str = ""
    captions: Sequence[str] = ()
    colour: str = style.INK


def checked_images(images: Values, name: str = "images") -> np.ndarray:
    """Read images as uint8 of shape (n, H, W, C).

    Raises:
        InputError: for anything else, or no images.
    """
    stack = np.asarray(images)
    if stack.ndim != 4 or stack.shape[-1] not in (1, 3) or stack.size == 0 or stack.dtype != np.uint8:
        raise InputError(
            f"got {name} of shape {stack.shape} and dtype {stack.dtype}; "
            "expected uint8 of shape (n, height, width, 1 or 3) with n >= 1"
        )
    return stack


def canvas(width: int, height: int) -> "tuple[Figure, Axes]":
    """A figure of this size in pixels, with axes in pixel coordinates from the top left."""
    figure = style.figure_type()(figsize=(width / INCH, height / INCH), dpi=INCH, facecolor=style.PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.autoscale(False)
    return figure, axes


def tile_size(images: np.ndarray, columns: int, room: int, largest: float = 1.3) -> tuple[int, int]:
    """Width and height of one image in figure pixels; enlarged images grow by an integer factor."""
    height, width = images.shape[1:3]
    target = min(largest * INCH, room / columns - GAP)
    scale = target / max(height, width)
    scale = float(int(scale)) if scale >= 1 else scale
    return max(round(width * scale), 1), max(round(height * scale), 1)


def rows_height(count: int, columns: int, tile: tuple[int, int], caption_lines: int) -> int:
    """Height of `count` images in pixels, captions included."""
    return -(-count // columns) * (tile[1] + GAP + caption_lines * LINE) - GAP


def caption_lines(captions: Sequence[str]) -> int:
    """Lines of the longest caption."""
    return max((caption.count("\n") + 1 for caption in captions), default=0)


def place(axes: "Axes", block: Block, left: int, top: int, columns: int, tile: tuple[int, int], lines: int) -> None:
    """Draw the images of a block on a canvas, row by row from this corner."""
    limits = axes.get_xlim(), axes.get_ylim()
    for index, image in enumerate(block.images):
        row, column = divmod(index, columns)
        x = left + column * (tile[0] + GAP)
        y = top + row * (tile[1] + GAP + lines * LINE)
        shown = np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image
        # enlarged images keep sharp pixels, reduced images are averaged
        how = "nearest" if tile[0] >= image.shape[1] else "auto"
        axes.imshow(shown, extent=(x, x + tile[0], y + tile[1], y), aspect="auto", interpolation=how)
        if block.captions:
            text = shorten(block.captions[index], tile[0])
            write(axes, x + tile[0] / 2, y + tile[1] + 5, text, size=7.5, colour=block.colour, ha="center")
    axes.set(xlim=limits[0], ylim=limits[1])  # imshow moves them


def write(
    axes: "Axes",
    x: float | int,
    y: float | int,
    text: str,
    size: float | int,
    colour: str = style.INK,
    ha: str = "left",
) -> None:
    """Write text on a canvas, its top at y."""
    look: dict[str, Any] = {"family": style.family(), "fontsize": size, "color": colour, "linespacing": 1.25}
    axes.text(x, y, text, ha=ha, va="top", **look)


def shorten(caption: str, width: int) -> str:
    """Cut the middle of lines that are wider than an image, since the ends of a file name matter most."""
    letters = max(int(width / (0.063 * INCH)), 7)
    lines = caption.split("\n")
    half = letters // 2
    return "\n".join(
        line if len(line) <= letters else f"{line[:half]}…{line[-(letters - half - 1) :]}" for line in lines
    )


def sheet(blocks: Sequence[Block], columns: int, heading: str = "") -> "Figure":
    """Blocks of images below each other, with equal tiles, labels at the left and a heading above.

    Args:
        blocks: at least one, each with at least one image.
        columns: images in a row.
        heading: a sentence above the images.
    """
    label_letters = max((len(line) for b in blocks for line in textwrap.wrap(b.label, 16)), default=0)
    gutter = round(label_letters * 0.082 * INCH) + (GAP * 2 if label_letters else 0)
    tiles = [tile_size(block.images, columns, round(11 * INCH) - gutter) for block in blocks]
    lines = [caption_lines(block.captions) for block in blocks]
    heights = [
        rows_height(len(block.images), columns, tile, line)
        for block, tile, line in zip(blocks, tiles, lines, strict=True)
    ]
    between = GAP * 3 if any(len(block.images) > columns or block.captions for block in blocks) else GAP
    width = MARGIN * 2 + gutter + max(columns * (tile[0] + GAP) - GAP for tile in tiles)
    width = max(width, round(5.4 * INCH) if heading else 0)
    heading = textwrap.fill(heading, style.letters((width - 2 * MARGIN) / INCH))
    top = MARGIN + (round((heading.count("\n") + 1) * 0.235 * INCH) + MARGIN if heading else 0)

    figure, axes = canvas(width, top + sum(heights) + between * (len(blocks) - 1) + MARGIN)
    if heading:
        write(axes, MARGIN, MARGIN, heading, size=12)
    for block, tile, line, height in zip(blocks, tiles, lines, heights, strict=True):
        if block.label:
            write(axes, MARGIN, top + GAP / 2, textwrap.fill(block.label, 16), size=9.5, colour=block.colour)
        place(axes, block, MARGIN + gutter, top, columns, tile, line)
        top += height + between
    return figure
