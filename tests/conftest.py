"""How every test runs: on the CPU, stricter than flowknife is used.

- Types and jaxtyping's shapes of every function of flowknife are checked at every call by beartype; only inside
  `pytest.raises(FlowknifeError)` they are not, since there the words of flowknife itself are what is tested.
- Warnings are errors; the exceptions are listed in pyproject.toml.
- Programs are compiled with few optimisations, in half the time, do not say where in the source their operations are,
  and are kept in .pytest_cache, which makes a second run about three times faster. `make check-slow`, which trains,
  compiles them as they are in use.
"""

import gc
import inspect
import os
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["MPLBACKEND"] = "agg"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # of each operation a hundred frames, most of them of pytest
if os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1":
    # A program is compiled in one piece: to cut it into 32 costs a third more, and both cores are at work anyway.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_parallel_codegen_split_count=1".strip()

import jax
import jaxtyping
import pytest

_jaxtyped = jaxtyping.jaxtyped


def _jaxtyped_where_annotated(*function, **options):
    """`jaxtyping.jaxtyped`; functions that annotate nothing have nothing to be checked, and stay as they are."""
    check = _jaxtyped(*function, **options)
    if function:
        return check
    return lambda thing: thing if inspect.isfunction(thing) and not thing.__annotations__ else check(thing)


jaxtyping.jaxtyped = _jaxtyped_where_annotated
jaxtyping.install_import_hook("flowknife", "beartype.beartype")

from flowknife.errors import FlowknifeError  # noqa: E402, only now, so that the hook sees it

# Tracing makes millions of small objects, most of them for good: to look through all of them often is a waste.
gc.freeze()
gc.set_threshold(50_000, 10, 10)

_raises = pytest.raises


@contextmanager
def _raises_as_in_use(expected, **kwargs):
    with _raises(expected, **kwargs) as caught:
        jaxtyping.config.update("jaxtyping_disable", True)
        try:
            yield caught
        finally:
            jaxtyping.config.update("jaxtyping_disable", False)


def raises(expected, *args, **kwargs):
    """`pytest.raises`; types go unchecked, as they do in use, where an error of flowknife is awaited."""
    ours = isinstance(expected, type) and issubclass(expected, FlowknifeError)
    return (_raises_as_in_use if ours else _raises)(expected, *args, **kwargs)


pytest.raises = raises


@pytest.fixture
def key():
    """The seed of every test that asks for none of its own."""
    return jax.random.key(0)


@pytest.fixture
def float64():
    """Runs one test in double precision: `@pytest.mark.usefixtures("float64")` or an argument of that name."""
    with jax.enable_x64(True):
        yield


_MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def room_for_compiled_code():
    """Forgets compiled programs when they become many: a process on Linux has room for some 65,000 pieces of them."""
    yield
    if not _MAPS.exists() or len(_MAPS.read_bytes().splitlines()) > 30_000:
        jax.clear_caches()
