"""Pictures of any kind and size, read into one uint8 array; what cannot be used is listed, never fatal.

>>> from flowknife.data import load_images
>>> cats = load_images("data/train", size=64)  # doctest: +SKIP
>>> cats.pixels.shape, cats.skipped  # doctest: +SKIP
((2081, 64, 64, 3), (Skipped(path='cat/0007.png', reason='empty file'),))
"""

import contextlib
import csv
import hashlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from flowknife.errors import InputError, StorageError

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".pgm", ".ppm", ".pbm", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""The endings, in small letters, of the files that `load_images` looks for in a folder."""

_FORMATS = ("PNG", "JPEG", "PPM", "BMP", "WEBP", "TIFF", "GIF")
_MAX_PIXELS = 100_000_000
_MIN_SIDE = 4
_MAX_ASPECT = 20
_TOO_LARGE = f"more than {_MAX_PIXELS // 10**6} megapixels"

Channels = Literal["auto", 1, 3]


class Skipped(NamedTuple):
    """A file that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageSet:
    """Pictures of one size.

    Attributes:
        pixels: uint8 of shape (n, height, width, channels), channels 1 or 3.
        names: the path of each picture within its folder.
        folders: the top-level folder in which each lies, usually its class; "" for those that lie in none.
        skipped: the files that could not be used.
    """

    pixels: np.ndarray
    names: tuple[str, ...]
    folders: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


class _Candidate(NamedTuple):
    """What may turn out to be a picture: a file, or pixels that are there already."""

    name: str
    folder: str
    content: Path | np.ndarray


def load_images(
    source: str | os.PathLike | np.ndarray | Sequence[str | os.PathLike],
    size: int | tuple[int, int],
    *,
    channels: Channels = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
) -> ImageSet:
    """Read the pictures of a folder and all its subfolders, in the order of their paths.

    The shorter side is scaled to fit, the rest cut off evenly on both ends. EXIF orientation is applied, transparent
    parts become white, 16-bit grey is divided by 257, animations give their first frame. Files whose name starts with a
    dot are ignored. Files that are no pictures, damaged, larger than 100 megapixels, smaller than 4 pixels on a side or
    longer than 20 to 1 are skipped.

    Args:
        source: a folder; or the paths of picture files; or a uint8 array of shape (n, H, W) or (n, H, W, 1 or 3).
        size: side of the square pictures wanted, or (height, width).
        channels: 1 for grey, 3 for RGB; "auto" is 1 if every picture is grey, and 3 otherwise.
        on_progress: called with (pictures done, pictures in all) after each.
        limit: use at most so many files, evenly spread over all (so that no class folder is left out).

    Raises:
        InputError: there is no such folder, or nothing usable in it; or `size`, `channels`, `limit` or the array is
            not as above; or the pictures do not fit in memory.
    """
    height, width = _as_size(size)
    if channels not in ("auto", 1, 3):
        raise InputError(f"got channels={channels!r}; expected 'auto', 1 or 3")
    if limit is not None and limit < 1:
        raise InputError(f"got limit={limit}; expected at least 1, or None for all pictures")
    candidates, skipped = _find(source)
    if limit is not None and limit < len(candidates):
        candidates = [candidates[i * len(candidates) // limit] for i in range(limit)]

    def decode(candidate: _Candidate) -> np.ndarray | str:
        return _decode(candidate.content, (width, height), channels)

    shape = (len(candidates), height, width, 1 if channels == 1 else 3)
    try:
        pixels = np.empty(shape, np.uint8)
    except (MemoryError, ValueError):
        raise InputError(f"got pictures that fill {shape} bytes; expected what fits in memory; try a limit") from None
    kept: list[_Candidate] = []
    all_grey = True
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # of a file that is odd, but used or listed as skipped
        results = zip(candidates, pool.map(decode, candidates), strict=True)
        for done, (candidate, result) in enumerate(results, start=1):
            if isinstance(result, str):
                skipped.append(Skipped(candidate.name, result))
            else:
                pixels[len(kept)] = result
                kept.append(candidate)
                all_grey &= result.shape[-1] == 1
            if on_progress:
                on_progress(done, len(candidates))
    if not kept:
        raise InputError(_nothing_usable(source, skipped))
    pixels = pixels[: len(kept), ..., :1] if channels == "auto" and all_grey else pixels[: len(kept)]
    return ImageSet(
        pixels=np.ascontiguousarray(pixels),
        names=tuple(candidate.name for candidate in kept),
        folders=tuple(candidate.folder for candidate in kept),
        skipped=tuple(sorted(skipped)),
    )


def write_skipped(path: str | os.PathLike, skipped: Iterable[Skipped]) -> None:
    """Write the list of unusable files as CSV with the columns path and reason.

    Raises:
        StorageError: the file cannot be written.
    """
    try:
        with Path(path).open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(Skipped._fields)
            writer.writerows(skipped)
    except OSError as error:
        raise StorageError(f"cannot write {os.fspath(path)!r} ({error.strerror}); try another place") from error


def fingerprint(images: ImageSet) -> str:
    """Sixteen hexadecimal digits that change with any pixel, name or shape: the start of a SHA-256."""
    digest = hashlib.sha256(repr(images.pixels.shape).encode())
    digest.update(np.ascontiguousarray(images.pixels).data)
    digest.update("\0".join(images.names).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(sides) != 2 or any(int(side) != side or side < 1 for side in sides):
        raise InputError(f"got size={size!r}; expected a side in pixels or (height, width), such as 64 or (48, 64)")
    return int(sides[0]), int(sides[1])


def _find(source: Any) -> tuple[list[_Candidate], list[Skipped]]:
    """Everything in `source` that may be a picture, and the files that are none."""
    if hasattr(source, "__array__"):
        return [_Candidate(f"{i:06d}", "", picture) for i, picture in enumerate(check_pictures(source))], []
    if isinstance(source, (str, os.PathLike)):
        return _walk(Path(source).expanduser())
    try:
        paths = [Path(path) for path in source]
    except TypeError:
        kind = type(source).__name__
        raise InputError(f"got a {kind}; expected a folder, a list of paths, or a uint8 array (n, H, W, C)") from None
    return [_Candidate(path.as_posix(), "", path) for path in paths], []


def check_pictures(pictures: Any) -> np.ndarray:
    """The pictures as uint8 of shape (n, H, W) or (n, H, W, 3), the shapes that Pillow takes.

    Raises:
        InputError: another type or shape.
    """
    pictures = np.asarray(pictures)
    if pictures.ndim not in (3, 4) or (pictures.ndim == 4 and pictures.shape[3] not in (1, 3)):
        raise InputError(f"got pictures of shape {pictures.shape}; expected (n, H, W), (n, H, W, 1) or (n, H, W, 3)")
    if pictures.dtype != np.uint8:
        advice = "try (255 * x).round().astype('uint8') if x runs from 0 to 1"
        raise InputError(f"got pictures of type {pictures.dtype}; expected uint8 from 0 to 255; {advice}")
    return pictures[..., 0] if pictures.ndim == 4 and pictures.shape[3] == 1 else pictures


def _walk(folder: Path) -> tuple[list[_Candidate], list[Skipped]]:
    """The files under `folder` that are named like pictures, sorted, and all others that are not hidden."""
    if not folder.exists():
        raise InputError(f"there is no folder {os.fspath(folder)!r}; expected a folder of pictures; check the name")
    if not folder.is_dir():
        raise InputError(
            f"got the file {os.fspath(folder)!r}; expected a folder of pictures; try the folder it lies in"
        )
    candidates, skipped, seen = [], [], set()

    def name_of(path: str | Path) -> str:
        return Path(path).relative_to(folder).as_posix()

    def unreadable(error: OSError) -> None:
        skipped.append(Skipped(name_of(error.filename), "folder cannot be read"))

    for place, subfolders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        here = Path(place)
        if here.resolve() in seen:  # a link that leads back up would never end
            subfolders.clear()
            continue
        seen.add(here.resolve())
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for path in (here / name for name in files if not name.startswith(".")):
            if path.suffix.lower() in IMAGE_SUFFIXES:
                parents = path.relative_to(folder).parts[:-1]
                candidates.append(_Candidate(name_of(path), parents[0] if parents else "", path))
            else:
                skipped.append(Skipped(name_of(path), "not an image"))
    return sorted(candidates, key=lambda candidate: candidate.name), skipped


def _nothing_usable(source: Any, skipped: Sequence[Skipped]) -> str:
    label = f"folder {os.fspath(source)!r}" if isinstance(source, (str, os.PathLike)) else type(source).__name__
    expected = f"expected pictures ({' '.join(sorted(IMAGE_SUFFIXES))})"
    if not skipped:
        return f"got an empty {label}; {expected}"
    reason, count = Counter(item.reason for item in skipped).most_common(1)[0]
    return f"got no usable picture in the {label}: {len(skipped)} skipped, {count} of them as {reason!r}; {expected}"


def _decode(item: Path | np.ndarray, size: tuple[int, int], channels: Channels) -> np.ndarray | str:
    """A picture as uint8 (height, width, 1 or 3); or the reason why it cannot be used. `size` is (width, height)."""
    from PIL import Image, UnidentifiedImageError

    try:
        if isinstance(item, np.ndarray):
            return _fit(Image.fromarray(item), size, channels)
        status = item.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait forever
            return "not a file"
        if status.st_size == 0:
            return "empty file"
        with Image.open(item, formats=_FORMATS) as image:
            return _fit(image, size, channels)
    except InputError as error:
        return str(error)
    except UnidentifiedImageError:
        return "not an image, whatever its name says"
    except Image.DecompressionBombError:
        return _TOO_LARGE
    except PermissionError:
        return "no permission to read"
    except FileNotFoundError:
        return "broken link" if isinstance(item, Path) and item.is_symlink() else "no such file"
    except Exception as error:  # decoders fail in many ways, and no single file may end a run
        return f"damaged or truncated ({type(error).__name__})"


def _fit(image: "Image.Image", size: tuple[int, int], channels: Channels) -> np.ndarray:
    """Orient, turn into 8-bit grey or RGB, scale and crop; an InputError carries the reason why not."""
    from PIL import Image, ImageOps

    short, long = sorted(image.size)
    if short * long > _MAX_PIXELS:
        raise InputError(_TOO_LARGE)
    if short < _MIN_SIDE:
        raise InputError(f"smaller than {_MIN_SIDE} pixels on a side")
    if long > _MAX_ASPECT * short:
        raise InputError(f"longer than {_MAX_ASPECT} to 1")
    # A JPEG decodes at 1/2, 1/4 or 1/8 of its size for less; twice the wanted size leaves the filter something to do.
    enough = 2 * max(size) / short
    image.draft(None, (int(enough * image.width), int(enough * image.height)))
    image.load()
    with contextlib.suppress(Exception):  # unreadable EXIF: the picture itself is sound
        image = ImageOps.exif_transpose(image)
    image = _as_eight_bit(image)
    if channels == 1:
        image = image.convert("L")

    zoom = max(size[0] / image.width, size[1] / image.height)
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
        if values.min() < 0 or values.max() > 65535:
            raise InputError("32-bit pixels outside 0 to 65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image if image.mode == "L" else image.convert("RGB")
