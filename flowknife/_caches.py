"""The private folder of what flowknife keeps on disk and can make again: decoded images, compiled programs."""

import errno
import os
from pathlib import Path


def cache_root() -> Path:
    """`$FLOWKNIFE_CACHE`, or `~/.cache/flowknife`."""
    given = os.environ.get("FLOWKNIFE_CACHE")
    root = Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "flowknife"
    return root.expanduser()


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter, and return it.

    Raises:
        OSError: if it cannot be made, or belongs to another user.
    """
    path.mkdir(parents=True, exist_ok=True)
    if os.name == "posix":
        if path.stat().st_uid != os.getuid():
            raise PermissionError(errno.EACCES, "it belongs to another user", str(path))
        path.chmod(0o700)
    return path
