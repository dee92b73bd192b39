"""Arrays of .npy and .npz files, and images in them: FILE.npy, FILE.npz, or FILE.npz:NAME for one of several.

Such files may be damaged or malicious. Nothing is unpickled, and nothing is allocated before the size in a header is
checked against the size of the file.
"""

import math
import os
import zipfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flowknife._files import open_file
from flowknife.errors import InputError

_MOST_PACKED = 2**28  # bytes up to which any compression ratio is allowed
_TIGHTEST = 200  # largest compression ratio of a larger array


def packed_too_tightly(size: int, packed: int) -> bool:
    """Whether the compression ratio is implausible, as in a zip bomb."""
    return size > max(_MOST_PACKED, _TIGHTEST * packed)


class UnreadableError(ValueError):
    """The reason why no array could be read, in a few words."""


@contextmanager
def arrays_in(path: str | os.PathLike, mapped: bool = False) -> Generator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file by name, read on access; the array of an .npy file has the name "".

    Args:
        path: the file.
        mapped: do not read the array of an .npy file, but map it to memory.

    Raises:
        OSError: the file cannot be opened, or is no regular file.
        UnreadableError: it is damaged, or holds anything but plain arrays.
    """
    with open_file(path) as stream:
        if stream.read(2) == b"PK":
            with _packed(stream) as found:
                yield found
        else:
            stream.seek(0)
            size = os.fstat(stream.fileno()).st_size
            with _in_words():
                array = _array(stream, size, path if mapped else None)
            yield {"": array}


@contextmanager
def _packed(stream: BinaryIO) -> Generator[Mapping[str, np.ndarray]]:
    with _in_words():
        packed = zipfile.ZipFile(stream)
    with packed:
        yield _Packed(packed)


class _Packed(Mapping[str, np.ndarray]):
    """The arrays of a zip file."""

    def __init__(self, packed: zipfile.ZipFile):
        self._packed = packed
        self._members = {item.filename.removesuffix(".npy"): item for item in packed.infolist()}

    def __len__(self):
        return len(self._members)

    def __iter__(self):
        return iter(self._members)

    def __getitem__(self, name):
        item = self._members[name]
        if packed_too_tightly(item.file_size, item.compress_size):
            raise UnreadableError(f"{item.file_size / 2**20:,.0f} MiB, packed to {item.compress_size:,} bytes")
        with _in_words(), self._packed.open(item) as stream:
            return _array(stream, item.file_size, None)


@contextmanager
def _in_words():
    try:
        yield
    except UnreadableError:
        raise
    except MemoryError:
        raise UnreadableError("more than fits in memory") from None
    except Exception as error:  # the readers of NumPy and zipfile raise many kinds of errors
        words = " ".join(str(error).split())[:200]
        raise UnreadableError(f"damaged: {words}" if words else f"damaged: {type(error).__name__}") from None


def _array(stream: Any, size: int, path: str | os.PathLike | None) -> np.ndarray:
    """The array of an .npy file of `size` bytes; mapped, if its path is given."""
    shape, fortran, dtype = read_header(stream)
    start, count = stream.tell(), math.prod(shape)
    if dtype.hasobject:
        raise UnreadableError("Python objects are not loaded")
    if min(shape, default=0) < 0 or start + count * dtype.itemsize > size:
        raise UnreadableError(f"{size:,} bytes, too few for shape {shape} of {dtype}")
    order = "F" if fortran else "C"
    if path is not None and count * dtype.itemsize:
        return np.memmap(path, dtype, "r", start, shape, order)
    content = bytearray(stream.read(count * dtype.itemsize))
    return np.ndarray(shape, dtype, content, order=order)


def read_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and dtype of the array in an .npy file; afterwards the stream is at the data.

    Raises:
        UnreadableError: there is none.
    """
    with _in_words():
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise UnreadableError(f"an array of version {version[0]}.{version[1]}")
        shape, fortran, dtype = read(stream)
        return tuple(int(side) for side in shape), bool(fortran), dtype


# -- images -----------------------------------------------------------------------------------------------------------


def array_file(source: str | os.PathLike) -> tuple[Path, str] | None:
    """The file and the name of the array in it, "" if none is named; None for any other source."""
    path, _, name = os.fspath(source).rpartition(":")
    if path.lower().endswith(".npz"):
        return Path(path).expanduser(), name
    path = Path(source).expanduser()
    return (path, "") if path.suffix.lower() in (".npy", ".npz") and not path.is_dir() else None


def read_images(path: Path, name: str) -> np.ndarray:
    """The array of images in a file; its content is not checked if it is the only array or selected by name.

    Raises:
        InputError: the file cannot be read, or there is not exactly one array of images.
    """
    try:
        with arrays_in(path, mapped=True) as content:
            names = list(content)
            if name and name not in names:
                raise InputError(f"got no array {name!r} in {path}; expected one of {', '.join(names)}")
            if name or len(names) == 1:
                return content[name or names[0]]
            found = {}
            for each in names:
                try:
                    found[each] = content[each]
                except UnreadableError:  # such as Python objects, which cannot be images
                    continue
    except InputError:
        raise
    except (OSError, UnreadableError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"got {os.fspath(path)!r}, which cannot be read ({reason}); expected an .npy or .npz file of images"
        ) from None
    images = [each for each, array in found.items() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if len(images) != 1:
        advice = f"; try {path}:{images[0]}" if images else ""
        raise InputError(
            f"got {path} with the arrays {', '.join(names) or 'none'}; expected one of images, uint8 (n, H, W) or "
            f"(n, H, W, 1 or 3){advice}"
        )
    return found[images[0]]
