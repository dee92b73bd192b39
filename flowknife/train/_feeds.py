"""Training batches from arrays in memory, arrays on disk and streams; the latter two are prefetched."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from flowknife._batches import bucket
from flowknife._cluster import divided
from flowknife._split import rounded, split, split_sizes
from flowknife._threads import prefetch
from flowknife._types import as_generator
from flowknife.errors import InputError
from flowknife.inn import INN

_VALIDATION_ROWS = 20_000  # more held-out rows do not change any decision

_ROUND_BYTES = 2**28  # largest part of rows on disk that is read for one round


class StoredRows:
    """Rows of an array on disk in a given order, read on demand.

    It has the `shape` and the `dtype` of `array[order]`; indexing it with a slice or indices gives a NumPy array.

    Args:
        array: the array, usually a `numpy.memmap`, or any object with shape, dtype and indexing of rows.
        order: indices of the rows, in order; default all rows.
    """

    def __init__(self, array: Any, order: np.ndarray | None = None):
        self._array = array
        self._order = np.arange(len(array)) if order is None else np.asarray(order)
        self.shape = (len(self._order), *array.shape[1:])
        self.dtype = array.dtype

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, rows: Any) -> np.ndarray:
        chosen = self._order[rows]
        if chosen.ndim == 0:
            return np.asarray(self._array[chosen])
        found = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        places = np.argsort(chosen)  # sequential reads are faster
        found[places] = self._array[chosen[places]]
        return found

    def take(self, order: np.ndarray) -> "StoredRows":
        """A selection or reordering of these rows, without reading any."""
        return StoredRows(self._array, self._order[order])


Rows = np.ndarray | StoredRows
"""Rows in memory or on disk."""


_ON_DISK = (np.memmap, StoredRows)


def take(rows: Any, order: np.ndarray) -> Any:
    """`rows[order]`: a copy for an array in memory, `StoredRows` for an array on disk."""
    if isinstance(rows, _ON_DISK):
        return (rows if isinstance(rows, StoredRows) else StoredRows(rows)).take(order)
    return rows[order]


def make_feed(model: INN, data: Any, validation: Any, training: Any, key: Array, devices: Mesh | None = None):
    """The feed of training batches, divided among several devices, and the held-out arrays or None."""
    if isinstance(data, str) or not isinstance(data, Iterable | StoredRows):
        raise InputError(f"got {type(data).__name__} as data; expected an array, a dict of arrays or batches of them")
    held_out = None if validation is None else _as_batch(model, validation, _few_on_device)
    if not isinstance(data, Mapping) and not hasattr(data, "shape"):
        return _Stream(model, data, training, devices), _limit(held_out)
    on_disk = any(isinstance(value, _ON_DISK) for value in (data.values() if isinstance(data, Mapping) else [data]))
    arrays = _as_batch(model, data, _left_on_disk if on_disk or devices is not None else jnp.asarray)
    if held_out is None and training.validation != 0:
        arrays, held_out = _hold_out(arrays, training.validation, key)
    return _Arrays(arrays, training, on_disk, devices), _limit(held_out)


def _few_on_device(value):
    return jnp.asarray(value[:_VALIDATION_ROWS] if isinstance(value, _ON_DISK) else value)


def _left_on_disk(value):
    return value if isinstance(value, StoredRows) or np.ndim(value) == 0 else StoredRows(np.asanyarray(value))


def _as_batch(model, data, convert=jnp.asarray) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        blocks = model.partition.data
        if len(blocks) != 1:
            raise InputError(f"got one array; expected a dict with {[block.name for block in blocks]}")
        data = {blocks[0].name: data}
    arrays = {name: convert(value) for name, value in data.items() if value is not None}
    if any(np.shape(array) == () for array in arrays.values()):
        raise InputError("got a single number as data; expected an array of rows")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"got blocks with different numbers of rows, {rows}; expected as many in each")
    if not rows or next(iter(rows.values())) < 1:
        raise InputError("got no rows; expected at least one")
    return arrays


def _padded(array):
    """Rows padded with zeros to a round number; no batch contains the zeros."""
    missing = bucket(len(array)) - len(array)
    return jnp.asarray(np.pad(np.asarray(array), [(0, missing), *[(0, 0)] * (array.ndim - 1)])) if missing else array


def _hold_out(arrays, share, key):
    rows = len(next(iter(arrays.values())))
    parts = split(rows, split_sizes(rows, share, alpha=None), key)
    if not len(parts.stopping):
        return arrays, None
    return (
        {name: take(array, parts.train) for name, array in arrays.items()},
        {name: jnp.asarray(array[parts.stopping[:_VALIDATION_ROWS]]) for name, array in arrays.items()},
    )


def _limit(held_out):
    return held_out and {name: array[:_VALIDATION_ROWS] for name, array in held_out.items()}


class _Arrays:
    """Whole arrays; a round is a few shuffled passes, cut into batches.

    Arrays in memory stay on the device. For arrays on disk, each round is read during training on the previous one, and
    the size of a round is limited. Several devices read each round in the same way, each its own rows of every batch.
    """

    def __init__(self, arrays, training, on_disk, devices):
        self.devices, self.ahead = devices, None
        self.in_place = not on_disk and devices is None
        self.rows = len(next(iter(arrays.values())))
        # padded, so that tables of similar size share one compiled program
        self.batch = min(training.batch_size, rounded(self.rows))
        if devices is not None:  # a batch is divided evenly
            self.batch = max(self.batch // devices.size, 1) * devices.size
            if self.batch > self.rows:
                raise InputError(f"got {self.rows} rows for {devices.size} devices; expected one for each; try fewer")
        self.arrays = arrays if not self.in_place else {name: _padded(array) for name, array in arrays.items()}
        self.steps_per_epoch = max(self.rows // self.batch, 1)
        self.round = training.evaluate_every or max(0 if on_disk else self.steps_per_epoch, 100)
        if on_disk:
            bytes_of_row = sum(np.prod(array.shape[1:]) * array.dtype.itemsize for array in arrays.values())
            self.round = min(self.round, max(int(_ROUND_BYTES // (self.batch * bytes_of_row)), 1))
        self.first = {name: jnp.asarray(array[: max(self.batch, 1024)]) for name, array in arrays.items()}

    def close(self) -> None:
        """End the prefetching thread."""
        if self.ahead is not None:
            self.ahead.close()

    def rounds(self, key, skip=0):
        """Arrays and the rows of each batch, round by round, without the first `skip` rounds."""
        orders = self._orders(key, skip)
        if self.in_place:
            return ((self.arrays, jnp.asarray(order)) for order in orders)
        self.ahead = prefetch(map(self._read if self.devices is None else self._divided, orders), 1)
        return self.ahead

    def _orders(self, key, skip):
        for number in itertools.count(skip):
            generator = as_generator(key, number)
            passes = range(-(-self.round // self.steps_per_epoch))
            orders = [generator.permutation(self.rows)[: self.steps_per_epoch * self.batch] for _ in passes]
            yield np.asarray(np.concatenate(orders).reshape(-1, self.batch)[: self.round], np.int32)

    def _divided(self, order):
        return {name: _divide(array, order, self.devices) for name, array in self.arrays.items()}, np.arange(len(order))

    def _read(self, order):
        rows = order.reshape(-1)
        arrays = {name: jnp.asarray(array[rows]) for name, array in self.arrays.items()}
        return arrays, jnp.arange(order.size).reshape(order.shape)


def _divide(array, order, devices):
    """Batches (steps, rows, ...) by the numbers of their rows, each device with its rows of every batch."""
    kind = jax.dtypes.canonicalize_dtype(array.dtype)

    def read(index):
        rows = order[index[0], index[1]]
        found = np.asarray(array[rows.reshape(-1)], kind)
        return found.reshape(*rows.shape, *found.shape[1:])

    return divided(read, (*order.shape, *array.shape[1:]), devices, axis=1)


class _Stream:
    """Batches from an iterable, prefetched in a thread; a round is one batch, evaluated every `evaluate_every`."""

    def __init__(self, model, batches: Iterable, training, devices):
        self.model, self.batches, self.devices = model, batches, devices
        self.steps_per_epoch = len(batches) if isinstance(batches, Sized) else np.inf
        self.endless = not isinstance(batches, Iterator)  # a list or loader restarts, an iterator ends
        self.ahead = prefetch(self._batches())
        try:
            self.first = next(self.ahead)
        except StopIteration:
            raise InputError("got a stream without batches; expected at least one") from None
        self.round = training.evaluate_every or 100

    def close(self) -> None:
        """End the prefetching thread."""
        self.ahead.close()

    def _batches(self):
        any_batch = True
        while any_batch:
            any_batch = False
            for batch in self.batches:
                any_batch = self.endless
                yield _as_batch(self.model, batch)

    def rounds(self, key, skip=0):
        """The batches of each round as one array each, and their rows, without the first `skip` rounds."""
        batches, number = itertools.chain([self.first], self.ahead), itertools.count()
        # batches of a round are joined, so that both feeds share one compiled loop; another size starts a new round
        for rows, same in itertools.groupby(batches, key=lambda batch: len(next(iter(batch.values())))):
            while joined := list(itertools.islice(same, self.round)):
                if next(number) < skip:
                    continue
                arrays = {name: jnp.concatenate([batch[name] for batch in joined]) for name in joined[0]}
                if self.devices is not None:
                    if rows % self.devices.size:
                        raise InputError(
                            f"got a batch of {rows} rows for {self.devices.size} devices; expected a multiple of them"
                        )
                    order = np.arange(rows * len(joined)).reshape(len(joined), rows)
                    parts = {name: _divide(np.asarray(array), order, self.devices) for name, array in arrays.items()}
                    yield parts, np.arange(len(joined))
                    continue
                yield arrays, jnp.arange(rows * len(joined)).reshape(len(joined), rows)
