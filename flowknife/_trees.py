"""The safe model file: a tree of modules, arrays and plain values in one safetensors file.

Its header lists registered classes with plain values, its body the arrays by their path in that tree. Nothing in the
file can run code: only classes defined in flowknife's own modules are built, field by field, from numbers, strings and
arrays.

A file may come from an untrusted source. So everything that is read is validated: every field has the type that its
class declares, every array belongs to exactly one field, numbers are finite, and nothing is allocated before its size
is checked against that of the file.
"""

import dataclasses
import functools
import inspect
import json
import math
import os
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import AbstractArray

from flowknife import bijections, inn, laws, nets, priors
from flowknife._files import open_file, replacing
from flowknife._frame import Frame
from flowknife._record import FORMAT
from flowknife._types import Constant, Shape
from flowknife.data._memory import room_in_memory
from flowknife.errors import StorageError

_HEADER = "flowknife"
_MOST_HEADER = 2**24  # bytes; typical headers are a thousand times smaller
_MOST_DEPTH = 100  # typical trees have 35 levels
_SMALL = 2**24  # bytes; smaller files are not checked against the free memory
_LARGEST = 2**20  # largest integer in a module: these are sizes and indices
_MOST_NUMBERS = 2**27  # largest number of elements of one event
_SIZES = (Shape, Shape | None)
_PLACES = {"indices"}  # fields with permutations: any other index map would not be invertible
_ENDLESS = {"limits", "moments", "low", "high"}  # fields with bounds, which may be infinite


@functools.cache
def _classes() -> dict[str, type[eqx.Module]]:
    """Every module class that a file may name."""
    members = [member for room in (bijections, nets, laws, inn, priors) for member in vars(room).values()]
    modules = [member for member in members if inspect.isclass(member) and issubclass(member, eqx.Module)]
    return {module.__name__: module for module in (Constant, Frame, *modules) if not inspect.isabstract(module)}


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Write a tree of modules, dicts, tuples, arrays and plain values to one safetensors file.

    Raises:
        StorageError: if the tree holds anything else, or the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays: dict[str, np.ndarray] = {}
    header = {"format": FORMAT, "tree": _describe(tree, "", arrays, _classes())}
    with replacing(path) as place:
        try:
            save_file(arrays, place, metadata={_HEADER: json.dumps(header)})
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error).rpartition("I/O error: ")[2]) from None


def _describe(value, path, arrays, classes):
    if isinstance(value, eqx.Module):
        name = type(value).__name__
        if classes.get(name) is not type(value):
            raise StorageError(
                f"got a {type(value).__module__}.{name} at {path or 'the root'} of the model; expected flowknife's own "
                "classes, which a file can name; try equinox.tree_serialise_leaves for your own"
            )
        fields = {
            item.name: _describe(getattr(value, item.name), f"{path}/{item.name}", arrays, classes)
            for item in dataclasses.fields(value)
        }
        return {"class": name, "fields": fields}
    if isinstance(value, (jax.Array, np.ndarray)):
        arrays[path] = np.asarray(value, order="C")
        return {"array": path}
    if isinstance(value, Mapping):
        return {"dict": {key: _describe(item, _step(path, key), arrays, classes) for key, item in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_describe(item, f"{path}/{i}", arrays, classes) for i, item in enumerate(value)]
    if isinstance(value, (np.integer, np.floating)):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise StorageError(f"got a {type(value).__name__} at {path} of the model; expected arrays and plain values")


def _step(path, key):
    """The path of a value of a mapping; a slash inside a key is escaped, since it separates steps."""
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"


def load_tree(path: str | os.PathLike, convert: Callable[[np.ndarray], Any] = jnp.asarray) -> Any:
    """Read a file of `save_tree`.

    Args:
        path: the file.
        convert: applied to each array; default JAX arrays, in single precision unless JAX has 64-bit types enabled.

    Raises:
        StorageError: for a file that is missing, damaged, of a newer format, or written by something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open_file(path) as stream:
            size = os.fstat(stream.fileno()).st_size
        require_room(path, size)
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_HEADER)
            if text is None:
                raise StorageError(f"got {path}, safetensors without a flowknife header; expected a flowknife model")
            if len(text) > _MOST_HEADER:
                raise _Damaged(f"a header of {len(text):,} characters")
            header = json.loads(text)
            require_format(path, header["format"])
            return _Reader(file.get_tensor, set(file.keys()), convert).build(header["tree"], "", Any, False)
    except FileNotFoundError:
        raise StorageError(f"got {path}, which does not exist; expected a model file") from None
    except StorageError:
        raise
    except MemoryError:
        raise StorageError(
            f"got {path}, a model of {size / 2**20:,.0f} MiB; expected one that fits in memory"
        ) from None
    except (*_FAILURES, SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StorageError(f"got {path}, a damaged model file ({reason}); expected one that flowknife wrote") from None


_FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Damaged(ValueError):
    """A model file is damaged; the message explains how."""


class _Reader:
    """Builds a tree and uses each array once.

    Args:
        tensor: returns an array by its name.
        names: names of all arrays.
        convert: what arrays become.
    """

    def __init__(self, tensor: Callable[[str], np.ndarray], names: set[str], convert: Callable[[np.ndarray], Any]):
        self._left = names
        self._tensor, self._convert = tensor, convert

    def build(self, node: Any, path: str, declared: Any, inside: bool, depth: int = 0) -> Any:
        """The value at `path` of the tree.

        Args:
            node: its description in the header.
            path: where it is.
            declared: the type that it must have.
            inside: whether it belongs to a module, whose numbers are finite.
            depth: length of the path.
        """
        if depth > _MOST_DEPTH:
            raise _Damaged(f"a tree of more than {_MOST_DEPTH} levels")
        value = self._built(node, path, inside, depth + 1)
        if not accepts(declared, value):
            raise _Damaged(f"{_word(value)} at {path}; expected {_name(declared)}")
        return value

    def _built(self, node, path, inside, depth):
        if isinstance(node, list):
            return tuple(self.build(item, f"{path}/{i}", Any, inside, depth) for i, item in enumerate(node))
        if not isinstance(node, dict):
            if inside and isinstance(node, float) and not math.isfinite(node):
                raise _Damaged(f"{node} at {path}; expected a finite number")
            if inside and isinstance(node, int) and abs(node) > _LARGEST:
                raise _Damaged(f"a whole number beyond {_LARGEST} at {path}")
            return node
        if set(node) == {"array"}:
            return self._array(node["array"], path, inside)
        if set(node) == {"dict"}:
            return {key: self.build(item, _step(path, key), Any, inside, depth) for key, item in node["dict"].items()}
        return self._module(node, path, depth)

    def _array(self, name, path, inside):
        if name != path or name not in self._left:
            raise _Damaged(f"the array {name!r} at {path}; expected its own")
        self._left.remove(name)
        stored = self._tensor(name)
        array = self._convert(stored)
        if array.dtype.kind in "iu" and array.dtype != stored.dtype and not np.array_equal(array, stored):
            raise _Damaged(f"whole numbers at {path} that do not fit in {array.dtype}")
        endless = not _ENDLESS.isdisjoint(path.split("/")[-2:])
        plain = stored if array.dtype == stored.dtype else np.asarray(array)  # JAX would compile for every shape
        if not _PLACES.isdisjoint(path.split("/")[-2:]):
            if not plain.ndim or not np.all(np.sort(plain, axis=-1) == np.arange(plain.shape[-1])):
                raise _Damaged(f"places at {path} that are not each there once")
        elif inside and not np.all(~np.isnan(plain) if endless else np.isfinite(plain)):
            raise _Damaged(f"numbers at {path} that are not finite")
        return array

    def _module(self, node, path, depth):
        name, fields = node["class"], node["fields"]
        classes = _classes()
        if not isinstance(name, str) or name not in classes:
            raise StorageError(f"got a model with a layer {name!r}; expected one of flowknife's; try a newer one")
        cls = classes[name]
        names = {item.name: item.default for item in dataclasses.fields(cls)}
        # a field with a default may be missing in files of older versions
        required = {field for field, default in names.items() if default is dataclasses.MISSING}
        if not required <= set(fields) <= set(names):
            raise StorageError(f"got fields {sorted(fields)} of {name}; expected {sorted(names)}")
        module, declared = object.__new__(cls), _declared(cls)
        for field, default in names.items():
            value = default
            if field in fields:
                value = self.build(fields[field], f"{path}/{field}", declared[field], True, depth)
            if declared[field] in _SIZES and not _is_size(value):
                raise _Damaged(f"sizes {value} at {path}/{field}")
            object.__setattr__(module, field, value)
        for check in (vars(owner).get("__check_init__") for owner in cls.__mro__):
            if check is not None:
                check(module)
        return module


# -- declared types ---------------------------------------------------------------------------------------------------


@functools.cache
def _declared(cls: type) -> dict[str, Any]:
    """The types of the fields of a class."""
    return typing.get_type_hints(cls)


def accepts(declared: Any, value: Any) -> bool:
    """Whether a value has a declared type; of arrays only the dtype is checked, since stacked layers have more axes.

    Examples:
        >>> accepts(tuple[int, ...], (1, 2)), accepts(float | None, "1")
        (True, False)
    """
    if declared is Any:
        return True
    if declared is None:
        return value is None
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(part, value) for part in parts)
    if origin is typing.Literal:
        return any(value == part and type(value) is type(part) for part in parts)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = parts[:1] * len(value) if parts[-1] is ... else parts
        return len(kinds) == len(value) and all(map(accepts, kinds, value))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            accepts(parts[0], k) and accepts(parts[1], v) for k, v in value.items()
        )
    if origin is not None:
        return isinstance(value, origin)
    if not inspect.isclass(declared):
        return True  # a type variable
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if issubclass(declared, AbstractArray):
        kinds = declared.dtypes  # a sentinel where any dtype is allowed
        known = not isinstance(kinds, (list, tuple)) or str(getattr(value, "dtype", "")) in kinds
        return isinstance(value, declared.array_type) and known
    return isinstance(value, declared)


def _is_size(shape):
    return shape is None or (min(shape, default=0) >= 0 and math.prod(shape) < _MOST_NUMBERS)


def _word(value):
    return f"a {type(value).__name__}"


def _name(declared):
    return declared.__name__ if inspect.isclass(declared) else str(declared).replace("typing.", "")


def require_room(path: str | os.PathLike, size: int, what: str = "a model") -> None:
    """Refuse a file of `size` bytes that does not fit in memory, before any of it is read."""
    if size > _SMALL and size > (room := room_in_memory()):
        raise StorageError(
            f"got {path} of {size / 2**20:,.0f} MiB; expected {what} that fits in memory ({room / 2**20:,.0f} MiB)"
        )


def require_format(path: str | os.PathLike, found: Any) -> None:
    """Refuse a file format of another version."""
    if not isinstance(found, int) or isinstance(found, bool):
        raise StorageError(f"got {path} of format {found!r}; expected one that flowknife wrote, of format {FORMAT}")
    if found != FORMAT:
        advice = "an older flowknife wrote it; try fitting again" if found < FORMAT else "try a newer flowknife"
        raise StorageError(f"got {path} of format {found}; expected format {FORMAT}; {advice}")
