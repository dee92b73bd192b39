"""Checkpoints: a folder from which an interrupted fit is resumed.

A fit is determined by its data, settings and key, so a resumed fit repeats the program from the start. Only the slow
parts, each training and the simulations, are stored under their names: a finished part is read, an unfinished part
continues, any other part begins. The folder holds

    fit.json                      description of the fit: another fit is refused
    clock.json                    duration of the fit so far, in seconds
    PART/step-000001200.safetensors   an unfinished training, its last two states
    PART/end.safetensors          a finished training
    PART/rows-000000500.safetensors   simulations, up to this row

Every file is written to a temporary name in the same folder and then renamed, and has a checksum. So a process that is
killed at any time leaves the previous file intact, and a damaged file is not used. Since a folder may come from an
untrusted source, everything that is read is validated against declared fields.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife._cluster import is_first, many_processes
from flowknife._files import ABOUT, is_checkpoints, read_json
from flowknife._progress import note
from flowknife._record import FORMAT, package_versions
from flowknife._settings import Settings, leaves
from flowknife._trees import load_tree, save_tree
from flowknife._types import as_key
from flowknife.data._simulators import Outcome, Way, plain_way, way_of
from flowknife.errors import InputError, StorageError, printable, reason_of
from flowknife.storage import write_json

_SECONDS = 60.0  # between checkpoints, unless a number of steps is set
_COST = 0.01  # largest share of the time for checkpoints
_KEPT = 2  # states of an unfinished training, since the last one may be damaged
_CLOCK = "clock.json"
_END = "end.safetensors"

Place = str | os.PathLike[str] | None
"""A folder of checkpoints, or None for none."""


def about_fit(name: str, settings: Settings, **data: Any) -> dict[str, Any]:
    """The description that identifies a fit: requested settings, including the seed, and data."""
    own = {"checkpoint_every": True, "train": {"checkpoint_every"}}  # no effect on the result
    return {"fit": name, **settings.model_dump(mode="json", exclude=own, exclude_none=True), **data}


def words_of(key: jax.Array | None) -> list[int] | None:
    """The integers of a key."""
    return None if key is None else np.asarray(jax.random.key_data(key)).tolist()


def digest_of(arrays: Sequence[Any]) -> str:
    """The SHA-256 of arrays, their shapes and their types."""
    digest = hashlib.sha256()
    for array in map(np.asarray, arrays):
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class Saved(pydantic.BaseModel, frozen=True, extra="forbid", strict=True):
    """Base class of the plain values in a file; unknown fields, and values of another type, are errors."""


Count = Annotated[int, pydantic.Field(ge=0, lt=2**53)]
"""A number of steps or rows."""

Seconds = Annotated[float, pydantic.Field(ge=0, lt=1e12)]
"""A duration in seconds."""


class _Fit(Saved):
    checkpoints: int
    fit: dict[str, Any]
    key: list[Annotated[int, pydantic.Field(ge=0, lt=2**32)]] | None


class _Clock(Saved):
    seconds: Seconds


class _Rows(Saved):
    way: dict[str, Any]
    first: Count
    reasons: tuple[str, ...]


def _digest(arrays, plain) -> str:
    """Hash of arrays and plain values; tuples and lists are equal."""
    return hashlib.sha256(
        f"{digest_of(arrays)}{json.dumps(dict(plain), sort_keys=True, default=np.generic.item)}".encode()
    ).hexdigest()


class Checkpoints:
    """The checkpoints of one fit; without a folder, nothing is stored.

    Args:
        folder: the folder.
        about: description of the fit in nested plain values: data, settings, key.
        resume: continue from existing checkpoints.
        key: the JAX key of the fit, in case `about` does not contain it.
        began: start of the fit in this process, by `time.monotonic`; default now.
        show: whether to show notes.

    Attributes:
        key: the key of the fit, also when it is resumed.
        began: start of the fit, as if all its processes had run without pauses between them.

    Raises:
        InputError: `resume` without a folder.
        StorageError: the folder holds checkpoints while `resume` is False, checkpoints of another fit, or other files.
    """

    def __init__(
        self,
        folder: Place = None,
        about: Mapping[str, Any] | None = None,
        *,
        resume: bool = False,
        key: jax.Array | None = None,
        began: float | None = None,
        show: bool = True,
    ):
        self.folder, self.show = None if folder is None else Path(folder), show
        if folder is not None and many_processes() and not is_first():
            self.folder, resume = None, False  # only the first process reads the folder
        self.key, self._lock = key, threading.Lock()
        self.began = time.monotonic() if began is None else began
        self._about: Mapping[str, Any] = {}
        if self.folder is None:
            if resume:
                raise InputError(
                    "got resume=True without checkpoints; expected their folder; try checkpoints='checkpoints'"
                )
            return
        made_by = {name: version for name, version in package_versions().items() if name != "python"}
        self._about = {"checkpoints": FORMAT, "fit": {**(about or {}), "versions": made_by}, "key": words_of(key)}
        if is_checkpoints(self.folder):
            if not resume:
                raise StorageError(
                    f"got {self.folder}, which holds the checkpoints of a fit; expected a new folder; try to resume "
                    "that fit (resume=True), or to remove the folder"
                )
            self._resume(self.folder)
        elif self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise StorageError(f"got {self.folder} for checkpoints, which holds other files; expected a new folder")
        elif resume:
            note(f"no checkpoints in {self.folder}: starting from the beginning", show)

    def _resume(self, folder):
        try:
            stored = read_json(folder / ABOUT)
            recorded = _Fit.model_validate(stored)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"got {folder / ABOUT}, which is damaged ({reason_of(error)}); expected that of a fit; try a new folder"
            ) from None
        asked = json.loads(json.dumps(self._about["fit"]))
        changed = _changed(recorded.fit, asked)
        if changed or recorded.checkpoints != FORMAT:
            what = changed or f"format={recorded.checkpoints} then, {FORMAT} now"
            raise StorageError(
                f"got {folder}, the checkpoints of another fit ({what}); expected the same settings, data and "
                "versions; try the earlier ones, or a new folder"
            )
        note(f"resuming from the checkpoints in {folder}", self.show)
        self._about = stored
        if self.key is not None:
            if recorded.key is None or len(recorded.key) != jax.random.key_data(self.key).size:
                raise StorageError(f"got {folder / ABOUT} without the key of the fit; expected it; try a new folder")
            self.key = as_key(jnp.asarray(recorded.key, jnp.uint32))
        with contextlib.suppress(OSError, ValueError):
            self.began -= _Clock.model_validate(read_json(folder / _CLOCK)).seconds

    def part(self, name: str) -> "Part":
        """The part with this name."""
        return Part(self, name)

    def write(self, place: Path, leaves: Sequence[Any], plain: Mapping[str, Any]) -> None:
        """Write arrays and plain values to a file of the folder.

        Raises:
            StorageError: it cannot be written.
        """
        assert self.folder is not None
        arrays = [np.asarray(leaf, order="C") for leaf in leaves]
        with self._lock:
            if not is_checkpoints(self.folder):
                write_json(self.folder / ABOUT, self._about)
        save_tree(place, {"arrays": arrays, "plain": dict(plain), "digest": _digest(arrays, plain)})
        write_json(self.folder / _CLOCK, {"seconds": time.monotonic() - self.began})


def _changed(then, now) -> str:
    """The differences in words; "" if there are none."""
    then, now = dict(leaves(then)), dict(leaves(now))
    names = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    words = [f"{name}={then.get(name, 'open')} then, {now.get(name, 'open')} now" for name in names[:3]]
    return "; ".join([*words, f"and {len(names) - 3} more"] if len(names) > 3 else words)


class Part:
    """The stored state of one part of a fit: the last states and the end of a training, or the rows of simulations.

    Args:
        checkpoints: the checkpoints of the fit.
        name: name of the part, one word.
    """

    def __init__(self, checkpoints: Checkpoints, name: str):
        self._all, self.name = checkpoints, name
        self.folder = None if checkpoints.folder is None else checkpoints.folder / name
        self._step, self._time, self._cost, self._failed = 0, time.monotonic(), 0.0, False

    # -- a training -----------------------------------------------------------------------------------------------

    def finished(self, like: Any, says: type[Saved] | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The arrays, a tree like `like`, and the plain values of `finish`; None if this part has not ended.

        Args:
            like: a tree of arrays with the expected structure and shapes.
            says: the class of the plain values; default any.
        """
        return None if self.folder is None else self._read(self.folder / _END, like, says, finite=True)

    def latest(self, like: Any, says: type[Saved] | None = None) -> tuple[Any, dict[str, Any]] | None:
        """The last readable state, see `finished`; None if there is none."""
        for place in reversed(self._states()):
            if (found := self._read(place, like, says)) is not None:
                self._step = _number(place)
                return found
        return None

    def steps_left(self, step: int, every: int | None) -> int | None:
        """Steps until the next checkpoint; None if checkpoints are timed."""
        return None if every is None or self.folder is None else max(self._step + every - step, 1)

    def due(self, step: int, every: int | None) -> bool:
        """Whether a checkpoint is due: after `every` steps, or by time."""
        if self.folder is None:
            return False
        if every is not None:
            return step - self._step >= every
        return time.monotonic() - self._time >= max(_SECONDS, self._cost / _COST)

    def save(self, step: int, tree: Any, plain: Mapping[str, Any]) -> None:
        """Store the state at `step`."""
        if self.folder is None:
            return
        start = time.monotonic()
        self._write(f"step-{step:09d}.safetensors", jax.tree.leaves(tree), plain)
        for place in self._states()[:-_KEPT]:
            place.unlink(missing_ok=True)
        self._step, self._time = step, time.monotonic()
        self._cost = self._time - start

    def finish(self, tree: Any, plain: Mapping[str, Any]) -> None:
        """Store the end of this part and remove its states."""
        if self.folder is not None and self._write(_END, jax.tree.leaves(tree), plain):
            for place in self._states():
                place.unlink(missing_ok=True)

    def _states(self):
        return self._files("step")

    # -- simulations ----------------------------------------------------------------------------------------------

    def read(self) -> tuple[Way | None, list[Outcome]]:
        """The stored simulations, from the first row on, and how the simulator accepted rows."""
        way, outcomes = None, []
        for place in self._files("rows"):
            found = self._read(place, None, _Rows, check=_require_rows)
            if found is None or found[1]["first"] != len(outcomes):
                break
            (numbers, sizes), plain = found
            way = way_of(plain["way"])
            reasons = iter(plain["reasons"])
            parts = iter(np.split(numbers, np.cumsum(sizes[sizes >= 0])[:-1]))
            outcomes += [next(reasons) if size < 0 else next(parts) for size in sizes]
        return way, outcomes

    def write(self, way: Way, first: int, outcomes: Sequence[Outcome]) -> None:
        """Store the simulations of the rows from `first` on."""
        if self.folder is None:
            return
        vectors = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        sizes = np.array([-1 if isinstance(outcome, str) else len(outcome) for outcome in outcomes], np.int64)
        numbers = np.concatenate([np.zeros(0), *vectors])
        plain = {
            "way": plain_way(way),
            "first": first,
            "reasons": [outcome for outcome in outcomes if isinstance(outcome, str)],
        }
        self._write(f"rows-{first + len(outcomes):09d}.safetensors", [numbers, sizes], plain)

    def forget(self) -> None:
        """Remove all simulations, after an inconsistent batch."""
        for place in self._files("rows"):
            place.unlink(missing_ok=True)

    # -- files ----------------------------------------------------------------------------------------------------

    def _files(self, kind):
        """The files of this part of one kind, "step" or "rows", in order."""
        return [] if self.folder is None else sorted(self.folder.glob(f"{kind}-{'[0-9]' * 9}.safetensors"))

    def _write(self, name, leaves, plain) -> bool:
        """Write a file; a full disk does not end training."""
        assert self.folder is not None
        try:
            self._all.write(self.folder / name, leaves, plain)
        except StorageError as error:
            if not self._failed:
                note(f"no checkpoint: {error}", self._all.show)
            self._failed = True
            return False
        return True

    def _read(self, place, like, says, finite=False, check=None) -> tuple[Any, dict[str, Any]] | None:
        """The arrays and plain values of a file; None if it is missing or unusable."""
        if not place.exists():
            return None
        try:
            tree = load_tree(place, np.asarray)
            arrays, plain = list(tree["arrays"]), tree["plain"]
            if tree["digest"] != _digest(arrays, plain):
                raise StorageError("its checksum is another")
            if says is not None:
                says.model_validate(plain)
            if finite and not all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f"):
                raise StorageError("its numbers are not finite")
            if check is not None:
                check(arrays, plain)
            return (arrays if like is None else _like(arrays, like)), plain
        except (StorageError, LookupError, TypeError, ValueError, AttributeError) as error:
            note(printable(f"{place} is damaged and is not used ({reason_of(error)[:200]})"), self._all.show)
            return None


def _require_rows(arrays, plain):
    """Refuse simulations whose parts are inconsistent."""
    numbers, sizes = arrays
    way_of(plain["way"])
    if (numbers.ndim, sizes.ndim, numbers.dtype, sizes.dtype) != (1, 1, np.float64, np.int64):
        raise StorageError("simulations of another shape")
    if sizes.min(initial=0) < -1 or sizes.max(initial=0) > len(numbers) or sizes[sizes > 0].sum() != len(numbers):
        raise StorageError("simulations of another number of values")
    if np.sum(sizes < 0) != len(plain["reasons"]):
        raise StorageError("simulations of another number of failures")


def _number(place):
    return int(place.stem.rpartition("-")[2])


def _like(arrays, like):
    """Arrays in the tree structure of `like`."""
    expected, structure = jax.tree.flatten(like)
    if [(a.shape, a.dtype) for a in arrays] != [(np.shape(e), jnp.asarray(e).dtype) for e in expected]:
        raise StorageError("it is of another model")
    return jax.tree.unflatten(structure, [jnp.asarray(array) for array in arrays])
