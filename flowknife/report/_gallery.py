"""A gallery of scored images as a self-contained page: the most anomalous first, each with its anomaly map."""

import base64
import io
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from flowknife._files import GENERATOR, replacing
from flowknife.diagnostics import ranked
from flowknife.plots import heat_maps
from flowknife.report._page import PAGE, STYLE

MOST_SHOWN = 500  # images of a gallery

_GALLERY_STYLE = """
main { max-width: 90rem; }
ol { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
li { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 0.7rem; font-size: 0.85rem; }
li.flagged { border-color: #e07b28; }
li.discovery { border: 2px solid #8a2f5d; }
li img { width: 50%; height: auto; display: inline-block; image-rendering: pixelated; }
li p { margin: 0.4rem 0 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
li p + p { color: var(--quiet); }
"""


def write_gallery(
    path: str | Path,
    pixels: UInt8[np.ndarray, "n h w c"],
    maps: Float[np.ndarray, "n h w"],
    scores: Mapping[str, np.ndarray],
    alpha: float,
    most: int = MOST_SHOWN,
) -> Path:
    """Write a page of images sorted by p-value, without scripts or external resources.

    Args:
        path: the file to write.
        pixels: the most anomalous images, in the order of `diagnostics.ranked`.
        maps: their anomaly maps, `Images.anomaly_map`.
        scores: the columns of `Images.score` for all images.
        alpha: the threshold for flagging images.
        most: largest number of images to show.

    Returns:
        The path of the page.
    """
    order = ranked(scores)[:most]
    heat = heat_maps(pixels, maps)
    items = [_item(scores, i, pixel, hot) for i, pixel, hot in zip(order, pixels, heat, strict=True)]
    count = len(scores["score"])
    some = f"The {len(order)} most anomalous of {count:,} images"
    shown = some if len(order) < count else "The only image" if count == 1 else f"All {count:,} images"
    words = (
        f"<p>{shown}, {_flagged(scores, alpha)}</p><p>The map next to an image shows local surprisal compared with "
        "held-out images: orange where it is larger, blue where it is smaller.</p>"
    )
    body = f"<header><h1>Anomalous images</h1>{words}</header><ol>{''.join(items)}</ol>"
    page = PAGE.format(generator=GENERATOR, title="Anomalous images", style=STYLE + _GALLERY_STYLE, body=body)
    with replacing(path) as place:
        place.write_text(page, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def _flagged(scores, alpha):
    if "p_value" not in scores:
        return "largest score first. There are no p-values, since no images were held out to calibrate them."
    flags, found = int(scores["flag"].sum()), int(scores["discovery"].sum())
    are, discoveries = "is" if flags == 1 else "are", "is a discovery" if found == 1 else "are discoveries"
    return (
        f"smallest p-value first. {flags:,} {are} flagged, p &lt; {alpha:g} (orange frame); among normal "
        f"images the rate is {100 * alpha:.3g}%. {found:,} {discoveries}, q &le; {alpha:g} "
        f"(purple frame): of these at most {100 * alpha:.3g}% are expected to be normal."
    )


def _item(scores, i, pixels, heat):
    path = escape(str(scores["path"][i]))
    kind, numbers = "", f"score {scores['score'][i]:.3g}"
    if "p_value" in scores:
        kind = "discovery" if scores["discovery"][i] else "flagged" if scores["flag"][i] else ""
        numbers = f"p = {scores['p_value'][i]:.3g}, q = {scores['q_value'][i]:.3g}, {numbers}"
    return f'<li class="{kind}">{_image(pixels, path)}{_image(heat, "anomaly map")}<p>{path}</p><p>{numbers}</p></li>\n'


def _image(pixels, alt):
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    content = base64.b64encode(file.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return f'<img loading="lazy" src="data:image/png;base64,{content}" alt="{alt}" width="{width}" height="{height}">'
