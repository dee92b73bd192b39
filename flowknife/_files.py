"""How files are read and written, which are flowknife's own, and the claim on a run directory while it is written.

A file that is read may come from anywhere: `open_file` and `read_file` take regular files only, and no more of them
than was agreed. A file that is written is written next to its place and moved there: a reader never meets half of one.

Nothing else is ever replaced or deleted: a figure holds the mark of flowknife and its own name, a page its generator, a
list of skipped files its header, and the other files of a run belong to its `run.json`.
"""

import errno
import hashlib
import json
import os
import platform
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from flowknife.errors import StorageError

RUN_FILES = ("run.json", "model.safetensors", "history.csv")
"""What every run directory holds; `run.json` says that it is one."""

EXTRA_FILES = ("card.md", "report.html", "explore.html", "skipped.csv")
"""What a run directory may hold too, beside its figures."""

GENERATOR = '<meta name="generator" content="flowknife">'
"""The mark of a page."""

CARD_MARK = "<!-- flowknife: written with the run; a change is lost when the run is saved again -->"
"""The mark of the card of a run."""

_SKIPPED = b"path,reason"

WORK = ".flowknife-"
"""How the names begin that flowknife uses while it writes."""

NEW = f"{WORK}new"
"""The part of a run directory with the files of a new run, complete, until each is moved to its place."""

CHECKPOINTS = "checkpoints"
"""The part of a run directory with the checkpoints of a fit under way."""

ABOUT = "fit.json"
"""What a folder of checkpoints says of its fit."""

_CLAIM = f"{WORK}claim"
_HEAD = 4096  # bytes of a file that hold its mark

MOST_TEXT = 2**23
"""Bytes of a text file that is read as a whole: a record, the list of a claim."""

_MOST_INSIDE = 2**20  # lists and objects of one text: each takes twenty times its two characters


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
    """The plain values that a text of JSON holds.

    Raises:
        ValueError: it is none, or too much of it lies in lists and objects, side by side or within each other.
    """
    if text.count(b"[") + text.count(b"{") > _MOST_INSIDE:
        raise ValueError(f"more than {_MOST_INSIDE:,} lists and objects")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("values nested too deeply") from None


def read_json(path: str | os.PathLike, most: int = MOST_TEXT) -> Any:
    """The plain values in a file of JSON of at most `most` bytes.

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
        draft = path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}")
        draft.touch(exist_ok=False)
        mode = draft.stat().st_mode & 0o777  # which follows the umask; a writer may put another file there
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


def sync(path: str | os.PathLike) -> None:
    """Bring a file or folder to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# -- which files are flowknife's --------------------------------------------------------------------------------------


def mark(name: str) -> str:
    """The mark of a figure with this file name: a copy with another name, or another image, is not ours."""
    return f"flowknife/{name}"


def place_of(folder: Path, name: str) -> Path:
    """Where a file of a run is: in its place, or among the files of a new run that a killed process did not move."""
    new = folder / NEW / name
    return new if new.exists() else folder / name


def is_run(folder: Path) -> bool:
    """Whether `folder` has the `run.json` of a flowknife run."""
    return _said(place_of(folder, "run.json"), "application") is not None


def _said(path: Path, *keys: str) -> Any:
    """A value in a file of JSON; None if there is none."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def is_partial(folder: Path) -> bool:
    """Whether `folder` has the run of a fit that was interrupted."""
    return is_run(folder) and _said(place_of(folder, "run.json"), "training", "stopped") == "interrupted"


def is_checkpoints(folder: Path) -> bool:
    """Whether `folder` holds checkpoints of a fit."""
    return _said(folder / ABOUT, "checkpoints") is not None


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
    """Hold a directory while a run is written to it, so that no other process writes one to the same place.

    A directory that is missing is made, and taken away again if it stays empty. The claim of a process that has ended
    is taken over.

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
        yield
    finally:
        claim.unlink(missing_ok=True)
        _remove_empty(missing)


def content_of(folder: Path) -> list[str]:
    """The names in a directory, without what flowknife keeps there while it writes; none if there is no directory."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(WORK)) if folder.is_dir() else []


def _remove_empty(folders):
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _take(claim: Path) -> None:
    own = {"process": os.getpid(), "host": platform.node(), "began": _began(os.getpid())}
    for _ in range(3):
        with suppress(FileExistsError):
            # written first and then linked to its name, so that nobody reads half of it
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
                f"run; expected a folder of its own; try another --out, or delete {claim} if that process has ended"
            )
        stale = claim.with_name(f"{claim.name}-{secrets.token_hex(6)}")
        with suppress(FileNotFoundError):
            claim.rename(stale)
            if _read(stale) != holder:  # somebody else took it over first
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
        except OSError:  # a full disk: an empty claim would be nobody's
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
    """Whether the process of a claim has ended; of one on another machine nobody can tell."""
    process = holder.get("process")
    if holder.get("host") != platform.node() or not isinstance(process, int) or os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    # the number may belong to another process by now
    return holder.get("began") is not None and _began(process) != holder["began"]


def _began(process: int) -> str | None:
    """When a process began, where the system tells (Linux)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return fields[19]
    except (OSError, IndexError):
        return None
