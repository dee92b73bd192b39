"""Decode an image file of any mode and size to 8-bit pixels of a given size."""

import contextlib
import io
import stat
import sys
import threading
from collections.abc import Generator
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
_MAX_SCANNED = 10**9  # pixels times scans of a progressive JPEG
_FAINT = 2**12  # 16-bit images darker than this would keep fewer than 4 of 8 bits
_TOO_LARGE = f"more than {_MAX_PIXELS // 10**6} megapixels"

Channels = Literal["auto", 1, 3]

Content = Path | bytes | np.ndarray
"""A file, the content of a file, or pixels."""


class White(NamedTuple):
    """The pixel value that counts as white, by type of pixels; 0 if no image of the set has this type.

    Pixels v become round(255 v / white), at most 255. The values are chosen once, from the training images, and stored
    with the run, so that an image always gives the same pixels.

    Attributes:
        whole: for integers of more than 8 bits.
        real: for floating-point numbers.
        byte: for 8 bits; 1 if a set holds only 0 and 1.
    """

    whole: float = 0.0
    real: float = 0.0
    byte: float = 255.0

    def covering(self) -> "White":
        """The white values of a set with these largest values: the largest value of a number of bits, or 1.

        Numbers of bits are even, as cameras have 10, 12, 14 or 16; if no number exceeds 1, white is 1.
        """
        return White(_white(self.whole), _white(self.real), self.byte)

    def describe(self) -> str:
        """In words; "" for 8-bit images."""
        kinds = (("whole numbers", self.whole), ("floating-point numbers", self.real), ("bytes", self.byte % 255))
        return ", ".join(f"{value:g} in {kind}" for kind, value in kinds if value)


def _white(largest):
    if largest <= 1:
        return 1.0 if largest > 0 else 0.0
    bits = int(np.ceil(largest)).bit_length()
    return float(2 ** (bits + bits % 2) - 1)


EIGHT_BITS = White()
"""White values of a set of 8-bit images."""


class Form(NamedTuple):
    """The size, channels and crop of every image.

    Attributes:
        width: in pixels.
        height: in pixels.
        channels: 1 or 3; "auto" keeps those of the image.
        crop: share of the image to keep.
        white: the white values.
    """

    width: int
    height: int
    channels: Channels
    crop: int | float
    white: White = EIGHT_BITS


def largest_values(content: Content) -> White:
    """The largest pixel values of an image of more than 8 bits; zeros for 8 bits, and for constant images."""
    if isinstance(content, Path) and _is_png_of_bytes(content):
        return EIGHT_BITS
    found = _opened(content, _largest)
    return found if isinstance(found, White) else EIGHT_BITS


def _is_png_of_bytes(path):
    """Whether the first bytes of a file are those of a PNG of at most 8 bits."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(25)
            return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:] <= b"\x08"
    return False


def _largest(image):
    if isinstance(image, np.ndarray):
        return _largest_of(image)
    _require_usable(image)
    if image.mode in ("1", "L", "P"):
        return EIGHT_BITS
    with _decoding(image, image.width * image.height):
        return _largest_of(_values(image))


def _largest_of(values):
    if values is None or values.dtype == np.uint8 or not np.isfinite(values).all() or values.min() == values.max():
        return EIGHT_BITS
    largest = max(float(values.max()), 0.0)
    return White(real=largest) if values.dtype.kind == "f" else White(whole=largest)


def decode(content: Content, form: Form) -> np.ndarray | str:
    """An image as uint8 (height, width, 1 or 3); or the reason why it is unusable."""
    return _opened(content, lambda image: _fit(image, form))


def shorter_side(content: Content) -> int | None:
    """The shorter side of an image in pixels; None if it is unusable."""
    side = _opened(content, lambda image: min(image.shape[:2] if isinstance(image, np.ndarray) else image.size))
    return None if isinstance(side, str) else side


def _opened(content, use):
    """The result of `use` on the opened image; or the reason why it is unusable."""
    from PIL import Image, TiffImagePlugin, UnidentifiedImageError

    # Pillow can unpack double precision, but does not recognise it in TIFF files
    for prefix, kind in ((b"II", "F;64F"), (b"MM", "F;64BF")):
        TiffImagePlugin.OPEN_INFO.setdefault((prefix, 1, (3,), 1, (64,), ()), ("F", kind))
    try:
        if isinstance(content, np.ndarray):
            return use(content)
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
        return "not an image, despite its name"
    except Image.DecompressionBombError:
        return _TOO_LARGE
    except PermissionError:
        return "no permission to read"
    except FileNotFoundError:
        return "broken link" if isinstance(content, Path) and content.is_symlink() else "no such file"
    except Exception as error:  # decoders raise many kinds of errors, and a single file must not end a run
        return f"damaged or truncated ({type(error).__name__})"


def _require_usable(image):
    short, long = sorted(image.size)
    if short * long > _MAX_PIXELS:
        raise InputError(_TOO_LARGE)
    if short < _MIN_SIDE:
        raise InputError(f"smaller than {_MIN_SIDE} pixels on a side")
    if long > _MAX_ASPECT * short:
        raise InputError(f"longer than {_MAX_ASPECT} to 1")
    if image.format == "JPEG" and image.info.get("progressive"):
        place = image.fp.tell()
        image.fp.seek(0)
        scans = image.fp.read().count(b"\xff\xda")
        image.fp.seek(place)
        if scans * short * long > _MAX_SCANNED:
            raise InputError(f"a JPEG of {scans} scans, which takes too long")


class _Room:
    """The memory for decoding images, shared by all threads; a thread waits until enough is free."""

    def __init__(self, size: int):
        self._size, self._taken, self._changed = size, 0, threading.Condition()

    @contextlib.contextmanager
    def taken(self, wanted: int) -> Generator[None]:
        """Reserve bytes inside the block.

        Raises:
            InputError: for more than the total.
        """
        if wanted > self._size:
            raise InputError(f"more than {self._size // 2**20} MiB to decode")
        with self._changed:
            self._changed.wait_for(lambda: self._taken + wanted <= self._size)
            self._taken += wanted
        try:
            yield
        finally:
            with self._changed:
                self._taken -= wanted
                self._changed.notify_all()


_ROOM = _Room(2**30)


def _decoding(image, full: int) -> contextlib.AbstractContextManager[None]:
    """Room for decoding an image of `full` pixels, of which `image.size` are decoded."""
    deep = image.mode[0] in "IF" or any(";16" in _raw_mode(tile) for tile in getattr(image, "tile", ()))
    # bytes per pixel, the largest measured value for images of 25 megapixels
    each = 12 if image.mode.startswith("I;16") else 28 if deep else 20 if image.has_transparency_data else 12
    each += 8 if image.format == "WEBP" else 0
    coefficients = 6 * full if image.format == "JPEG" and image.info.get("progressive") else 0
    return _ROOM.taken(each * image.width * image.height + coefficients)


def _fit(image: "Image.Image | np.ndarray", form: Form) -> np.ndarray:
    """Orient, convert to 8-bit grey or RGB, scale and crop; an InputError gives the reason if that fails."""
    from PIL import Image

    if isinstance(image, np.ndarray):
        image = Image.fromarray(_bytes(image, form.white))
    _require_usable(image)
    full, short = image.width * image.height, min(image.size)
    size = (form.width, form.height)
    # JPEG decoding at 1/2, 1/4 or 1/8 of the size is faster; twice the final size is enough for the resampling filter.
    enough = 2 * max(size) / (short * form.crop)
    image.draft(None, (int(enough * image.width), int(enough * image.height)))
    with _decoding(image, full):
        return _scaled(image, form, size)


def _scaled(image, form, size):
    from PIL import Image, ImageOps

    values = _values(image)
    grey = image if values is None else _of_bytes(_bytes(values, form.white), image)
    with contextlib.suppress(Exception):  # unreadable EXIF; the image itself is usable
        grey = ImageOps.exif_transpose(grey)
    image = _as_eight_bit(grey)
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


def _values(image: "Image.Image") -> np.ndarray | None:
    """Grey (h, w) or colour (h, w, 3) values of an image of more than 8 bits; an 8-bit image is loaded, giving None."""
    wide = None if image.mode in ("1", "L", "P") else _wide(image)
    image.load()
    if wide is not None:
        colours = wide[..., :-1] if image.mode in ("LA", "RGBA") else wide
        return colours[..., 0] if colours.shape[-1] == 1 else colours
    return np.asarray(image) if image.mode == "F" or image.mode.startswith("I") else None


def _wide(image):
    """The pixels of a 16-bit colour image, of which Pillow returns only the high bytes; None for any other."""
    from PIL import Image

    tiles = getattr(image, "tile", ())
    kinds = {_raw_mode(tile) for tile in tiles}
    if len(kinds) != 1 or ";16" not in (kind := kinds.pop()) or image.mode.startswith("I"):
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(place)
    with Image.open(io.BytesIO(content), formats=_FORMATS) as half:
        high = np.asarray(half).astype(np.uint16)
    native = "L" if sys.byteorder == "little" else "B"
    order = {"B": "L", "L": "B", "N": "B" if native == "L" else "L"}
    other = kind[:-1] + order[kind[-1]]
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as half:
            # in the opposite byte order, Pillow returns the low byte of each number
            half.tile = [
                tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
                for tile in half.tile
            ]
            low = np.asarray(half)
    except Exception:  # a pixel format that Pillow does not know in the opposite byte order
        return high * 257
    return high * 256 + low


def _raw_mode(tile):
    """Pillow's name for the pixel layout of a tile."""
    return str(tile.args[0] if isinstance(tile.args, tuple) and tile.args else tile.args)


def _bytes(values: np.ndarray, white: White) -> np.ndarray:
    """Pixels as uint8: 0 stays 0, white becomes 255."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    if not np.isfinite(values).all() or values.min() < 0:
        raise InputError("pixels below 0 or not finite, which have no grey")
    whole = values.dtype.kind in "iu"
    scale = white.whole if whole else white.real
    if not scale and not whole:
        raise InputError("floating-point pixels, which have no fixed range")
    if not scale and values.max() > 65535:
        raise InputError("32-bit pixels outside 0 to 65535")
    if not scale and 0 < values.max() < _FAINT:
        raise InputError(f"16-bit pixels that reach only {values.max()} of 65535, which would be black")
    if values.dtype == np.uint16:  # a look-up table takes a tenth of the memory
        levels = np.arange(2**16)
        return np.clip(np.rint(levels * (255 / (scale or 65535))), 0, 255).astype(np.uint8)[values]
    return np.clip(np.rint(values * (255 / (scale or 65535))), 0, 255).astype(np.uint8)


def _of_bytes(pixels, image):
    """An image of these pixels, with the alpha channel and orientation of another image."""
    from PIL import Image

    made = Image.fromarray(pixels)
    if image.mode in ("LA", "RGBA"):
        made.putalpha(image.getchannel("A"))
    if exif := image.info.get("exif"):
        made.info["exif"] = exif
    return made


def _as_eight_bit(image: "Image.Image") -> "Image.Image":
    """Convert any 8-bit mode to L (grey) or RGB, with transparent areas on white."""
    from PIL import Image

    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.new("RGBA", clear.size, "white")
        image.alpha_composite(clear)
    return image if image.mode == "L" else image.convert("RGB")
