"""Writing the output files of the verbs: rows, images and scores."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flowknife._files import (
    CHECKPOINTS,
    EXTRA_FILES,
    RUN_FILES,
    WORK,
    claimed,
    content_of,
    is_checkpoints,
    is_partial,
    is_run,
    replacing,
)
from flowknife.errors import InputError, StorageError

if TYPE_CHECKING:
    import numpy as np

    from flowknife.data.encoding import Encoding


Replace = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
_MOST_ON_A_SHEET = 400


def require_writable(folder: Path) -> None:
    """Refuse a folder that is not writable, before work begins.

    A missing folder is created and removed again, so that a later failure leaves nothing behind.

    Raises:
        StorageError: it cannot be created or written.
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


def require_output(out: Path, *inputs: "str | Path | None", run: Path | None = None, overwrite: bool = False) -> None:
    """Refuse an output that is an input under any name, a file of the run that is read, or an existing file.

    Args:
        out: the file to write.
        inputs: files, FILE.npz:NAME, folders of images or addresses that are read; None for omitted ones.
        run: the run directory that is read.
        overwrite: replace an existing file, unless it is an input.

    Raises:
        InputError: writing `out` would replace an input.
        StorageError: the file exists, or cannot be written.
    """
    for path in filter(None, inputs):
        if _reads(path, out):
            raise InputError(f"got --out {out}, which is an input ({path}); expected another file; try a new name")
    if run is not None and any(_same(out, part) for part in _files_of(run)):
        raise InputError(f"got --out {out}, a file of the run {run}; expected another file; try a new name")
    if out.is_file() and not overwrite:
        raise StorageError(f"got --out {out}, which exists; expected a new file; try another name or --overwrite")
    require_writable(out.parent)


def _files_of(run):
    figures = run / "figures"
    return [*(run / name for name in (*RUN_FILES, *EXTRA_FILES)), *(figures.iterdir() if figures.is_dir() else ())]


def _reads(source: "str | Path", out: Path) -> bool:
    """Whether `out` exists and is read as `source`, or as one of the images of the folder `source`."""
    place = Path(source).expanduser()
    if not place.exists() and ":" in str(source):  # one array of a file, FILE.npz:NAME
        place = Path(str(source).rpartition(":")[0]).expanduser()
    if not place.is_dir():
        return _same(place, out)
    from flowknife.data.images import IMAGE_SUFFIXES

    try:
        inside = out.exists() and out.resolve().is_relative_to(place.resolve())
    except OSError:
        return False
    return inside and out.suffix.lower() in IMAGE_SUFFIXES


def _same(one: Path, other: Path) -> bool:
    """Whether both are the same file, through links and relative names."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return False


@contextmanager
def run_to_write(
    run: Path, overwrite: bool, *inputs: "str | Path | None", resume: bool = False
) -> Generator[None, None, None]:
    """Lock a run directory while it is written; a folder that is not a run is refused before work begins.

    Args:
        run: the directory; it may be missing, empty, with `overwrite` a run, or with either of `overwrite` and
            `resume` one with the checkpoints of an unfinished fit.
        overwrite: replace an existing run, and restart an unfinished fit.
        inputs: the inputs, as for `require_output`.
        resume: continue from existing checkpoints.

    Raises:
        InputError: a file of the run that would be replaced is an input.
        StorageError: the folder cannot take a run, or another process writes a run there.
    """
    with claimed(run):
        content, unfinished = content_of(run), is_checkpoints(run / CHECKPOINTS)
        if unfinished and not (overwrite or resume):
            raise StorageError(
                f"got {run}, which holds checkpoints of an unfinished fit; expected a new folder; try --resume to go "
                "on with it, or --overwrite to start again"
            )
        if content and not is_run(run) and not unfinished:
            raise StorageError(f"got {run}, which is not empty and no run; expected a new folder; try another --out")
        if resume and is_partial(run) and not (unfinished or overwrite):
            raise StorageError(f"got {run}, a partial run without checkpoints; try --overwrite to start again")
        if content and not overwrite and not unfinished:
            raise StorageError(f"got {run}, which holds a run; expected a new folder; try another --out or --overwrite")
        own = _files_of(run)
        for path in filter(None, inputs):
            if any(_reads(path, part) for part in own):
                raise InputError(f"got --out {run}, where {path} would be replaced; expected another folder")
        if unfinished and not resume:
            with _set_aside(run / CHECKPOINTS):
                yield
        else:
            yield


@contextmanager
def _set_aside(checkpoints: Path) -> Generator[None, None, None]:
    """Move checkpoints aside for new ones; they are restored if an error leaves no new ones."""
    aside = checkpoints.with_name(f"{WORK}{secrets.token_hex(6)}")
    checkpoints.rename(aside)
    try:
        yield
    except Exception:
        if not checkpoints.exists():
            aside.rename(checkpoints)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def remove_checkpoints(run: Path) -> None:
    """Remove the checkpoints of a saved run atomically."""
    if is_checkpoints(run / CHECKPOINTS):
        with _set_aside(run / CHECKPOINTS):
            pass


def row_writer(out: Path, names: tuple[str, ...]) -> "Callable[[np.ndarray], Any]":
    """A function that writes rows to `out`.

    Raises:
        InputError: `out` is not a table file; raised before anything is drawn.
    """
    from flowknife.data import save_table
    from flowknife.data.tables import TABLE_SUFFIXES

    if not out.name.lower().endswith(tuple(TABLE_SUFFIXES)):
        raise InputError(f"got --out {out} for rows; expected an ending of {' '.join(TABLE_SUFFIXES)}")
    return lambda rows: save_table(out, rows, names)


def encoded_writer(out: Path, names: tuple[str, ...], encoding: "Encoding") -> "Callable[[np.ndarray], Any]":
    """A function that writes encoded rows as the columns of the original table, the conditions last.

    Raises:
        InputError: `out` is a purely numeric file; raised before anything is drawn.
    """
    import numpy as np

    from flowknife.data._cells import is_missing

    name = out.name.lower()
    if not name.endswith((".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")):
        raise InputError(f"got --out {out} for rows of words and numbers; expected an ending of .csv, .tsv or .parquet")

    def write(rows):
        own, given = np.split(rows, [len(encoding.columns)], axis=1)
        columns = {**encoding.decode(own), **dict(zip(names[len(encoding.names) :], given.T, strict=True))}
        write_columns(out, columns, is_missing)

    return write


def image_writer(out: Path, n: int) -> "Callable[[np.ndarray], Any]":
    """A function that writes n images to `out`: a contact sheet (.png), an array (.npy), or files in a new folder.

    Raises:
        InputError: `out` is of another kind, or one sheet cannot hold `n` images.
        StorageError: `out` is a folder that is not empty.
    """
    from flowknife.data import write_folder
    from flowknife.data.images import IMAGE_SUFFIXES
    from flowknife.data.tables import TABLE_SUFFIXES

    if out.suffix.lower() == ".png":
        if n > _MOST_ON_A_SHEET:
            raise InputError(f"got {n} images for one sheet; expected at most {_MOST_ON_A_SHEET}; try a folder")
        return lambda pixels: _write_sheet(out, pixels)
    if out.suffix.lower() == ".npy":
        return lambda pixels: _write_array(out, pixels)
    if out.suffix.lower() in {*IMAGE_SUFFIXES, *TABLE_SUFFIXES} or out.is_file():
        raise InputError(f"got --out {out} for images; expected FILE.png (a sheet), FILE.npy or a folder")
    if out.is_dir() and any(out.iterdir()):
        raise StorageError(f"got --out {out}, a folder that is not empty; expected a new one")
    return lambda pixels: write_folder(pixels, out)


def _write_sheet(out, pixels):
    from flowknife.plots import image_grid

    with replacing(out) as place:
        image_grid(pixels).savefig(place, format="png")


def _write_array(out, pixels):
    import numpy as np

    with replacing(out) as place, place.open("wb") as stream:
        np.save(stream, pixels, allow_pickle=False)


def write_columns(
    out: Path, columns: "Mapping[str, np.ndarray]", empty: "Callable[[Any], bool]" = lambda cell: cell is None
) -> None:
    """Write columns of numbers, text, dates and booleans as a table; cells that are `empty` are written as empty.

    The format follows the ending: .parquet keeps the types, others are text.
    """
    import numpy as np

    from flowknife.data import save_table
    from flowknife.data.encoding import to_frame

    if out.name.lower().endswith(".parquet"):
        with replacing(out) as place, place.open("wb") as stream:
            to_frame(columns).to_parquet(stream, index=False)
        return
    cells = np.stack([column.astype(object) for column in columns.values()], axis=1)
    cells[np.reshape([empty(cell) for cell in cells.flat], cells.shape)] = ""
    save_table(out, cells, list(columns))
