"""Files that the verbs write: rows, pictures and scores."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowknife.errors import InputError, StorageError

if TYPE_CHECKING:
    import numpy as np


_MOST_ON_A_SHEET = 400


def require_writable(folder: Path) -> None:
    """Refuse a folder where nothing can be written, before there is something to lose.

    A folder that is missing is made, and taken away again, since what fails later should leave nothing behind.

    Raises:
        StorageError: it cannot be made or written to.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror
        raise StorageError(f"got {folder}, where nothing can be written ({reason}); try another --out") from None
    finally:
        with suppress(OSError):
            for place in missing:
                place.rmdir()


def row_writer(out: Path, names: tuple[str, ...]) -> "Callable[[np.ndarray], Any]":
    """What writes rows to `out`.

    Raises:
        InputError: `out` is no table file; so this is told before anything is drawn.
    """
    from flowknife.data import save_table
    from flowknife.data.tables import TABLE_SUFFIXES

    if not out.name.lower().endswith(tuple(TABLE_SUFFIXES)):
        raise InputError(f"got --out {out} for rows; expected an ending of {' '.join(TABLE_SUFFIXES)}")
    return lambda rows: save_table(out, rows, names)


def picture_writer(out: Path, n: int) -> "Callable[[np.ndarray], Any]":
    """What writes n pictures to `out`: one sheet (.png), one array (.npy), or a file each in a new folder.

    Raises:
        InputError: `out` is something else, or too small a place for so many.
        StorageError: `out` is a folder that is not empty.
    """
    from flowknife.data import write_folder
    from flowknife.data.images import IMAGE_SUFFIXES
    from flowknife.data.tables import TABLE_SUFFIXES

    if out.suffix.lower() == ".png":
        if n > _MOST_ON_A_SHEET:
            raise InputError(f"got {n} pictures for one sheet; expected at most {_MOST_ON_A_SHEET}; try a folder")
        return lambda pixels: _write_sheet(out, pixels)
    if out.suffix.lower() == ".npy":
        return lambda pixels: _write_array(out, pixels)
    if out.suffix.lower() in {*IMAGE_SUFFIXES, *TABLE_SUFFIXES} or out.is_file():
        raise InputError(f"got --out {out} for pictures; expected FILE.png (a sheet), FILE.npy or a folder")
    if out.is_dir() and any(out.iterdir()):
        raise StorageError(f"got --out {out}, a folder that is not empty; expected a new one")
    return lambda pixels: write_folder(pixels, out)


def _write_sheet(out, pixels):
    from flowknife.plots import image_grid
    from flowknife.storage import replacing

    with replacing(out) as place:
        image_grid(pixels).savefig(place, format="png")


def _write_array(out, pixels):
    import numpy as np

    from flowknife.storage import replacing

    with replacing(out) as place, place.open("wb") as stream:
        np.save(stream, pixels, allow_pickle=False)


def write_columns(out: Path, columns: "Mapping[str, np.ndarray]") -> None:
    """Write columns of numbers, words and truth values as a text table."""
    import numpy as np

    from flowknife.data import save_table

    save_table(out, np.stack([column.astype(object) for column in columns.values()], axis=1), list(columns))
