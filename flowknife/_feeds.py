"""Where the batches of training come from: arrays in memory, or a stream fetched ahead in a thread."""

import contextlib
import itertools
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sized
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife.errors import InputError
from flowknife.inn import INN

_VALIDATION_ROWS = 20_000  # more held-out rows than this do not change any decision


def make_feed(model: INN, data: Any, validation: Any, training: Any, key: Array):
    """The feed of training batches, and the held-out arrays or None."""
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise InputError(f"got {type(data).__name__} as data; expected an array, a dict of arrays or batches of them")
    if isinstance(data, Mapping) or hasattr(data, "shape"):
        arrays = _as_batch(model, data)
        held_out = _as_batch(model, validation) if validation is not None else None
        if held_out is None and training.validation:
            arrays, held_out = _hold_out(arrays, training.validation, key)
        return _InMemory(arrays, training), _limit(held_out)
    held_out = _as_batch(model, validation) if validation is not None else None
    return _Stream(model, data, training), _limit(held_out)


def _as_batch(model, data) -> dict[str, Array]:
    if not isinstance(data, Mapping):
        blocks = model.partition.data
        if len(blocks) != 1:
            raise InputError(f"got one array; expected a dict with {[block.name for block in blocks]}")
        data = {blocks[0].name: data}
    arrays = {name: jnp.asarray(value) for name, value in data.items() if value is not None}
    if any(array.ndim == 0 for array in arrays.values()):
        raise InputError("got a single number as data; expected an array of rows")
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"got blocks with different numbers of rows, {rows}; expected as many in each")
    if not rows or next(iter(rows.values())) < 1:
        raise InputError("got no rows; expected at least one")
    return arrays


def _hold_out(arrays, share, key):
    rows = len(next(iter(arrays.values())))
    held = min(max(round(share * rows), 1), rows - 1)
    if held < 1:
        return arrays, None
    order = jax.random.permutation(key, rows)
    return (
        {name: array[order[held:]] for name, array in arrays.items()},
        {name: array[order[:held]] for name, array in arrays.items()},
    )


def _limit(held_out):
    return held_out and {name: array[:_VALIDATION_ROWS] for name, array in held_out.items()}


class _InMemory:
    """Whole arrays on the device; a round is a few shuffled passes, cut into batches."""

    def __init__(self, arrays, training):
        self.arrays = arrays
        self.rows = len(next(iter(arrays.values())))
        self.batch = min(training.batch_size, self.rows)
        self.steps_per_epoch = max(self.rows // self.batch, 1)
        self.round = training.evaluate_every or max(self.steps_per_epoch, 100)
        self.first = {name: array[: max(self.batch, 1024)] for name, array in arrays.items()}

    def close(self) -> None:
        """Nothing is open."""

    def rounds(self, key):
        while True:
            key, round_key = jax.random.split(key)
            passes = -(-self.round // self.steps_per_epoch)
            orders = [
                jax.random.permutation(k, self.rows)[: self.steps_per_epoch * self.batch]
                for k in jax.random.split(round_key, passes)
            ]
            yield self.arrays, jnp.concatenate(orders).reshape(-1, self.batch)[: self.round]


class _Stream:
    """Batches from an iterable, fetched ahead in a thread; a round is one batch, evaluated every `evaluate_every`."""

    def __init__(self, model, batches: Iterable, training):
        self.model, self.batches = model, batches
        self.steps_per_epoch = len(batches) if isinstance(batches, Sized) else np.inf
        self.endless = not isinstance(batches, Iterator)  # a list or loader starts again, an iterator ends
        self.ahead = _prefetch(self._batches())
        try:
            self.first = next(self.ahead)
        except StopIteration:
            raise InputError("got a stream without batches; expected at least one") from None
        self.round = training.evaluate_every or 100

    def close(self) -> None:
        """End the thread that reads ahead."""
        self.ahead.close()

    def _batches(self):
        seen = True
        while seen:
            seen = False
            for batch in self.batches:
                seen = self.endless
                yield _as_batch(self.model, batch)

    def rounds(self, key):
        batches = itertools.chain([self.first], self.ahead)
        # batches of one round are joined, so that one compiled loop serves both feeds; another size starts a new round
        for rows, same in itertools.groupby(batches, key=lambda batch: len(next(iter(batch.values())))):
            while joined := list(itertools.islice(same, self.round)):
                arrays = {name: jnp.concatenate([batch[name] for batch in joined]) for name in joined[0]}
                yield arrays, jnp.arange(rows * len(joined)).reshape(len(joined), rows)


def _prefetch(items: Iterator, size: int = 4) -> Generator:
    """Iterate in a thread, up to `size` items ahead; an error in the thread is raised here, closing ends the thread."""
    ready: queue.Queue = queue.Queue(maxsize=size)
    end, closed = object(), threading.Event()

    def put(item):
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def work():
        try:
            for item in items:
                put(item)
                if closed.is_set():
                    return
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join(timeout=1.0)  # longer than a put waits; a source that is slower ends by itself
