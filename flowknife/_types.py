"""Types that every module shares: arrays, random keys, and constants that are not trained."""

import operator
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife import _xla
from flowknife.errors import InputError

_xla.choose()  # here, since every module that computes imports this one
_xla.keep_programs()

Key = int | np.integer | Array | None
"""A source of randomness: an int (a seed), a JAX key, or None (fresh entropy)."""

Shape = tuple[int, ...]
"""The shape of one event, without its batch axes."""


def as_key(key: Key) -> Array:
    """Convert an int, a JAX key or None to a JAX key.

    Different integers below 2^64 give different keys, whether JAX has 64-bit types enabled or not.

    Raises:
        InputError: for anything else.
    """
    if key is None:
        return jax.random.key(secrets.randbits(32))
    if isinstance(key, (int, np.integer)) and not isinstance(key, bool):
        seed = int(key)
        if not -(2**31) <= seed < 2**64:
            raise InputError(f"got the seed {seed}; expected a whole number from 0 to 2^64 - 1; try seed=0")
        if seed < 2**32:
            return jax.random.key(seed)
        return jax.random.wrap_key_data(jnp.array([seed >> 32, seed % 2**32], jnp.uint32))
    if isinstance(key, jax.Array):
        if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
            return key
        if key.dtype == np.uint32 and key.shape == (2,):
            return jax.random.wrap_key_data(key)
    raise InputError(f"got key={key!r}; expected an int, a JAX key or None; try key=0")


def as_generator(key: Key, *numbers: int) -> np.random.Generator:
    """A NumPy generator seeded by a key, for shuffling and other work outside of JAX.

    Different `numbers`, such as the epoch, give different generators.
    """
    return np.random.default_rng([*map(int, np.ravel(jax.random.key_data(as_key(key)))), *numbers])


@partial(jax.jit, static_argnums=1)
def keys_of(key: Array, count: int) -> tuple[Array, ...]:
    """`count` independent keys, from one compiled program."""
    return tuple(jax.random.split(key, count))


def as_count(n: Any, of: str) -> int:
    """A number of draws as an int.

    Raises:
        InputError: for anything but a whole number, 1 or more.
    """
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"got n={n!r}; expected at least 1 {of}, as a whole number; try n=1000")
    return count


def as_seed(key: Key) -> int | None:
    """The integer seed that gives the same key, to be stored in a run's settings; None if there is none."""
    if key is None or isinstance(key, (int, np.integer)):
        return None if key is None else int(key)
    words = np.asarray(jax.random.key_data(as_key(key)))
    return (int(words[0]) << 32) + int(words[1]) if words.shape == (2,) else None


def as_shape(shape: int | Shape) -> Shape:
    """An event shape as a tuple: `3` means a vector of length 3.

    Raises:
        InputError: for anything but whole numbers that are not negative.
    """
    try:
        sizes = shape if isinstance(shape, Iterable) else (shape,)
        # an exported program may have a symbolic batch size
        numbers: tuple[Any, ...] = tuple(
            size if jax.export.is_symbolic_dim(size) else operator.index(size) for size in sizes
        )
    except TypeError:
        numbers = (-1,)
    if any(number < 0 for number in numbers):
        raise InputError(f"got the shape {shape!r}; expected a whole number that is not negative, or a tuple of them")
    return numbers


def _as_size(size: Any) -> Any:
    """A size as an int; the symbolic batch size of an exported program stays as it is."""
    return size if jax.export.is_symbolic_dim(size) else operator.index(size)


def sizes_agree(*arrays: tuple[str, Any], **sizes: int) -> bool:
    """Whether arrays have these axes, and axes of the same name have the same size.

    Examples:
        >>> sizes_agree(("n d", np.zeros((5, 2))), ("n", np.zeros(5)), d=2)
        True
    """
    for names, array in arrays:
        axes = names.split()
        if np.ndim(array) != len(axes):
            return False
        for name, size in zip(axes, np.shape(array), strict=True):
            if sizes.setdefault(name, size) != size:
                return False
    return True


def as_numbers(values: Any, name: str) -> np.ndarray:
    """Real numbers as a new float64 array; masked and missing entries become NaN.

    Raises:
        InputError: for text, dates, complex numbers, and anything else that is not an array of numbers.
    """
    try:
        if isinstance(values, (list, tuple)) and any(isinstance(value, np.ma.MaskedArray) for value in values):
            values = np.ma.stack([np.ma.asarray(value) for value in values])  # np.asarray would drop the masks
        array = np.asarray(values)
        kinds = {array.dtype.kind}
        if kinds == {"O"}:
            array = _without_missing(array)
            kinds = {np.asarray(value).dtype.kind for value in array.ravel()}
        unfit = [words for kind, words in _NOT_NUMBERS.items() if kind in kinds]
        numbers = np.zeros(0) if unfit else np.array(array, np.float64)
    except Exception as error:  # objects of other libraries may raise anything when they are converted
        raise InputError(f"got {type(values).__name__} as {name} ({error_in_words(error)}); expected numbers") from None
    if unfit:
        raise InputError(f"got {unfit[0]} as {name}; expected real numbers")
    if isinstance(values, np.ma.MaskedArray):
        numbers[np.ma.getmaskarray(values)] = np.nan
    return numbers


_NOT_NUMBERS = {"c": "complex numbers", "U": "text", "S": "text", "M": "dates", "m": "times", "V": "records"}


def _without_missing(objects: np.ndarray) -> np.ndarray:
    """Objects with NaN in place of None and pandas' NA and NaT."""
    missing = np.frompyfunc(lambda value: value is None or type(value).__name__ in ("NAType", "NaTType"), 1, 1)
    return np.where(np.asarray(missing(objects), bool), np.nan, objects)


def error_in_words(error: BaseException) -> str:
    """The type and the beginning of the message of an error, in one line."""
    words = " ".join(str(error).split())[:120]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


class Constant(eqx.Module):
    """An array of the model that is used and saved, but never trained.

    Standardisation, fixed rotations and the initialised flag of ActNorm are constants.
    """

    value: Array


@eqx.filter_jit
def built(make: Callable[..., Any], *args: Any, key: Array, **kwargs: Any) -> Any:
    """`make(*args, key=key, **kwargs)`, compiled as a whole.

    Drawing the initial weights one by one would take longer. Equal functions with equal arguments share one compiled
    program. The key belongs to XLA's own random generator, which compiles in a third of the time of JAX's default.
    """
    words = jnp.resize(jax.random.key_data(key), (4,))
    return make(*args, key=jax.random.wrap_key_data(words, impl="unsafe_rbg"), **kwargs)


def split_trainable(tree: Any) -> tuple[Any, Any]:
    """Split a model into (trainable part, the rest); `equinox.combine` joins them again."""
    mask = jax.tree.map(
        lambda leaf: not isinstance(leaf, Constant) and eqx.is_inexact_array(leaf),
        tree,
        is_leaf=lambda leaf: isinstance(leaf, Constant),
    )
    return eqx.partition(tree, mask)
