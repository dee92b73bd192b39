"""Animation of a two-dimensional flow, from data through its layers to the latent space and back, as a GIF."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._files import mark, replacing
from flowknife.errors import InputError
from flowknife.plots import _style as style
from flowknife.plots._style import Values

if TYPE_CHECKING:
    from PIL import Image

FRAME_MS = 40  # GIF counts in hundredths of a second: 25 images a second
HOLD_MS = 600  # pause at both ends
LARGEST_FILE = 3_000_000
MOST_POINTS = 2000


def mapping_animation(
    path: str | Path,
    stages: Values,
    colour: Values | None = None,
    lines: Values | None = None,
    seconds: float | int = 3.0,
    names: Sequence[str] | None = None,
) -> Path:
    """Write an animated GIF of the points, from x through the layers to z and back.

    Between two layers the points follow a monotone cubic (no overshoot); the view follows the points.

    Args:
        path: the file to write.
        stages: the points after 0, 1, ..., all layers, shape (s, n, 2) with s >= 2: x first, z last.
        colour: one number or label per point.
        lines: polylines at the same stages, shape (s, m, k, 2); a polyline with NaN is left out.
        seconds: duration of one loop, without the pauses at both ends.
        names: names of the stages; "data", "layer 1", ..., "latent" if None.

    Returns:
        the path. The file stays below 3 MB, if necessary with fewer and then smaller frames.

    Raises:
        InputError: if a shape does not fit.
        StorageError: if the file cannot be written.
    """
    stages = np.asarray(stages, dtype=np.float64)
    if stages.ndim != 3 or stages.shape[0] < 2 or stages.shape[1] < 1 or stages.shape[2] != 2:
        raise InputError(f"got stages of shape {stages.shape}; expected (s, n, 2) with s >= 2: x first, z last")
    count = len(stages)
    lines = np.zeros((count, 0, 2, 2)) if lines is None else np.asarray(lines, dtype=np.float64)
    if lines.ndim != 4 or len(lines) != count or lines.shape[3] != 2:
        raise InputError(f"got lines of shape {lines.shape}; expected ({count}, m, k, 2), polylines at every stage")
    lines = lines[:, np.isfinite(lines).all(axis=(0, 2, 3))]
    names = ["data", *(f"layer {i}" for i in range(1, count - 1)), "latent"] if names is None else list(names)
    if len(names) != count or seconds <= 0:
        raise InputError(f"got {len(names)} names, seconds={seconds}; expected {count} names and a positive duration")
    shades = style.point_colours(colour, stages.shape[1])
    kept = style.thin(stages.shape[1], MOST_POINTS)
    stages, shades = stages[:, kept], shades[kept]
    if not np.isfinite(stages).all():
        raise InputError("got stages with NaN or infinite points; expected finite ones, try to drop those points")

    path = Path(path)
    frames = max(int(seconds * 500 / FRAME_MS), 2)
    encoded = b""
    for pixels, every in ((480, 1), (480, 2), (360, 2), (280, 3), (200, 4)):
        way = list(_frames(stages, shades, lines, names, max(frames // every, 2), pixels))
        encoded = _gif(way, FRAME_MS * every, mark(path.name))
        if len(encoded) < LARGEST_FILE:
            break
    with replacing(path) as place:
        place.write_bytes(encoded)
    return path


def _frames(
    stages: np.ndarray, shades: np.ndarray, lines: np.ndarray, names: Sequence[str], frames: int, pixels: int
) -> "Iterator[Image.Image]":
    """Draw the frames from the first to the last stage."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.collections import LineCollection
    from matplotlib.patches import Circle
    from PIL import Image
    from scipy.interpolate import PchipInterpolator

    last = len(stages) - 1
    knots = np.arange(len(stages))
    place, curve = PchipInterpolator(knots, stages, axis=0), PchipInterpolator(knots, lines, axis=0)
    view = PchipInterpolator(knots, np.array([_square(stage) for stage in stages]), axis=0)

    figure = style.figure_type()(figsize=(pixels / 100, pixels * 1.12 / 100), dpi=100, facecolor=style.PAPER)
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0.04, 0.14, 0.92, 0.82))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    mesh = LineCollection([], colors=style.MESH, linewidths=0.6)
    axes.add_collection(mesh)
    dots = axes.scatter(*stages[0].T, s=style.marker_size(stages.shape[1]), c=shades, alpha=0.85, linewidths=0)
    circles = [
        axes.add_patch(Circle((0, 0), r, fill=False, edgecolor=style.INK, linewidth=0.9, linestyle=(0, (4, 3))))
        for r in (1, 2, 3)
    ]
    track = figure.add_axes((0.2, 0.04, 0.6, 0.06))
    track.set_axis_off()
    track.set_xlim(-0.03 * last, 1.03 * last)
    track.set_ylim(-1, 1)
    track.plot([0, last], [0, 0], color=style.RULE, linewidth=2, zorder=1)
    track.scatter(knots, np.zeros(last + 1), s=14, color=style.RULE, zorder=2)
    mark = track.scatter([0], [0], s=46, color=style.MODEL, zorder=3)
    text: dict[str, Any] = {"fontsize": 10, "color": style.QUIET, "family": style.family(), "va": "center"}
    figure.text(0.17, 0.07, names[0], ha="right", **text)
    figure.text(0.83, 0.07, names[-1], ha="left", **text)
    between = figure.text(0.5, 0.125, "", ha="center", **text)

    for time in np.linspace(0, 1, frames):
        progress = last * time * time * (3 - 2 * time)
        dots.set_offsets(place(progress))
        mesh.set_segments(list(curve(progress)))
        centre_x, centre_y, half = view(progress)
        axes.set_xlim(centre_x - half, centre_x + half)
        axes.set_ylim(centre_y - half, centre_y + half)
        for circle in circles:
            circle.set_alpha(float(np.clip(progress - last + 1, 0, 1)) ** 2)
        mark.set_offsets([[progress, 0]])
        nearest = int(np.rint(progress))
        between.set_text(names[nearest] if 0 < nearest < last else "")
        canvas.draw()
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def _square(stage: np.ndarray) -> tuple[float, float, float]:
    """Centre and half side of a square view of the points."""
    (left, right), (bottom, top) = (style.span(stage[:, i], margin=0.1) for i in range(2))
    return (left + right) / 2, (bottom + top) / 2, max(right - left, top - bottom) / 2


def _gif(way: "list[Image.Image]", frame_ms: int, comment: str) -> bytes:
    """A GIF of the frames, forwards and backwards, with one palette so that static regions do not flicker."""
    from PIL import Image, ImageColor

    sample = [way[i] for i in style.thin(len(way), 5)]
    strip = Image.new("RGB", (sample[0].width, sample[0].height * len(sample)))
    for i, frame in enumerate(sample):
        strip.paste(frame, (0, i * frame.height))
    found = strip.quantize(colors=64, method=Image.Quantize.MEDIANCUT).getpalette() or []
    # median cut averages colours, which would turn the background grey and the mark dull: these two are fixed
    given = [ImageColor.getrgb(style.PAPER), ImageColor.getrgb(style.MODEL)]
    mixed = [found[i : i + 3] for i in range(0, 64 * 3, 3)]
    mixed = [rgb for rgb in mixed if len(rgb) == 3 and min(rgb) < 244]
    palette = Image.new("P", (1, 1))
    palette.putpalette([level for rgb in (*given, *mixed) for level in rgb])
    there = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in way]
    loop = there + there[-2:0:-1]
    times = [frame_ms] * len(loop)
    times[0] = times[len(there) - 1] = HOLD_MS
    file = io.BytesIO()
    loop[0].save(
        file, "GIF", save_all=True, append_images=loop[1:], duration=times, loop=0, optimize=False, comment=comment
    )
    return file.getvalue()
