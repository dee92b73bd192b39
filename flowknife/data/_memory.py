"""The memory limit for images."""

import contextlib
import os
from pathlib import Path

from flowknife.errors import InputError

_VARIABLE = "FLOWKNIFE_MAX_MEMORY"
_UNKNOWN = 8 * 2**30  # where the system does not report it


def memory_budget(given: int | float | None = None) -> int:
    """Bytes that images may take: `given`, else of the environment variable, else half of what is available.

    Raises:
        InputError: the variable or the argument is no positive number.
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
    """Bytes that something else than images may take: half of what is available."""
    return min(_available(), _left_of_the_group()) // 2


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return _UNKNOWN


def _left_of_the_group() -> int:
    """What the limit of a container leaves."""
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        return max(most - used, most // 4)  # much of what is used is only kept until somebody needs the room
    return 2**62
