"""Reading images of any type and size into one uint8 array; unusable files are listed and skipped.

Examples:
    >>> from flowknife.data import load_images
    >>> cats = load_images("data/train", size=64)  # doctest: +SKIP
    >>> cats.pixels.shape, cats.skipped  # doctest: +SKIP
    ((2081, 64, 64, 3), (Skipped(path='cat/0007.png', reason='empty file'),))
"""

import contextlib
import csv
import hashlib
import os
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowknife._files import replacing
from flowknife._progress import progress
from flowknife._threads import prefetch
from flowknife.data._cache import ImageCache, Outcome, cache_folder, cached_text
from flowknife.data._cells import inert
from flowknife.data._decode import EIGHT_BITS, Channels, Form, White, decode, largest_values, shorter_side
from flowknife.data._find import IMAGE_SUFFIXES, Candidate, Found, Partition, Skipped, find_images
from flowknife.data._memory import memory_budget
from flowknife.data._stores import Entry
from flowknife.errors import InputError, counted

_BATCH_FILES, _BATCH_BYTES = 256, 2**26  # per read; three such batches are in memory

_EIGHT_BITS = {".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".webp", ".gif", ".pbm"}  # formats with at most 8 bits

_LOOKED_AT = 100  # images whose size is read to find the typical size

Source = str | os.PathLike | np.ndarray | Sequence[str | os.PathLike] | Found
"""A source of images."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size.

    Attributes:
        pixels: uint8 of shape (n, height, width, channels), channels 1 or 3; a `numpy.memmap` if they are larger than
            memory.
        names: the path of each image within its folder.
        folders: the top-level folder of each, usually its class; "" for images in none.
        skipped: the unusable files.
        unused_folders: the top-level folders without a usable image.
        white: the pixel values that were mapped to 255.
    """

    pixels: np.ndarray
    names: tuple[str, ...]
    folders: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()
    unused_folders: tuple[str, ...] = ()
    white: White = EIGHT_BITS

    def __repr__(self) -> str:
        size = "x".join(map(str, self.pixels.shape[1:]))
        left_out = f", {len(self.skipped):,} skipped" if self.skipped else ""
        return f"ImageSet({counted(len(self), 'image')} of {size}{left_out})"

    def __len__(self) -> int:
        return len(self.pixels)


def load_images(
    source: Source,
    size: int | tuple[int, int],
    *,
    channels: Channels = "auto",
    crop: int | float = 1.0,
    partition: Partition | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    limit: int | None = None,
    max_memory: int | float | None = None,
    white: White | None = None,
) -> ImageSet:
    """Read the images of a folder and all its subfolders, in the order of their paths.

    The shorter side is scaled to fit, and the longer one is cropped evenly on both ends. EXIF orientation is applied,
    transparent areas become white, and animations give their first frame. Pixels of more than 8 bits, and
    floating-point ones, are scaled to 8 bits by one number for all images: the largest value of the (even) number of
    bits that the set needs (1023 for values up to 1000), or 1 if no value is larger. Images of an address count as 16
    bits, and are skipped if they reach only a sixteenth of that range. Files whose name starts with a dot are ignored.
    Files that are no images, damaged, larger than 100 megapixels, smaller than 4 pixels on a side, longer than 20 to 1,
    or in need of more than 1 GiB to be decoded are skipped.

    Decoded images of an address, and those that do not fit in memory, are cached below $FLOWKNIFE_CACHE
    (~/.cache/flowknife). The next time, only new or changed files are read.

    Args:
        source: a folder; or its address (s3://bucket/folder, or any other of fsspec); or the paths of image files;
            or an array of shape (n, H, W) or (n, H, W, 1 or 3), or FILE.npy, FILE.npz or FILE.npz:NAME that holds one;
            or the result of `find_images`. Arrays are uint8, booleans, or other non-negative integers.
        size: side of the square images wanted, or (height, width).
        channels: 1 for grey, 3 for RGB; "auto" is 1 if every image is grey, and 3 otherwise.
        crop: share of the shorter side to keep, from the centre.
        partition: read only this partition of `list_eval_partition.txt`, in or next to the folder (CelebA).
        on_progress: called with (images done, total) after each image.
        limit: use at most this many files, evenly spread over all (so that no class folder is left out).
        max_memory: bytes for the images and the copy that training makes; larger sets stay on disk. Default
            $FLOWKNIFE_MAX_MEMORY, or else half of the available memory.
        white: the pixel values that are mapped to 255, such as those of the training images; default: from `source`.

    Raises:
        InputError: the folder does not exist or has no usable image, or an argument is invalid.
        StorageError: images cannot be kept on disk.
    """
    height, width = _as_size(size)
    if channels not in ("auto", 1, 3):
        raise InputError(f"got channels={channels!r}; expected 'auto', 1 or 3")
    if not 0 < crop <= 1:
        raise InputError(f"got crop={crop}; expected a share of the shorter side, above 0 and at most 1")
    if limit is not None and limit < 1:
        raise InputError(f"got limit={limit}; expected at least 1, or None for all images")
    budget = memory_budget(max_memory)
    every = find_images(source)
    found = every.choose(partition, limit)
    if white is not None:
        _require_same_kind(found, white)
    form = Form(width, height, channels, crop, white or _largest_in(found).covering())
    shape = (height, width, 1 if channels == 1 else 3)
    fits = 2 * len(found.candidates) * int(np.prod(shape)) <= budget
    at_hand = found.store is None and (fits or any(isinstance(c.content, np.ndarray) for c in found.candidates[:1]))
    read = _into_memory if at_hand else partial(_through_cache, request=(partition, limit))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")  # about an unusual file, which is used or listed as skipped
        pixels, outcomes = read(found, form, shape, on_progress or (lambda done, total: None))
    if fits and isinstance(pixels, np.memmap):
        pixels = np.array(pixels)
    scale = form.white
    if not isinstance(pixels, np.memmap):
        if white is None and pixels.size and pixels.min() == 0 and pixels.max() == 1:  # booleans stored as bytes
            scale = scale._replace(byte=1.0)
        if scale.byte < 255:
            pixels = np.where(pixels >= scale.byte, 255, 0).astype(np.uint8)

    kept = [item for item, outcome in zip(found.candidates, outcomes, strict=True) if not isinstance(outcome, str)]
    skipped = [
        Skipped(item.name, outcome)
        for item, outcome in zip(found.candidates, outcomes, strict=True)
        if isinstance(outcome, str)
    ]
    skipped = tuple(sorted([*found.skipped, *skipped]))
    if not kept:
        raise InputError(_nothing_usable(found, skipped))
    if channels == "auto" and all(outcome for outcome in outcomes):
        pixels = pixels[..., :1]
    return ImageSet(
        pixels=pixels if isinstance(pixels, np.memmap) else np.ascontiguousarray(pixels),
        names=tuple(candidate.name for candidate in kept),
        folders=tuple(candidate.folder for candidate in kept),
        skipped=skipped,
        unused_folders=_unused(every, found, kept),
        white=scale,
    )


def _largest_in(found: Found) -> White:
    """The largest pixel values of all local images of more than 8 bits."""
    if found.store is not None:  # reading twice would take too long; images that would be black are skipped
        return White()
    deep = [item.content for item in found.candidates if _may_be_deep(item)]
    if not deep:
        return White()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        values = list(pool.map(largest_values, [each for each in deep if not isinstance(each, Entry)]))
    return White(max(each.whole for each in values), max(each.real for each in values))


def _may_be_deep(item: Candidate) -> bool:
    if isinstance(item.content, np.ndarray):
        return item.content.dtype.kind in "iu" and item.content.dtype != np.uint8
    return Path(item.name).suffix.lower() not in _EIGHT_BITS


def _require_same_kind(found: Found, white: White) -> None:
    """Refuse arrays of another number type than in training, for which no white value is known."""
    content = found.candidates[0].content if found.candidates else None
    if not isinstance(content, np.ndarray) or not _may_be_deep(found.candidates[0]):
        return
    if not white.whole:
        raise InputError(
            f"got images of type {content.dtype} for a model of images of 8 bits; expected uint8 from 0 to 255; try "
            "x.astype('uint8') if x runs from 0 to 255"
        )


def _unused(every: Found, chosen: Found, kept: Sequence[Candidate]) -> tuple[str, ...]:
    """The folders without any usable image, except those that were not requested."""
    asked = {item.folder for item in chosen.candidates}
    left_out = {item.folder for item in every.candidates} - asked
    return tuple(sorted({*every.folders, *asked} - {item.folder for item in kept} - left_out - {""}))


def usual_side(source: Source) -> int | None:
    """The median shorter side, in pixels, of an evenly spread sample of images; None if none is usable."""
    found = find_images(source).choose(limit=_LOOKED_AT)

    def median() -> str:
        contents = found.read(found.candidates)
        sides = [side for content in contents if not isinstance(content, str) and (side := shorter_side(content))]
        return str(int(np.median(sides))) if sides else ""

    key = ("usual side", found.source, *((item.name, item.stamp) for item in found.candidates if found.store))
    side = cached_text(key, median) if found.store else median()
    return int(side) if side else None


def write_skipped(path: str | os.PathLike, skipped: Iterable[Skipped]) -> None:
    """Write the list of unusable files as CSV with the columns path and reason.

    Raises:
        StorageError: the file cannot be written.
    """
    with (
        replacing(path) as place,
        place.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(Skipped._fields)
        writer.writerows(map(inert, item) for item in skipped)


def fingerprint(items: ImageSet | np.ndarray) -> str:
    """A hash of values, names and shape: the first sixteen hexadecimal digits of a SHA-256."""
    values, names = (items.pixels, items.names) if isinstance(items, ImageSet) else (items, ())
    digest = hashlib.sha256(repr(values.shape).encode())
    for start in range(0, len(values), _BATCH_FILES):  # in parts, since they may exceed memory
        digest.update(np.ascontiguousarray(values[start : start + _BATCH_FILES]).data)
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, (int, np.integer)) else tuple(size)
    if len(sides) != 2 or any(int(side) != side or side < 1 for side in sides):
        raise InputError(f"got size={size!r}; expected a side in pixels or (height, width), such as 64 or (48, 64)")
    return int(sides[0]), int(sides[1])


def _into_memory(found, form, shape, on_progress) -> tuple[np.ndarray, list[Outcome]]:
    """The pixels of the usable images, and the outcome for every candidate."""
    try:
        pixels = np.empty((len(found.candidates), *shape), np.uint8)
    except (MemoryError, ValueError):
        raise InputError(
            f"got {len(found.candidates)} images of shape {shape}; expected what fits in memory; try a limit"
        ) from None
    outcomes: list[Outcome] = []
    row = 0
    for result in _decoded(found, form, on_progress):
        outcomes.append(result if isinstance(result, str) else result.shape[-1] == 1)
        if not isinstance(result, str):
            pixels[row] = result
            row += 1
    return pixels[:row], outcomes


def _through_cache(found, form, shape, on_progress, request) -> tuple[np.ndarray, list[Outcome]]:
    """The same, memory-mapped; images decoded by an earlier run are not read again."""
    names = () if found.place else tuple(item.name for item in found.candidates)
    # images with their own channels and as RGB are cached in the same form
    cache = ImageCache(cache_folder(found.place, names, form._replace(channels=shape[-1]), *request), shape)
    items = [(item.name, item.stamp) for item in found.candidates]
    cached = cache.get(items)
    if cached is None:
        return cache.put(items, _decoded(found, form, on_progress, lambda item: cache.recall((item.name, item.stamp))))
    on_progress(len(items), len(items))
    return cached


def _decoded(
    found: Found,
    form: Form,
    on_progress: Callable[[int, int], None],
    recall: Callable[[Candidate], np.ndarray | str | None] = lambda item: None,
) -> Iterator[np.ndarray | str]:
    """Every image, or the reason to skip it: from the cache, or read and decoded while the next ones are read."""

    def known_and_contents(batch):
        known = [recall(item) for item in batch]
        return known, found.read([item for item, result in zip(batch, known, strict=True) if result is None])

    def decoded(content):
        return content if isinstance(content, str) else decode(content, form)

    done = 0
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        contextlib.closing(prefetch(map(known_and_contents, _batches(found.candidates)), 1)) as batches,
    ):
        for known, fresh in _one_ahead((known, pool.map(decoded, contents)) for known, contents in batches):
            for result in known:
                done += 1
                on_progress(done, len(found.candidates))
                yield next(fresh) if result is None else result


def _one_ahead(items):
    """The same items, each yielded only after the next one was started."""
    pending = deque()
    for item in items:
        pending.append(item)
        if len(pending) > 1:
            yield pending.popleft()
    yield from pending


def _batches(candidates):
    batch, size = [], 0
    for item in candidates:
        batch.append(item)
        size += getattr(item.content, "size", 0) or 0
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _nothing_usable(found, skipped):
    expected = f"expected images ({' '.join(sorted(IMAGE_SUFFIXES))})"
    if not skipped:
        return f"got an empty {found.source}; {expected}"
    reason, count = Counter(item.reason for item in skipped).most_common(1)[0]
    of_them = f"{len(skipped)} skipped, {count} of them as {reason!r}"
    return f"got no usable image in the {found.source}: {of_them}; {expected}"


def default_size(source, crop: float = 1.0):
    """The median shorter side of the images, rounded to a size that is divisible by powers of two, at most 64."""
    if isinstance(source, ImageSet):
        return source.pixels.shape[1]
    side = (usual_side(source) or 64) * crop
    return min((8, 16, 24, 28, 32, 48, 64), key=lambda size: abs(size - side))


_COUNTED = 1000  # images whose grey levels are counted


def as_images(
    folder: Any,
    size: int | tuple[int, int],
    show_progress: bool,
    channels: Any = "auto",
    partition: Any = None,
    crop: float = 1.0,
    white: White | None = None,
) -> ImageSet:
    """`load_images` with a progress bar; an `ImageSet` is returned unchanged."""
    if isinstance(folder, ImageSet):
        return folder
    with progress("reading images", show_progress) as report:
        return load_images(
            folder,
            size,
            channels=channels,
            partition=partition,
            crop=crop,
            white=white,
            on_progress=lambda done, total: report(done / total, f"{done} of {total}"),
        )


def grey_levels_note(data: ImageSet, bits: int) -> str:
    """A note if few grey levels are left; or "".

    Warns:
        UserWarning: the bits per channel leave fewer than 8 grey levels.
    """
    seen = np.unique(data.pixels[:_COUNTED])
    left = len(np.unique(seen >> (8 - bits)))
    if left >= min(8, 2**bits, len(seen)):
        return ""
    message = (
        f"got images with {left} grey levels at {bits} bits (values from {seen[0]} to {seen[-1]} of 255); expected "
        "8 or more; try brighter images, or bits=8"
    )
    warnings.warn(message, stacklevel=3)
    return message
