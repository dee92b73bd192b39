"""Cache of decoded images on disk, so that remote images and sets larger than memory are decoded once."""

import contextlib
import csv
import hashlib
import io
import os
import secrets
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowknife._caches import cache_root, keep_within, private_folder
from flowknife._files import open_file, read_file
from flowknife.data._arrays import read_header
from flowknife.data._stores import Unread
from flowknife.errors import StorageError

Item = tuple[str, str]
"""The name of a file, and its stamp, which changes when the file does."""

Outcome = bool | str
"""Whether an image is grey; or the reason why it is unusable."""

_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
_MOST_BYTES = 2**34  # for all requests together
_FLUSH_EVERY = 256  # images; at most these are lost if a run is killed


def cache_folder(*request: object) -> Path:
    """The folder for the images of a request: below $FLOWKNIFE_CACHE, or ~/.cache/flowknife."""
    digest = hashlib.sha256(repr(request).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    return cache_root() / "images" / digest


@dataclass(frozen=True)
class _Held:
    """A file of images, with an index of its rows."""

    pixels: np.ndarray
    rows: dict[Item, int]
    outcomes: dict[Item, Outcome]


class ImageCache:
    """The images of one request: `ID.npy` holds the pixels, `ID.csv` the row of each file or the reason to skip it.

    Every line of `ID.csv` ends with a checksum of itself and its image. Entries with a wrong checksum are ignored, and
    their images are decoded again. If the cache exceeds 16 GiB, the least recently used requests are removed.

    Files are only appended to, and images are written before their lines. So the next run can use the entries of a
    killed run, and several runs can fill one cache at the same time.

    Args:
        folder: the folder of the cache.
        shape: (height, width, channels) of the images.
    """

    def __init__(self, folder: Path, shape: tuple[int, int, int]):
        self._folder, self._shape = folder, shape
        self._stored = []
        with contextlib.suppress(OSError):  # the folder belongs to another user and is not trusted
            if folder.is_dir():
                journals = sorted(private_folder(folder).glob("*.csv"))
                self._stored = [stored for path in journals if (stored := _read(path, shape))]

    def get(self, items: Sequence[Item]) -> tuple[np.ndarray, list[Outcome]] | None:
        """The memory-mapped images of exactly these files, in order, and the outcome of each; None if not cached."""
        keep_within(self._folder.parent, _MOST_BYTES, self._folder)
        for stored in self._stored:
            if all(item in stored.outcomes for item in items):
                rows = [stored.rows[item] for item in items if item in stored.rows]
                if rows == list(range(len(stored.pixels))):
                    return stored.pixels, [stored.outcomes[item] for item in items]
        return None

    def recall(self, item: Item) -> np.ndarray | str | None:
        """An image that an earlier run decoded, or the reason to skip it; None if no run did."""
        for stored in self._stored:
            outcome = stored.outcomes.get(item)
            if isinstance(outcome, str):
                return outcome
            if outcome is not None:
                image = stored.pixels[stored.rows[item]]
                return image[..., :1] if outcome else image
        return None

    def put(self, items: Sequence[Item], results: Iterable[np.ndarray | str]) -> tuple[np.ndarray, list[Outcome]]:
        """Store images, or the reasons to skip them; return them as `get` does.

        Raises:
            StorageError: the cache cannot be written.
        """
        outcomes: list[Outcome] = []
        lines: list[tuple[str, ...]] = []
        path = self._folder / secrets.token_hex(8)
        row = 0
        with contextlib.ExitStack() as stack:
            with self._writing():
                private_folder(self._folder)
                pixels = stack.enter_context(path.with_suffix(".npy").open("w+b"))
                journal = stack.enter_context(path.with_suffix(".csv").open("w", **_TEXT))
                start = _write_header(pixels, (len(items), *self._shape))
            for item, result in zip(items, results, strict=True):
                if isinstance(result, str):
                    outcomes.append(str(result))
                    line = (*item, "", str(result))
                    lines += [] if isinstance(result, Unread) else [(*line, _checksum(line))]
                else:
                    outcomes.append(result.shape[-1] == 1)
                    line = (*item, str(row), "grey" if outcomes[-1] else "colour")
                    content = np.broadcast_to(result, self._shape).tobytes()
                    lines.append((*line, _checksum(line, content)))
                    row += 1
                    with self._writing():
                        pixels.write(content)
                if len(lines) >= _FLUSH_EVERY:
                    self._tell(pixels, journal, lines)
            self._tell(pixels, journal, lines)
            with self._writing():
                pixels.seek(0)
                _write_header(pixels, (row, *self._shape))
                pixels.flush()
            # from the open file, since another run may remove its name at any time
            mapped = _mapped(pixels, start, (row, *self._shape))
        keep_within(self._folder.parent, _MOST_BYTES, self._folder)
        for other in self._folder.iterdir():
            if other.stem != path.name:
                with contextlib.suppress(OSError):
                    other.unlink()
        return mapped, outcomes

    def _tell(self, pixels, journal, lines):
        with self._writing():
            pixels.flush()
            csv.writer(journal).writerows(lines)
            journal.flush()
        lines.clear()

    @contextlib.contextmanager
    def _writing(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"cannot write the cache of images in {os.fspath(self._folder)!r} ({error.strerror}); expected room "
                "for all of them; try FLOWKNIFE_CACHE=another/folder"
            ) from None


def cached_text(key: Sequence[object], compute: Callable[[], str]) -> str:
    """The cached text for this key, else `compute()`; an empty text is not cached."""
    path = cache_folder(*key).with_suffix(".txt")
    with contextlib.suppress(OSError, ValueError):
        checksum, word = read_file(path).decode().split(" ", 1)
        if checksum == _checksum((word,)):
            return word
    word = compute()
    if word:
        with contextlib.suppress(OSError):  # it can be computed again
            private_folder(path.parent)
            path.write_text(f"{_checksum((word,))} {word}")
    return word


def _checksum(line: Sequence[str], content: bytes = b"") -> str:
    """Checksum of a line together with its image."""
    return f"{zlib.crc32(content, zlib.crc32(repr(tuple(line)).encode())):08x}"


def _read(journal: Path, shape: tuple[int, int, int]) -> _Held | None:
    """The entries of an earlier run, complete or not; None if they cannot be used."""
    rows, outcomes = {}, {}
    try:
        with open_file(journal.with_suffix(".npy")) as stream:
            (_, *found), fortran, dtype = read_header(stream)
            start, count = stream.tell(), (os.fstat(stream.fileno()).st_size - stream.tell()) // int(np.prod(shape))
            if (tuple(found), fortran, dtype) != (shape, False, np.uint8):
                return None
            pixels = _mapped(stream, start, (count, *shape))
        with open_file(journal) as content, io.TextIOWrapper(content, **_TEXT) as lines:
            for line in csv.reader(lines):
                if len(line) != 5:  # an incomplete last line of a killed run
                    continue
                name, stamp, row, what = line[:4]
                content = b""
                if row:
                    if what not in ("grey", "colour") or int(row) >= count:
                        continue
                    content = np.ascontiguousarray(pixels[int(row)]).tobytes()
                if line[4] != _checksum(line[:4], content):
                    continue
                outcomes[name, stamp] = what == "grey" if row else what
                if row:
                    rows[name, stamp] = int(row)
    except (OSError, ValueError, IndexError, csv.Error):
        return None
    return _Held(pixels, rows, outcomes)


def _write_header(stream, shape):
    """Write the header of an .npy file, in which the number of rows can be changed later; returns the data offset."""
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.tell()


def _mapped(stream, start, shape):
    return np.memmap(stream, np.uint8, "r", start, shape) if shape[0] else np.empty(shape, np.uint8)
