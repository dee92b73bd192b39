"""The private cache folder: decoded images and compiled programs, which can be deleted at any time."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path


def cache_root() -> Path:
    """`$FLOWKNIFE_CACHE`, or `~/.cache/flowknife`."""
    given = os.environ.get("FLOWKNIFE_CACHE")
    root = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flowknife"
    return root.expanduser()


def private_folder(path: Path) -> Path:
    """Create a folder that only its owner can enter, and return it.

    Raises:
        OSError: if it cannot be created, or belongs to another user.
    """
    path.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        if path.stat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it belongs to another user", str(path))
        path.chmod(0o700)
    return path


def keep_within(folder: Path, most: int, used: Path) -> None:
    """Remove the least recently used entries of a folder until it takes at most `most` bytes.

    Args:
        folder: each file or folder in it is one entry; reading or changing a file counts as use.
        most: bytes.
        used: the entry that is in use; it is never removed.
    """
    with suppress(OSError):
        os.utime(used)
    entries = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):
            about = entry.lstat()
            if not stat.S_ISDIR(about.st_mode):
                entries.append((max(about.st_mtime, about.st_atime), about.st_size, entry))
                continue
            inside = [entry, *entry.rglob("*")]
            entries.append((about.st_mtime, sum(each.lstat().st_size for each in inside), entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= most:
            break
        if entry == used:
            continue
        with suppress(OSError):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
            total -= size
