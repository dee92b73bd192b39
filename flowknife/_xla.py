"""Compiler options that save compile time, and the precision of products; what the user sets takes precedence."""

import importlib.util
import os
import platform
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from hashlib import sha256
from pathlib import Path
from typing import ParamSpec, TypeVar

import jax
import jaxlib

from flowknife._caches import cache_root, keep_within, private_folder

_EMITTERS, _LEVEL = "xla_cpu_use_fusion_emitters", "xla_backend_optimization_level"
_SWITCH = "FLOWKNIFE_COMPILATION_CACHE"
_FASTEST = ("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small programs take as long as a large one

_PRECISION = "jax_default_matmul_precision"

_MOST_BYTES = 2**30
_PRUNED, _DAY = ".pruned", 86_400.0


def choose() -> None:
    """Compile with fewer optimisations, unless JAX has already been used.

    The newer code generator of jaxlib 0.10 is switched off: with it, programs of many small layers take about twice the
    time and the memory to compile, and run at most a tenth faster. Where JAX can only use the CPU, LLVM optimises at
    level 1 instead of 3: programs of images compile in 30 to 60 % of the time, and training steps of all jobs are as
    fast, since matrix products come from a library. Other versions of jaxlib may not know the flags, and abort on
    unknown ones.
    """
    flags, version = os.environ.get("XLA_FLAGS", ""), ".".join(jaxlib.__version__.split(".")[:2])
    chosen = {_EMITTERS: "false"} if version == "0.10" else {}
    if version in ("0.10", "0.11", "0.12") and not _has_accelerator():
        chosen[_LEVEL] = "1"
    own = [f"--{name}={value}" for name, value in chosen.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *own])


def _has_accelerator() -> bool:
    """Whether JAX is installed for more than the CPU."""
    return any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))


_P = ParamSpec("_P")
_R = TypeVar("_R")


def precise(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """`function` with matrix products in float32, unless `jax.default_matmul_precision` is set.

    By default JAX rounds the factors to 10 bits on most GPUs (tensorfloat32) and to 8 bits on TPUs. Then an inverse is
    off by a thousandth, and a log density by as much as whole nats where noise is small. CPUs always compute in
    float32.
    """

    @wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if getattr(jax.config, _PRECISION) is not None:
            return function(*args, **kwargs)
        with jax.default_matmul_precision("float32"):
            return function(*args, **kwargs)

    return wrapped


def keep_programs() -> None:
    """Cache compiled programs on disk, so that a second fit with the same shapes compiles nothing.

    The cache is a private folder below `$FLOWKNIFE_CACHE` or `~/.cache/flowknife`. A cache that the user has configured
    for JAX is kept. `FLOWKNIFE_COMPILATION_CACHE=off` switches this cache off, and it stays off if the folder cannot be
    made private.

    Once a day the oldest programs beyond 1 GiB are removed. JAX's own size limit would check the age of every program
    at each write, under a lock that makes other processes wait up to 10 s per write.
    """
    off = os.environ.get(_SWITCH, "").lower() in ("off", "0", "false", "no")
    if off or jax.config.values["jax_compilation_cache_dir"]:
        return
    with suppress(OSError, RuntimeError):  # RuntimeError: the user has no home folder
        folder = private_folder(cache_root() / "compiled" / _machine())
        name, value = _FASTEST
        if name.upper() not in os.environ:
            jax.config.update(name, value)
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # an entry that another process is just writing is compiled again; a warning would only distract
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
        _prune(folder)


def _prune(folder: Path) -> None:
    """Remove the oldest programs beyond the limit, at most once a day."""
    stamp = folder / _PRUNED
    if not stamp.exists() or abs(time.time() - stamp.stat().st_mtime) > _DAY:
        stamp.touch()
        keep_within(folder, _MOST_BYTES, stamp)


def _machine() -> str:
    """Identifies the processor: machines may share a home folder, and a program of one may crash another."""
    kind = platform.processor()
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
        kind = next((line for line in lines if line.startswith(("flags", "Feat"))), kind)
    return sha256(f"{platform.machine()}{kind}".encode()).hexdigest()[:12]
