"""The function `fit`."""

import contextlib
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array

from flowknife._cluster import from_first, is_first, mesh
from flowknife._interrupts import deferred
from flowknife._progress import note, progress
from flowknife._record import Stopped
from flowknife._settings import asked
from flowknife._types import Key, as_key, keys_of
from flowknife.data import fingerprint
from flowknife.errors import Interrupted, TrainingError
from flowknife.inn import INN
from flowknife.objectives import Objective, nll, split_batch
from flowknife.tracking import measured
from flowknife.train._checkpoints import Checkpoints, Part, about_fit, digest_of, words_of
from flowknife.train._feeds import make_feed
from flowknife.train._loop import Trainer
from flowknife.train._result import FitResult
from flowknife.train._training import Training


def whole(model: INN) -> INN:
    """The whole model, the default of `fit(where=...)`."""
    return model


def fit(
    model: INN,
    data: Any,
    training: Training | None = None,
    *,
    objective: Objective = nll,
    held_out_objective: Objective | None = None,
    where: Callable[[INN], Any] = whole,
    held_out: Any = None,
    initialise: bool = True,
    key: Key = None,
    label: str = "training",
    show_progress: bool = True,
    throw: bool = False,
    rival: FitResult | None = None,
    checkpoints: str | os.PathLike[str] | Part | None = None,
    resume: bool = False,
    **settings: Any,
) -> FitResult:
    """Minimise an objective over data.

    Several devices divide every batch among them, and so do the devices of several processes that have called
    `jax.distributed.initialize`: all processes call `fit` with the same arguments, and only the first one writes
        checkpoints. `with jax.default_device(device):` trains on a single device.

    A step with a non-finite number is skipped. After three skipped steps in a row, training returns to the best weights
    with half the learning rate. After three such returns it ends.

    Args:
        model: the network to start from.
        data: an array of rows (the only data block), a dict of arrays with equal rows (left-hand blocks, known values
            and conditions by name), or an iterable of such batches.
        training: settings; default `Training()`.
        objective: `objective(model, batch, key)`, default the negative log-likelihood.
        held_out_objective: objective on held-out rows, if `objective` augments; default the same.
        where: the part of the model to train, `where(model)`; default the whole model.
        held_out: held-out data; default the share `training.validation` of the rows, or 0.1 if that is open.
        initialise: fit closed-form layers that are not fitted yet to the first batch.
        key: int, JAX key or None.
        label: text of the progress bar.
        show_progress: show a progress bar.
        throw: raise `TrainingError` if training stopped at a non-finite number.
        rival: the result of another fit to the same data. After a quarter of its steps, training ends as soon as the
            rival's loss was lower at the same step.
        checkpoints: a folder for checkpoints: a new one or, with `resume`, that of the same fit; or a `Part` of a
            larger fit.
        resume: continue from the checkpoints, if there are any. A stream has to repeat the same batches.
        **settings: fields of `Training`, merged over those in `training`.

    Returns:
        the best model and a summary of training.

    Raises:
        InputError: for data that do not fit the model, or settings without effect.
        StorageError: `checkpoints` belongs to another fit, or to this one while `resume` is False.
        TrainingError: with `throw`, at the non-finite objective or gradient that ended training.
        Interrupted: on Ctrl-C during training; a KeyboardInterrupt whose `result` has the best weights so far.
    """
    training = asked(Training, training, settings).with_defaults()
    part, key = _part_of(checkpoints, resume, key, (model, data, held_out, training, objective), show_progress)
    key, split_key, init_key, valid_key = keys_of(key, 4)
    devices, show_progress = mesh(), show_progress and is_first()
    feed, held_out = make_feed(model, data, held_out, training, split_key, devices)
    if initialise:  # every process uses the same rows, whichever rows it trains on
        model = _initialise(model, feed.first, init_key)
    objectives = objective, held_out_objective or objective
    trainer = Trainer(model, where, training, objectives, held_out, valid_key, part, rival, devices)
    trainer.listener = functools.partial(measured, label)
    with progress(label, show_progress) as report, contextlib.closing(feed), deferred() as late:
        result = trainer.run(feed, key, report, late)
    if late or result.stopped is Stopped.INTERRUPTED:
        raise Interrupted(result)
    if result.stopped is Stopped.NON_FINITE:
        if throw:
            raise TrainingError(result.fault)
    elif result.missing_steps or result.dropped:
        note(f"{label}: {result.message}", show_progress)
    return result


def _part_of(checkpoints, resume, key, made_of, show) -> tuple[Part, Array]:
    """The checkpoints of a fit, and its key."""
    if isinstance(checkpoints, Part):
        return checkpoints, as_key(key)
    model, data, held_out, training, objective = made_of
    about = {}
    if checkpoints is not None:
        about = about_fit(
            "fit",
            training,
            key=words_of(None if key is None else as_key(key)),
            model=digest_of(jax.tree.leaves(eqx.filter(model, eqx.is_array))),
            data=_fingerprint(data),
            held_out=_fingerprint(held_out),
            objective=getattr(objective, "__qualname__", type(objective).__name__),
        )
    kept = Checkpoints(checkpoints, about, resume=resume, key=as_key(key), show=show)
    return kept.part("training"), from_first(as_key(kept.key))


def _fingerprint(data) -> Any:
    """Identifies data in memory or on disk; a stream is described by its type only."""
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: _fingerprint(value) for name, value in data.items()}
    return fingerprint(np.asanyarray(data)) if hasattr(data, "dtype") else type(data).__name__


def _finite_rows(array):
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)


def _initialise(model, batch, key):
    # the first step reports a non-finite row; here it would only make the closed-form fit non-finite
    finite = np.all([_finite_rows(array) for array in batch.values()], axis=0)
    if not finite.any():
        return model
    batch = batch if finite.all() else {name: array[finite] for name, array in batch.items()}
    left, known = split_batch(model, batch)
    return model.initialised(left, key=key, **known)
