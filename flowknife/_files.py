"""Reading and writing files, recognising the files that flowknife wrote, and locking a run directory.

A file that is read may come from anywhere: `open_file` and `read_file` accept regular files only, and `read_file`
refuses files above a size limit. A file is written to a temporary name in the same folder and then renamed, so that a
reader never sees half of it.

Only files that flowknife wrote are ever replaced or deleted. A figure is recognised by a mark with its own name, a page
by its generator, a list of skipped files by its header, and the other files of a run by the `run.json` beside them.
"""

import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from flowknife.errors import StorageError

RUN_FILES = ("run.json", "model.safetensors", "history.csv")
"""Files of every run directory; `run.json` identifies it."""

EXTRA_FILES = ("card.md", "report.html", "explore.html", "skipped.csv")
"""Further files that a run directory may hold, besides its figures."""

GENERATOR = '<meta name="generator" content="flowknife">'
"""Identifies a page that flowknife wrote."""

CARD_MARK = "<!-- flowknife: written with the run; a change is lost when the run is saved again -->"
"""Identifies the card of a run."""

_SKIPPED = b"path,reason"

WORK = ".flowknife-"
"""Prefix of the temporary names that flowknife uses while it writes."""

NEW = f"{WORK}new"
"""Subfolder of a run directory with the complete files of a new run, until each is moved to its place."""

CHECKPOINTS = "checkpoints"
"""Subfolder of a run directory with the checkpoints of a running fit."""

ABOUT = "fit.json"
"""The file in a folder of checkpoints that describes the fit."""

_CLAIM = f"{WORK}claim"
_DRAFT = 8  # random bytes in a temporary name
_HEAD = 4096  # bytes at the start of a file in which its mark is looked for

MOST_TEXT = 2**23
"""Largest text file, in bytes, that is read as a whole, such as a record or a claim."""

_MOST_INSIDE = 2**20  # lists and objects in one text: each takes twenty times the memory of its two characters


# -- reading ----------------------------------------------------------------------------------------------------------


def open_file(path: str | os.PathLike) -> BufferedReader:
    """Open a regular file for reading bytes; opening a pipe or a device could wait, or read, forever.

    Raises:
        OSError: it cannot be opened, or is something else.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_file(path: str | os.PathLike, most: int = MOST_TEXT) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is something else, or larger.
    """
    with open_file(path) as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", os.fspath(path))
    return content


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a regular file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    with open_file(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain_values(text: bytes) -> Any:
    """Parse JSON into plain values.

    Raises:
        ValueError: it is not valid JSON, or has too many lists and objects, or nests them too deeply.
    """
    if text.count(b"[") + text.count(b"{") > _MOST_INSIDE:
        raise ValueError(f"more than {_MOST_INSIDE:,} lists and objects")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def read_json(path: str | os.PathLike, most: int = MOST_TEXT) -> Any:
    """Read a JSON file of at most `most` bytes.

    Raises:
        OSError: it cannot be read, is no regular file, or larger.
        ValueError: see `plain_values`.
    """
    return plain_values(read_file(path, most))


# -- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: str | os.PathLike) -> Generator[Path, None, None]:
    """A temporary path next to `path` that replaces it when the block succeeds; missing folders are made.

    Raises:
        StorageError: the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(_DRAFT)}")
        draft.touch(exist_ok=False)
        mode = draft.stat().st_mode & 0o777  # follows the umask; the caller may replace the file
    except OSError as error:
        raise StorageError(
            f"could not write {path}: nothing can be written there ({error.strerror}); try another place"
        ) from None
    try:
        yield draft
        draft.chmod(mode)
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    except StorageError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise StorageError(f"got {path}, which cannot be written ({reason}); try another place") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def remove_drafts(folder: Path, *names: str) -> None:
    """Remove temporary files that killed processes left behind for these names; no process may be writing them."""
    for path in folder.iterdir():
        name, _, ending = path.name.removeprefix(".").rpartition(".")
        if path.name.startswith(".") and name in names and re.fullmatch(f"[0-9a-f]{{{2 * _DRAFT}}}", ending):
            with suppress(OSError):
                path.unlink()


def sync(path: str | os.PathLike) -> None:
    """Flush a file or folder to disk, where the system supports it."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# -- which files are flowknife's --------------------------------------------------------------------------------------


def mark(name: str) -> str:
    """The mark of a figure with this file name: a renamed copy, or another image, does not count as ours."""
    return f"flowknife/{name}"


def place_of(folder: Path, name: str) -> Path:
    """Path of a file of a run: in its place, or still among the new files that a killed process did not move."""
    new = folder / NEW / name
    return new if new.exists() else folder / name


def is_run(folder: Path) -> bool:
    """Whether `folder` has the `run.json` of a flowknife run."""
    return _json_value(place_of(folder, "run.json"), "application") is not None


def _json_value(path: Path, *keys: str) -> Any:
    """The value at nested keys of a JSON file; None if there is none."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def is_partial(folder: Path) -> bool:
    """Whether `folder` has the run of an interrupted fit."""
    return is_run(folder) and _json_value(place_of(folder, "run.json"), "training", "stopped") == "interrupted"


def is_checkpoints(folder: Path) -> bool:
    """Whether `folder` holds checkpoints of a fit."""
    return _json_value(folder / ABOUT, "checkpoints") is not None


def is_own(path: Path) -> bool:
    """Whether flowknife wrote this page, figure or list of skipped files."""
    try:
        with open_file(path) as stream:
            head = stream.read(_HEAD)
    except OSError:
        return False
    if path.suffix == ".html":
        return GENERATOR.encode() in head
    if path.suffix == ".md":
        return CARD_MARK.encode() in head
    if path.suffix == ".csv":
        return head.splitlines()[:1] == [_SKIPPED]
    return mark(path.name).encode() in head


def require_own(path: Path) -> None:
    """Refuse to replace a file that flowknife did not write.

    Raises:
        StorageError: there is such a file at `path`.
    """
    if path.exists() and not is_own(path):
        raise StorageError(f"got {path}, which flowknife did not write; expected a free name; try to move it away")


def own_extras(folder: Path) -> list[Path]:
    """Files of a run directory that flowknife wrote in addition to `RUN_FILES`: report, figures, skipped files."""
    figures = folder / "figures"
    found = [folder / name for name in EXTRA_FILES]
    found += sorted(figures.iterdir()) if figures.is_dir() and not figures.is_symlink() else []
    return [path for path in found if path.is_file() and not path.is_symlink() and is_own(path)]


# -- the claim on a run directory -------------------------------------------------------------------------------------


@contextmanager
def claimed(folder: Path) -> Generator[None, None, None]:
    """Lock a directory while a run is written to it, so that no other process writes to the same place.

    A missing directory is created, and removed again if it stays empty. The claim of a process that has ended is taken
    over.

    Raises:
        StorageError: another process holds it, or nothing can be written there.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    claim = folder / _CLAIM
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _take(claim)
    except StorageError:
        raise
    except OSError as error:
        _remove_empty(missing)
        reason = error.strerror
        raise StorageError(f"got {folder}, where nothing can be written ({reason}); try another --out") from None
    try:
        _sweep(folder)
        yield
    finally:
        claim.unlink(missing_ok=True)
        _remove_empty(missing)


def _sweep(folder):
    """Remove what killed processes left behind while they wrote a run here; the caller must hold the claim."""
    remove_drafts(folder, *RUN_FILES, *EXTRA_FILES)
    for path in folder.glob(f"{WORK}*"):
        # except a complete run, and checkpoints that were moved out of the way
        if path.is_dir() and not path.is_symlink() and path.name != NEW and not is_checkpoints(path):
            shutil.rmtree(path, ignore_errors=True)


def content_of(folder: Path) -> list[str]:
    """The names in a directory, without temporary files of flowknife; empty if there is no directory."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(WORK)) if folder.is_dir() else []


def _remove_empty(folders):
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _take(claim: Path) -> None:
    own = {"process": os.getpid(), "host": platform.node(), "began": _began(os.getpid())}
    for _ in range(3):
        with suppress(FileExistsError):
            # written first and then linked to its name, so that no reader sees half of it
            draft = claim.with_name(f"{claim.name}-{secrets.token_hex(6)}")
            try:
                draft.write_text(json.dumps(own), encoding="utf-8")
                _create(draft, claim)
            finally:
                draft.unlink(missing_ok=True)
            return
        holder = _read(claim)
        if holder is None:  # released in the meantime
            continue
        if not _has_ended(holder):
            raise StorageError(
                f"got {claim.parent}, to which process {holder.get('process')} on {holder.get('host')} is writing a "
                f"run; expected a separate folder; try another --out, or delete {claim} if that process has ended"
            )
        stale = claim.with_name(f"{claim.name}-{secrets.token_hex(6)}")
        with suppress(FileNotFoundError):
            claim.rename(stale)
            if _read(stale) != holder:  # another process took it over first
                with suppress(FileExistsError):
                    _create(stale, claim)
            stale.unlink(missing_ok=True)
    raise StorageError(f"got {claim.parent}, to which another process is writing a run; try another --out")


def _create(draft: Path, claim: Path) -> None:
    """Give `draft` the name `claim` too, unless it is taken (FileExistsError)."""
    try:
        os.link(draft, claim)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        text = draft.read_text(encoding="utf-8")
        with claim.open("x", encoding="utf-8"):
            pass
        try:
            claim.write_text(text, encoding="utf-8")
        except OSError:  # a full disk: an empty claim would have no owner
            claim.unlink(missing_ok=True)
            raise


def _read(claim: Path) -> dict[str, Any] | None:
    try:
        holder = read_json(claim)
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _has_ended(holder: dict[str, Any]) -> bool:
    """Whether the process of a claim has ended; unknown, so False, for a process on another machine."""
    process = holder.get("process")
    if holder.get("host") != platform.node() or not isinstance(process, int) or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    # the system may have given the number to another process since
    return holder.get("began") is not None and _began(process) != holder["began"]


def _began(process: int) -> str | None:
    """Start time of a process that has not ended, where the system provides it (Linux)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        # a zombie has ended; in a container without an init process it keeps its number
        return None if fields[0] in ("Z", "X") else fields[19]
    except (OSError, IndexError):
        return None
