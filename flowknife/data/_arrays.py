"""Images that lie in one file as an array: FILE.npy, FILE.npz, or FILE.npz:NAME for one of several arrays."""

import contextlib
import os
import zipfile
from pathlib import Path

import numpy as np

from flowknife.errors import InputError


def array_file(source: str | os.PathLike) -> tuple[Path, str] | None:
    """The file and the name of the array in it, "" if none is named; None for what is no such file."""
    path, _, name = os.fspath(source).rpartition(":")
    if path.lower().endswith(".npz"):
        return Path(path).expanduser(), name
    path = Path(source).expanduser()
    return (path, "") if path.suffix.lower() in (".npy", ".npz") and not path.is_dir() else None


def read_images(path: Path, name: str) -> np.ndarray:
    """The array of images in a file; what it holds is not looked at, if it is the only one or named.

    Raises:
        InputError: the file cannot be read, or there is not exactly one array of images.
    """
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as content:
            names = [name] if name else content.files
            if len(names) == 1:
                return content[names[0]]
            keys = content.files
            found = {}
            for each in keys:
                with contextlib.suppress(ValueError):  # Python objects, which no image is
                    found |= {each: content[each]}
    except KeyError:
        raise InputError(f"got no array {name!r} in {path}; expected one of {', '.join(content.files)}") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        # NumPy's own words advise to load what can run code
        reason = getattr(error, "strerror", None) or "no array, damaged, or of Python objects"
        raise InputError(
            f"got {os.fspath(path)!r}, which cannot be read ({reason}); expected an .npy or .npz file of images"
        ) from None
    images = [each for each, array in found.items() if array.dtype == np.uint8 and array.ndim in (3, 4)]
    if len(images) != 1:
        advice = f"; try {path}:{images[0]}" if images else ""
        raise InputError(
            f"got {path} with the arrays {', '.join(keys) or 'none'}; expected one of images, uint8 (n, H, W) or "
            f"(n, H, W, 1 or 3){advice}"
        )
    return found[images[0]]
