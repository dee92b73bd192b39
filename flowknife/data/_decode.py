"""From a picture file of any mode and size to 8-bit pixels of the size wanted."""

import contextlib
import io
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from flowknife.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
_MAX_PIXELS = 100_000_000
_MIN_SIDE = 4
_MAX_ASPECT = 20
_TOO_LARGE = f"more than {_MAX_PIXELS // 10**6} megapixels"

Channels = Literal["auto", 1, 3]

Content = Path | bytes | np.ndarray
"""A file, what a file held, or pixels that are there already."""


class Form(NamedTuple):
    """What is wanted of every picture: its size, 1 channel or 3 ("auto": as it is), the share of it that is kept."""

    width: int
    height: int
    channels: Channels
    crop: int | float


def decode(content: Content, form: Form) -> np.ndarray | str:
    """A picture as uint8 (height, width, 1 or 3); or the reason why it cannot be used."""
    return _opened(content, lambda image: _fit(image, form))


def shorter_side(content: Content) -> int | None:
    """The shorter side of a picture in pixels; None if it cannot be used."""
    side = _opened(content, lambda image: min(image.size))
    return None if isinstance(side, str) else side


def _opened(content, use):
    """What `use` makes of the picture; or the reason why it cannot be used."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(content, np.ndarray):
            return use(Image.fromarray(content))
        if isinstance(content, Path):
            status = content.stat()
            if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
                return "not a file"
        if not (status.st_size if isinstance(content, Path) else len(content)):
            return "empty file"
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=_FORMATS) as image:
            return use(image)
    except InputError as error:
        return str(error)
    except UnidentifiedImageError:
        return "not an image, whatever its name says"
    except Image.DecompressionBombError:
        return _TOO_LARGE
    except PermissionError:
        return "no permission to read"
    except FileNotFoundError:
        return "broken link" if isinstance(content, Path) and content.is_symlink() else "no such file"
    except Exception as error:  # decoders fail in many ways, and no single file may end a run
        return f"damaged or truncated ({type(error).__name__})"


def _fit(image: "Image.Image", form: Form) -> np.ndarray:
    """Orient, turn into 8-bit grey or RGB, scale and crop; an InputError carries the reason why not."""
    from PIL import Image, ImageOps

    size = (form.width, form.height)
    short, long = sorted(image.size)
    if short * long > _MAX_PIXELS:
        raise InputError(_TOO_LARGE)
    if short < _MIN_SIDE:
        raise InputError(f"smaller than {_MIN_SIDE} pixels on a side")
    if long > _MAX_ASPECT * short:
        raise InputError(f"longer than {_MAX_ASPECT} to 1")
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for less; twice the wanted size leaves the filter something to do.
    enough = 2 * max(size) / (short * form.crop)
    image.draft(None, (int(enough * image.width), int(enough * image.height)))
    image.load()
    with contextlib.suppress(Exception):  # unreadable EXIF: the picture itself is sound
        image = ImageOps.exif_transpose(image)
    image = _as_eight_bit(image)
    if form.channels == 1:
        image = image.convert("L")

    zoom = max(size[0] / image.width, size[1] / image.height) / form.crop
    box_width, box_height = min(size[0] / zoom, image.width), min(size[1] / zoom, image.height)
    left, top = (image.width - box_width) / 2, (image.height - box_height) / 2
    box = (left, top, min(left + box_width, image.width), min(top + box_height, image.height))
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0))
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., :1] if (pixels == pixels[..., :1]).all() else pixels


def _as_eight_bit(image: "Image.Image") -> "Image.Image":
    """Any mode of Pillow as L (grey) or RGB, on white where the picture is transparent."""
    from PIL import Image

    if image.mode == "F":
        raise InputError("floating-point pixels, which have no fixed range")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow keeps some of it in 32 bits
        values = np.asarray(image).astype(np.int32)
        if np.min(values) < 0 or np.max(values) > 65535:
            raise InputError("32-bit pixels outside 0 to 65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image if image.mode == "L" else image.convert("RGB")
