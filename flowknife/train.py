"""Training: `fit(model, data) -> FitResult`, one loop for arrays in memory and for streams of batches.

Arrays in memory stay on the device and many steps run inside one compiled loop; a stream's batches are fetched ahead in
a thread. What is kept is an exponential moving average of the weights (Polyak & Juditsky 1992), at the evaluation where
the held-out objective was best.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from jaxtyping import Array

from flowknife._feeds import make_feed
from flowknife._progress import note, progress
from flowknife._record import MINIMUM_STEPS, Stopped, TrainingRecord
from flowknife._settings import Applies, Settings, asked
from flowknife._threads import raise_if_interrupted
from flowknife._types import Key, as_key, split_trainable
from flowknife.bijections import LU, Bijection, Chain, Matrix, Repeat
from flowknife.errors import Interrupted, TrainingError
from flowknife.inn import INN
from flowknife.objectives import Batch, Objective, nll, split_batch

_SECONDS_PER_CALL = 0.5  # how long one compiled call runs, so that progress and time budgets stay responsive

_WIDE, _DEEP = 64, 32  # inputs of a linear mixing, and layers, beyond which steps are smaller

OPTIMISERS = {
    "adam": partial(optax.scale_by_adam, b2=0.99),
    "adamax": optax.scale_by_adamax,
    "nadam": partial(optax.scale_by_adam, nesterov=True),
    "amsgrad": optax.scale_by_amsgrad,
}


_ENDS = ("epochs", "steps", "minutes")
_DEFAULTS = {"batch_size": 256, "learning_rate": 2e-3, "weight_decay": 0.0, "average": 0.998}


class Training(Settings):
    """How to train. Training ends at whichever of `epochs`, `steps` and `minutes` is reached first.

    The learning rate warms up linearly, then follows `schedule` over the whole budget. A field that is None is open:
    each application chooses it from the data.
    """

    applies: ClassVar[Applies] = {"decay": ("schedule", ("exponential",))}

    epochs: float | None = pydantic.Field(None, gt=0, description="passes over the training rows")
    steps: int | None = pydantic.Field(None, ge=1, description="optimiser steps")
    minutes: float | None = pydantic.Field(None, gt=0, description="time budget in minutes, compilation included")
    batch_size: int | None = pydantic.Field(None, ge=1, le=10_000_000, description="rows per step")
    learning_rate: float | None = pydantic.Field(None, gt=0, description="peak learning rate")
    optimiser: Literal["adam", "adamax", "nadam", "amsgrad"] = pydantic.Field(
        "adam", description="rule that turns gradients into steps"
    )
    schedule: Literal["cosine", "exponential", "constant"] = pydantic.Field(
        "cosine", description="course of the learning rate after the warm-up"
    )
    decay: float | None = pydantic.Field(
        None, gt=0, le=1, description="final / peak rate of the exponential schedule; default 0.01"
    )
    warmup: int = pydantic.Field(100, ge=0, description="steps of linear warm-up")
    clip: float = pydantic.Field(5.0, gt=0, description="largest global norm of the gradient")
    weight_decay: float | None = pydantic.Field(
        None, ge=0, description="pull of the weights to zero, per unit of learning rate (AdamW)"
    )
    average: float | None = pydantic.Field(None, ge=0, lt=1, description="decay of the moving average of the weights")
    validation: float | None = pydantic.Field(
        None, ge=0, lt=1, description="share of the rows held out for early stopping and calibration; default 0.15"
    )
    evaluate_every: int | None = pydantic.Field(
        None, ge=1, description="steps between evaluations; default: one pass over the rows, at least 100"
    )
    patience: int | None = pydantic.Field(
        None, ge=0, description="evaluations without improvement before stopping; 0: train to the end"
    )

    def completed(self, **chosen: Any) -> Any:
        """These settings, with `chosen` where a field is open; an end of training only where none was given."""
        ended = any(getattr(self, end) is not None for end in _ENDS)
        return Settings.completed(self, **{k: v for k, v in chosen.items() if not (ended and k in _ENDS)})

    def with_defaults(self) -> Any:
        """These settings, with the defaults of `fit` where a field is still open; 100 epochs where nothing ends it."""
        decay = {"decay": 0.01} if self.schedule == "exponential" else {}
        return self.completed(epochs=100.0, **_DEFAULTS, **decay)


@dataclass(frozen=True)
class FitResult:
    """The result of training.

    Attributes:
        model: the best averaged weights.
        loss: held-out objective of `model` (the training objective, without held-out rows).
        step: the step at which `model` was kept.
        steps: steps made.
        seconds: wall-clock time.
        stopped: why it ended: "budget", "patience", "stream" (no more batches), "non-finite" or "interrupted".
        history: columns step, seconds, train, validation, one row per evaluation.
        fault: where a number was not finite, and what to try; "" where all were.
    """

    model: INN
    loss: float
    step: int
    steps: int
    seconds: float
    stopped: Stopped
    history: dict[str, list[float]] = field(repr=False)
    fault: str = ""

    @property
    def record(self) -> TrainingRecord:
        """What a run keeps of it."""
        return TrainingRecord(steps=self.steps, seconds=round(self.seconds, 1), stopped=self.stopped)

    @property
    def message(self) -> str:
        """Why it ended, as a sentence."""
        return f"{self.fault}; the weights of step {self.step} were kept" if self.fault else self.record.sentence

    @property
    def missing_steps(self) -> int:
        """Steps that are missing of `MINIMUM_STEPS`; with any, the model does not count as trained."""
        return missing_steps(self.history)


def missing_steps(history: Mapping[str, Sequence[float]]) -> int:
    """Steps that are missing of `MINIMUM_STEPS`, of the stage of training (a level of images) with the fewest.

    Args:
        history: columns of the training curve, with a column "level" where there were several stages.
    """
    steps = history.get("step", [])
    last = dict(zip(history.get("level", [0.0] * len(steps)), steps, strict=True))
    return max(0, *(MINIMUM_STEPS - int(step) for step in last.values())) if last else 0


def whole(model: INN) -> INN:
    """All of a model, for `fit(where=...)`."""
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
    **settings: Any,
) -> FitResult:
    """Minimise an objective over data.

    Args:
        model: the network to start from.
        data: an array of rows (the only data block), a dict of arrays with equal rows (left-hand blocks, known values
            and conditions by name), or an iterable of such batches.
        training: settings; default `Training()`.
        objective: `objective(model, batch, key)`, default the negative log-likelihood.
        held_out_objective: that of held-out rows, where the other one augments; default the same.
        where: the part of the model that is trained, `where(model)`; default all of it.
        held_out: held-out data; default the share `training.validation` of the rows, 0.1 where that is open.
        initialise: fit closed-form parts that have not been fitted yet to the first batch.
        key: int, JAX key or None.
        label: what the progress bar says.
        show_progress: whether there is one.
        throw: raise `TrainingError` when training stopped at a non-finite number.
        **settings: fields of `Training`, merged over those in `training`.

    Returns:
        the best model and how training went.

    Raises:
        InputError: for data that do not fit the model, or settings without effect.
        TrainingError: with `throw`, at the first non-finite objective or gradient.
        Interrupted: by Ctrl-C during training; a KeyboardInterrupt whose `result` has the best weights so far.
    """
    training = asked(Training, training, settings).with_defaults()
    key, split_key, init_key, valid_key = jax.random.split(as_key(key), 4)
    feed, held_out = make_feed(model, data, held_out, training, split_key)
    if initialise:
        model = _initialise(model, feed.first, init_key)
    trainer = _Trainer(model, where, training, (objective, held_out_objective or objective), held_out, valid_key)
    with progress(label, show_progress) as report, contextlib.closing(feed):
        result = trainer.run(feed, key, report)
    if result.stopped is Stopped.INTERRUPTED:
        raise Interrupted(result)
    if result.stopped is Stopped.NON_FINITE:
        if throw:
            raise TrainingError(result.fault)
    elif result.missing_steps:
        note(f"{label}: {result.message}", show_progress)
    return result


def _step_shares(tree: Any, share: float = 1.0) -> Any:
    """The share of the learning rate that each array is moved by, a tree like `tree`.

    Every step of Adam moves each number by about the learning rate, whatever the gradient. All of them together move
    what a matrix of n inputs returns by up to n times that, and what L layers return by L times that: beyond some size
    the first steps end in numbers without bound. So the rates of wide mixings fall as 1/n (Yang et al. 2022, arXiv
    2203.03466, table 3) and those of deep stacks as 1/L; below `_WIDE` inputs and `_DEEP` layers nothing changes.
    """

    def of(node):
        if isinstance(node, Repeat):
            layer = _step_shares(node.layer, share * min(1.0, _DEEP / node.times))
            return eqx.tree_at(lambda repeat: repeat.layer, node, layer)
        matrix = share * min(1.0, _WIDE / node.shape[-1]) if isinstance(node, LU | Matrix) else share
        return jax.tree.map(lambda leaf: matrix if leaf.shape[-2:] == (leaf.shape[-1],) * 2 else share, node)

    return jax.tree.map(of, tree, is_leaf=lambda node: isinstance(node, Repeat | LU | Matrix))


def _finite_rows(array):
    return np.isfinite(array).reshape(len(array), -1).all(axis=1)


def _initialise(model, batch, key):
    # a non-finite row is reported by the first step; here it would spoil the fit to the others
    finite = np.all([_finite_rows(array) for array in batch.values()], axis=0)
    if not finite.any():
        return model
    batch = batch if finite.all() else {name: array[finite] for name, array in batch.items()}
    left, known = split_batch(model, batch)
    return model.initialised(left, key=key, **known)


@dataclass
class _Reached:
    """How far training has come, for an interruption: the best weights, and those since the last evaluation."""

    start: float
    history: dict[str, list[float]]
    best: Any
    best_loss: float
    best_step: int = 0
    step: int = 0
    averaged: Any = None
    losses: list[tuple[float, int]] = field(default_factory=list)


def _mean(losses):
    """The mean loss of the steps of several calls, each with the mean of its own steps."""
    steps = sum(count for _, count in losses)
    return sum(mean * count for mean, count in losses) / steps if steps else math.nan


class _Rules(NamedTuple):
    """What training computes: static, so that fits with equal rules and shapes share one compiled program.

    An objective that is a module (`equinox.Module`) may hold arrays, which are arguments of the program; any other is
    compiled into it.
    """

    objective: Objective
    where: Callable[[INN], Any]
    optimiser: str
    schedule: str


class _Numbers(NamedTuple):
    """Settings that a compiled program takes as arguments."""

    learning_rate: Array
    decay: Array
    warmup: Array
    clip: Array
    weight_decay: Array
    average: Array

    @classmethod
    def of(cls, training):
        # arrays, since a plain number would be compiled into the loop
        return cls(*(jnp.asarray(getattr(training, name) or 0.0, jnp.float32) for name in cls._fields))


def _optimiser(rules, numbers):
    return optax.chain(
        optax.clip_by_global_norm(numbers.clip),
        OPTIMISERS[rules.optimiser](),
        optax.add_decayed_weights(numbers.weight_decay),
    )


def _join(where, params, rest):
    """The whole model with the trained part in its place."""
    model, rest = rest
    return eqx.tree_at(where, model, eqx.combine(params, rest))


@eqx.filter_jit
def _advance(rules, numbers, shares, state, rest, arrays, order, first, count, step, fraction, rate, key):
    """`count` steps on the rows `order[first:]`; stops before the first update with a non-finite number."""
    optimiser = _optimiser(rules, numbers)

    def scheduled(i):
        done = jnp.clip(fraction + rate * i, 0.0, 1.0)
        if rules.schedule == "exponential":
            shape = numbers.decay**done
        else:
            shape = 0.5 * (1 + jnp.cos(jnp.pi * done)) if rules.schedule == "cosine" else jnp.ones_like(done)
        return numbers.learning_rate * shape * jnp.minimum(1.0, (step + i + 1) / jnp.maximum(numbers.warmup, 1))

    def objective(params, batch, key):
        return rules.objective(_join(rules.where, params, rest), batch, key)

    def body(carry):
        i, _, total, (params, averaged, opt_state) = carry
        batch = {name: array[order[first + i]] for name, array in arrays.items()}
        loss, grads = jax.value_and_grad(objective)(params, batch, jax.random.fold_in(key, step + i))
        ok = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(grads))
        updates, new_opt_state = optimiser.update(grads, opt_state, params)
        lr = scheduled(i)
        new_params = jax.tree.map(lambda p, u, share: p - (lr * share * u).astype(p.dtype), params, updates, shares)
        # the average forgets its start: its decay grows to `average` over the first steps
        decay = jnp.minimum(numbers.average, (step + i) / (step + i + 10.0))
        new_averaged = jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(p.dtype), averaged, new_params)
        new = (new_params, new_averaged, new_opt_state)
        state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), new, (params, averaged, opt_state))
        return i + ok, ok, total + jnp.where(ok, loss, 0.0), state

    start = (jnp.asarray(0), jnp.asarray(True), jnp.asarray(0.0), state)
    made, _, total, state = jax.lax.while_loop(lambda c: (c[0] < count) & c[1], body, start)
    return state, total / jnp.maximum(made, 1), made


@eqx.filter_jit
def _evaluate(objective, where, params, rest, batch, key):
    return objective(_join(where, params, rest), batch, key)


class _Trainer:
    """The loop and what it carries."""

    def __init__(self, model, where, training, objectives, held_out, valid_key):
        self.training, self.held_out, self.valid_key = training, held_out, valid_key
        objective, self.held_out_objective = objectives
        self.rules = _Rules(objective, where, training.optimiser, training.schedule)
        self.numbers = _Numbers.of(training)
        self.params, rest = split_trainable(where(model))
        self.rest = model, rest
        self.shares = _step_shares(self.params)
        self.reached: _Reached | None = None

    def run(self, feed, key, report):
        """Train until an end is reached, or until an interruption."""
        try:
            return self._run(feed, key, report)
        except KeyboardInterrupt:
            if self.reached is None:
                raise
            return self._interrupted(self.reached)

    def _run(self, feed, key, report):
        t, start = self.training, time.monotonic()
        state = (self.params, self.params, _optimiser(self.rules, self.numbers).init(self.params))
        best, best_loss, best_step, stale = self.params, self._loss_of_start(), 0, 0
        history = {"step": [], "seconds": [], "train": [], "validation": []}
        step, per_call, stopped, fault = 0, 1, Stopped.BUDGET, ""
        total = min(t.steps or np.inf, (t.epochs or np.inf) * feed.steps_per_epoch)

        def done_fraction():
            elapsed = (time.monotonic() - start) / 60 / t.minutes if t.minutes else 0.0
            return max(elapsed, step / total)

        order_key, step_key = jax.random.split(key)
        reached = self.reached = _Reached(start, history, best, best_loss)
        for arrays, order in feed.rounds(order_key):
            losses, row = [], 0
            reached.losses = losses
            while row < len(order) and (step == 0 or done_fraction() < 1):
                raise_if_interrupted()
                count = int(min(per_call, len(order) - row, max(total - step, 1)))
                before, fraction = time.monotonic(), done_fraction()
                rate = 0.0 if not np.isfinite(total) else 1.0 / total
                # arrays, since a plain number would be compiled into the loop
                place = map(jnp.asarray, (row, count, step, fraction, rate))
                fixed = self.rules, self.numbers, self.shares
                state, loss, made = _advance(*fixed, state, self.rest, arrays, order, *place, step_key)
                loss, made = float(loss), int(made)
                seconds = time.monotonic() - before
                if made < count:
                    stopped, fault = (
                        Stopped.NON_FINITE,
                        self._describe(state[0], arrays, order[row + made], step + made),
                    )
                    break
                if step:  # the first call compiles
                    per_call = max(1, int(count * min(4.0, _SECONDS_PER_CALL / max(seconds, 1e-3))))
                step, row = step + made, row + made
                losses.append((loss, made))
                reached.step, reached.averaged = step, state[1]
                report(min(done_fraction(), 1.0), f"step {step}, loss {loss:.3f}, best {best_loss:.3f}")
            train = _mean(losses)
            loss = self.evaluate(state[1]) if self.held_out else train
            if not fault and not np.isfinite(loss):
                stopped = Stopped.NON_FINITE
                fault = "of the held-out rows, " + self._describe(state[1], self.held_out or arrays, slice(None), step)
            for name, value in zip(history, (step, time.monotonic() - start, train, loss), strict=True):
                history[name].append(float(value))
            stale += 1
            if loss < best_loss:
                best, best_loss, best_step, stale = jax.tree.map(jnp.copy, state[1]), loss, step, 0
                reached.best, reached.best_loss, reached.best_step = best, best_loss, best_step
            report(min(done_fraction(), 1.0), f"step {step}, loss {train:.3f}, best {best_loss:.3f}")
            if fault or done_fraction() >= 1:
                break
            if t.patience and stale >= t.patience:
                stopped = Stopped.PATIENCE
                break
        else:
            stopped = Stopped.STREAM
        model = self._join(best)
        return FitResult(model, float(best_loss), best_step, step, time.monotonic() - start, stopped, history, fault)

    def _interrupted(self, reached):
        """The best weights at an interruption; those reached since the last evaluation are evaluated once more."""
        rows = reached.history["step"]
        if reached.step > (rows[-1] if rows else 0):
            train = _mean(reached.losses)
            loss = self.evaluate(reached.averaged) if self.held_out else train
            values = (reached.step, time.monotonic() - reached.start, train, loss)
            for name, value in zip(reached.history, values, strict=True):
                reached.history[name].append(float(value))
            if loss < reached.best_loss:
                reached.best, reached.best_loss, reached.best_step = reached.averaged, loss, reached.step
        return FitResult(
            model=self._join(reached.best),
            loss=float(reached.best_loss),
            step=reached.best_step,
            steps=reached.step,
            seconds=time.monotonic() - reached.start,
            stopped=Stopped.INTERRUPTED,
            history=reached.history,
        )

    def _loss_of_start(self):
        """A start in closed form may be the best that few rows allow: training has to improve on it."""
        loss = self.evaluate(self.params) if self.held_out else np.inf
        return loss if np.isfinite(loss) else np.inf

    def evaluate(self, params):
        """The objective on the held-out rows, always with the same noise."""
        rows = len(next(iter(self.held_out.values())))
        size = min(rows, max(self.training.batch_size, 1000) if rows > 10_000 else max(self.training.batch_size, 1))
        sums = 0.0
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            # what is left at the end is filled up with rows before it: batches of one size are one compiled program
            batch = {name: array[stop - size : stop] for name, array in self.held_out.items()}
            loss = _evaluate(self.held_out_objective, self.rules.where, params, self.rest, batch, self.valid_key)
            sums += float(loss) * (stop - start)
        return sums / rows

    def _join(self, params):
        return _join(self.rules.where, params, self.rest)

    def _describe(self, params, arrays, rows, step):
        model = self._join(params)
        batch = {name: array[rows] for name, array in arrays.items()}
        return f"training stopped at step {step}: {_where(model, batch)}; try {_of_limits(batch) or self._slower()}"

    def _slower(self):
        return f"a learning rate below {self.training.learning_rate:g} or a clip below {self.training.clip:g}"


def _of_limits(batch: Batch) -> str:
    """Words for values so near to the limits of their precision that no learning rate helps; or ""."""
    for name, value in batch.items():
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            continue
        size = np.abs(np.asarray(value, np.float64))
        limits = jnp.finfo(value.dtype)
        if not np.all(np.isfinite(size)):
            return f"finite numbers in {name!r}, divided by their spread where they are beyond {limits.max:.1g}"
        if size.max(initial=0.0) > float(limits.max) ** 0.5 or 0 < size.max(initial=0.0) < float(limits.tiny) ** 0.5:
            return f"other units for {name!r}, whose largest number is {size.max():.2g}: divide it by its spread"
    return ""


def _where(model: INN, batch: Batch) -> str:
    """Where the first non-finite number of a batch appears."""
    for name, value in batch.items():
        if not np.all(np.isfinite(value)):
            rows = np.unique(np.argwhere(~np.isfinite(np.asarray(value)))[:, 0])
            return f"the data block {name!r} has non-finite numbers in {len(rows)} rows of the batch"
    left, known = split_batch(model, batch)
    end = model.left_end(left, key=0, **known)
    place = _first_nonfinite(model.bijection, end.array, end.cond)[0]
    return f"the output of {place} is not finite" if place else "its gradient is not finite, its outputs are"


def _first_nonfinite(bijection: Bijection, x: Array, cond: Array | None) -> tuple[str, Array]:
    """Path of the first layer with a non-finite output ("" if there is none), and the output."""
    if isinstance(bijection, Chain):
        layers = list(bijection.bijections)
    elif isinstance(bijection, Repeat):
        arrays, structure = eqx.partition(bijection.layer, eqx.is_array)
        layers = [eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), structure) for i in range(bijection.times)]
    else:
        y, log_det = bijection.encode(x, cond)
        finite = bool(jnp.all(jnp.isfinite(y)) & jnp.all(jnp.isfinite(log_det)))
        return ("" if finite else type(bijection).__name__), y
    for i, layer in enumerate(layers):
        place, x = _first_nonfinite(layer, x, cond)
        if place:
            return f"{type(bijection).__name__}[{i}].{place}", x
    return "", x
