"""The memory limit for images."""

import contextlib
import os
from pathlib import Path

from flowknife.errors import InputError

_VARIABLE = "FLOWKNIFE_MAX_MEMORY"
_UNKNOWN = 8 * 2**30  # assumed if the system does not report it


def memory_budget(given: int | float | None = None) -> int:
    """Bytes for images: `given`, else the environment variable, else half of the available memory.

    Raises:
        InputError: the variable or the argument is not a positive number.
    """
    wanted = os.environ.get(_VARIABLE) if given is None else given
    if wanted is None:
        return room_in_memory()
    with contextlib.suppress(ValueError, OverflowError):
        if (budget := int(float(wanted))) > 0:
            return budget
    name = _VARIABLE if given is None else "max_memory"
    raise InputError(f"got {name}={wanted!r}; expected a number of bytes, such as 4e9")


def room_in_memory() -> int:
    """Bytes for data other than images: half of the available memory."""
    return min(_available(), _left_in_cgroup()) // 2


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN


def _left_in_cgroup() -> int:
    """The memory that is left below the limit of a container."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return max(most - used, most // 4)  # much of the used memory is page cache, which is freed on demand
    return 2**62
