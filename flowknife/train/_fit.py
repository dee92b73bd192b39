"""The training loop."""

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife._interrupts import deferred
from flowknife._progress import note, progress
from flowknife._record import MINIMUM_STEPS, Stopped, TrainingRecord
from flowknife._settings import asked
from flowknife._threads import raise_if_interrupted
from flowknife._types import Key, as_key, split_trainable
from flowknife.data import fingerprint
from flowknife.errors import Interrupted, TrainingError
from flowknife.inn import INN
from flowknife.objectives import Objective, nll, split_batch
from flowknife.train._checkpoints import Checkpoints, Part, about_fit
from flowknife.train._faults import at_limits, first_fault
from flowknife.train._feeds import make_feed
from flowknife.train._steps import Numbers, Rules, advance, evaluate, join, optimiser_of, step_shares
from flowknife.train._training import Training

_SECONDS_PER_CALL = 0.5  # how long one compiled call runs, so that progress and time budgets stay responsive

_IN_A_ROW = 3  # steps with a number that is not finite, after which training goes back to its best weights

_RETURNS = 3  # to the best weights, each at half the learning rate


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
        dropped: steps that were left out, since a number was not finite.
    """

    model: INN
    loss: float
    step: int
    steps: int
    seconds: float
    stopped: Stopped
    history: dict[str, list[float]] = field(repr=False)
    fault: str = ""
    dropped: int = 0

    @property
    def record(self) -> TrainingRecord:
        """What a run keeps of it."""
        return TrainingRecord(steps=self.steps, seconds=round(self.seconds, 1), stopped=self.stopped)

    @property
    def message(self) -> str:
        """Why it ended, as a sentence."""
        if self.stopped is Stopped.NON_FINITE:
            return f"{self.fault}; the weights of step {self.step} were kept"
        left_out = f"; {self.dropped} steps were left out, the first {self.fault}" if self.dropped else ""
        return self.record.sentence + left_out

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
    checkpoints: str | os.PathLike[str] | Part | None = None,
    resume: bool = False,
    **settings: Any,
) -> FitResult:
    """Minimise an objective over data.

    A step with a number that is not finite is left out. After three in a row training goes back to the best weights, at
    half the learning rate; after three such returns it ends.

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
        checkpoints: a folder for checkpoints, a new one or, with `resume`, that of the same fit; or a part of it.
        resume: go on from the checkpoints, if there are any. A stream has to give the same batches again.
        **settings: fields of `Training`, merged over those in `training`.

    Returns:
        the best model and how training went.

    Raises:
        InputError: for data that do not fit the model, or settings without effect.
        StorageError: the folder has checkpoints that are not to be resumed, or those of another fit.
        TrainingError: with `throw`, at the non-finite objective or gradient that ended training.
        Interrupted: by Ctrl-C during training; a KeyboardInterrupt whose `result` has the best weights so far.
    """
    training = asked(Training, training, settings).with_defaults()
    part, key = _part_of(checkpoints, resume, key, (model, data, held_out, training, objective), show_progress)
    key, split_key, init_key, valid_key = jax.random.split(key, 4)
    feed, held_out = make_feed(model, data, held_out, training, split_key)
    if initialise:
        model = _initialise(model, feed.first, init_key)
    objectives = objective, held_out_objective or objective
    trainer = _Trainer(model, where, training, objectives, held_out, valid_key, part)
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
    """Where a fit keeps its checkpoints, and its key."""
    if isinstance(checkpoints, Part):
        return checkpoints, as_key(key)
    model, data, held_out, training, objective = made_of
    about = {}
    if checkpoints is not None:
        about = about_fit(
            "fit",
            training,
            key=None if key is None else np.asarray(jax.random.key_data(as_key(key))).tolist(),
            model=[_fingerprint(leaf) for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_array))],
            data=_fingerprint(data),
            held_out=_fingerprint(held_out),
            objective=getattr(objective, "__qualname__", type(objective).__name__),
        )
    drawn = as_key(key)
    kept = Checkpoints(checkpoints, about, resume=resume, key=drawn, show=show)
    return kept.part("training"), drawn if kept.key is None else kept.key


def _fingerprint(data) -> Any:
    """What tells data in memory or on disk from others; of a stream nothing does."""
    if isinstance(data, Mapping):
        return {name: _fingerprint(value) for name, value in data.items()}
    return fingerprint(np.asanyarray(data)) if hasattr(data, "dtype") else type(data).__name__


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


@dataclass(frozen=True)
class _Reached:
    """How far training has come: all that a checkpoint holds.

    It is replaced as a whole, so that an interruption at any moment finds one that belongs together.
    """

    state: tuple[Any, Any, Any]  # weights, their average, and the state of the optimiser
    best: Any
    total: Array  # sum of the losses of this round
    best_loss: float
    best_step: int = 0
    stale: int = 0  # evaluations since then
    step: int = 0
    round: int = 0
    row: int = 0  # of this round: the next batch
    made: int = 0  # steps of this round that count
    dropped: int = 0  # steps that were left out
    in_a_row: int = 0  # of them, those since the last step that was not
    returns: int = 0  # to the best weights
    fault: str = ""  # of the first of them
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)

    _ARRAYS = ("state", "best", "total")

    @property
    def arrays(self) -> Any:
        return tuple(getattr(self, name) for name in self._ARRAYS)

    @property
    def plain(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in self._ARRAYS}

    @property
    def train(self) -> float:
        """The mean loss of this round."""
        return float(self.total) / self.made if self.made else math.nan

    def evaluated(self, seconds: float, loss: float) -> "_Reached":
        """With one more row of the history."""
        row = dict(zip(_COLUMNS, (self.step, seconds, self.train, loss), strict=True))
        history = {name: [*self.history.get(name, ()), float(value)] for name, value in row.items()}
        if loss < self.best_loss:
            return replace(
                self, history=history, best=self.state[1], best_loss=float(loss), best_step=self.step, stale=0
            )
        return replace(self, history=history, stale=self.stale + 1)


_COLUMNS = ("step", "seconds", "train", "validation")


class _Trainer:
    """The loop and what it carries."""

    def __init__(self, model, where, training, objectives, held_out, valid_key, part):
        self.training, self.held_out, self.valid_key, self.part = training, held_out, valid_key, part
        objective, self.held_out_objective = objectives
        self.rules = Rules(objective, where, training.optimiser, training.schedule)
        self.numbers = Numbers.of(training)
        self.params, rest = split_trainable(where(model))
        self.rest = model, rest
        self.shares = step_shares(self.params)
        self.reached: Any = None  # nothing yet
        self.start = time.monotonic()

    def run(self, feed, key, report, late) -> FitResult:
        """Train until an end is reached, or until an interruption, noted in `late`; one that has ended is read."""
        if (ended := self.part.finished(self.params)) is not None:
            best, plain = ended
            return self._result(best, plain, Stopped(plain["stopped"]))
        try:
            return self._run(feed, key, report, late)
        except KeyboardInterrupt:
            reached = self.reached
            if reached is None or not reached.step:
                raise
            self._save(reached)
            return self._interrupted(reached)

    def _begin(self) -> _Reached:
        """The start, or what the last checkpoint holds."""
        start = (self.params, self.params, self._fresh(self.params))
        first = _Reached(start, self.params, jnp.asarray(0.0), math.inf, history={name: [] for name in _COLUMNS})
        found = self.part.latest(first.arrays)
        if found is None:
            # a start in closed form may be the best that few rows allow: training has to improve on it
            loss = self.evaluate(self.params) if self.held_out else math.inf
            return replace(first, best_loss=loss if math.isfinite(loss) else math.inf)
        (state, best, total), plain = found
        self.start = time.monotonic() - plain.pop("seconds")
        # its share of a budget is what it was
        self.training = self.training.model_copy(update={"minutes": plain.pop("minutes")})
        return _Reached(state, best, total, **plain)

    def _fresh(self, params):
        return optimiser_of(self.rules, self.numbers).init(params)

    def _run(self, feed, key, report, late) -> FitResult:
        reached = self.reached = self._begin()
        t = self.training
        if reached.step:
            report(0.0, f"going on from step {reached.step}")
        per_call, fault = 1, ""
        total = min(t.steps or np.inf, (t.epochs or np.inf) * feed.steps_per_epoch)
        rate = 1.0 / total if np.isfinite(total) else 0.0

        def elapsed():
            return self._seconds / 60 / t.minutes if t.minutes else 0.0

        def done_fraction():
            return max(elapsed(), self.reached.step / total)

        def tell(loss):
            now = self.reached
            report(min(done_fraction(), 1.0), f"step {now.step}, loss {loss:.3f}, best {now.best_loss:.3f}")

        def end():
            """Why training ends here, after an evaluation; None where it goes on."""
            now = self.reached
            if fault:
                return Stopped.NON_FINITE
            if now.row or not now.history["step"]:
                return None
            if done_fraction() >= 1:
                return Stopped.BUDGET
            return Stopped.PATIENCE if t.patience and now.stale >= t.patience else None

        order_key, step_key = jax.random.split(key)
        rounds = iter(feed.rounds(order_key, reached.round))
        compiled = False
        while (stopped := end()) is None:
            arrays, order = next(rounds, (None, ()))
            if arrays is None:
                stopped = Stopped.STREAM
                break
            reached = self.reached
            while reached.row < len(order) and (reached.step == 0 or done_fraction() < 1):
                raise_if_interrupted()
                if late:
                    raise KeyboardInterrupt
                left = self.part.steps_left(reached.step, t.checkpoint_every) or len(order)
                count = int(min(per_call, left, len(order) - reached.row, max(total - reached.step, 1)))
                before = time.monotonic()
                # arrays, since a plain number would be compiled into the loop
                place = map(jnp.asarray, (reached.row, count, reached.step, elapsed(), rate))
                numbers = self.numbers._replace(learning_rate=self.numbers.learning_rate * 0.5**reached.returns)
                fixed = self.rules, numbers, self.shares
                state, losses, made = advance(
                    *fixed, reached.state, self.rest, arrays, order, reached.total, *place, step_key
                )
                made = int(made)
                if compiled:
                    seconds = time.monotonic() - before
                    per_call = max(1, int(count * min(4.0, _SECONDS_PER_CALL / max(seconds, 1e-3))))
                compiled = True
                loss = float(losses - reached.total) / made if made else math.nan
                reached = replace(
                    reached,
                    state=state,
                    total=losses,
                    step=reached.step + made,
                    row=reached.row + made,
                    made=reached.made + made,
                    in_a_row=0 if made else reached.in_a_row,
                )
                if made < count:
                    reached, fault = self._without_step(reached, arrays, order[reached.row])
                self.reached = reached
                if fault:
                    break
                if self.part.due(reached.step, t.checkpoint_every):
                    self._save(reached)
                tell(loss)
            train = reached.train
            loss = self.evaluate(reached.state[1]) if self.held_out else train
            if not fault and not np.isfinite(loss) and (self.held_out or reached.made):
                place = f"for the held-out rows, at step {reached.step}"
                words, _ = self._describe(reached.state[1], self.held_out or arrays, slice(None), place)
                fault = f"training stopped {words}"
            reached = reached.evaluated(self._seconds, loss)
            self.reached = reached = replace(
                reached, round=reached.round + 1, row=0, made=0, total=jnp.zeros_like(reached.total)
            )
            tell(train)
        plain = self._end_of(reached, fault)
        if stopped is not Stopped.NON_FINITE:  # which other settings have to answer
            self.part.finish(reached.best, plain | {"stopped": str(stopped)})
        return self._result(reached.best, plain, stopped)

    def _without_step(self, reached, arrays, rows):
        """What is reached after a step with a number that is not finite, and why training ends here, or "".

        The step is left out. After some in a row training goes back to its best weights, at half the learning rate;
        where that does not help, or cannot, it ends. So it does at the first step, from which there is no way back.
        """
        words, curable = self._describe(reached.state[0], arrays, rows, f"at step {reached.step}")
        in_a_row = reached.in_a_row + 1
        if not curable or not reached.step or (in_a_row >= _IN_A_ROW and reached.returns >= _RETURNS):
            return reached, f"training stopped {words}"
        reached = replace(
            reached,
            step=reached.step + 1,
            row=reached.row + 1,
            dropped=reached.dropped + 1,
            in_a_row=in_a_row,
            fault=reached.fault or words,
        )
        if in_a_row >= _IN_A_ROW:
            best = reached.best
            state = (best, best, self._fresh(best))
            reached = replace(reached, state=state, in_a_row=0, returns=reached.returns + 1)
        return reached, ""

    @property
    def _seconds(self) -> float:
        """How long training has taken, in all processes."""
        return time.monotonic() - self.start

    def _save(self, reached) -> None:
        plain = reached.plain | {"seconds": self._seconds, "minutes": self.training.minutes}
        self.part.save(reached.step, reached.arrays, plain)

    def _interrupted(self, reached):
        """The best weights at an interruption; those reached since the last evaluation are evaluated once more."""
        if reached.step > max(reached.history["step"], default=0):
            loss = self.evaluate(reached.state[1]) if self.held_out else reached.train
            reached = reached.evaluated(self._seconds, loss)
        return self._result(reached.best, self._end_of(reached), Stopped.INTERRUPTED)

    def _end_of(self, reached, fault="") -> dict[str, Any]:
        """The fields of a result that are plain values."""
        return {
            "loss": float(reached.best_loss),
            "step": reached.best_step,
            "steps": reached.step,
            "seconds": self._seconds,
            "history": reached.history,
            "fault": fault or reached.fault,
            "dropped": reached.dropped,
        }

    def _result(self, best, plain: Mapping[str, Any], stopped):
        own: dict[str, Any] = {"history": {name: list(plain["history"][name]) for name in _COLUMNS}, "stopped": stopped}
        return FitResult(self._join(best), **{**plain, **own})

    def evaluate(self, params):
        """The objective on the held-out rows, always with the same noise."""
        rows = len(next(iter(self.held_out.values())))
        size = min(rows, max(self.training.batch_size, 1000) if rows > 10_000 else max(self.training.batch_size, 1))
        sums = 0.0
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            # what is left at the end is filled up with rows before it: batches of one size are one compiled program
            batch = {name: array[stop - size : stop] for name, array in self.held_out.items()}
            loss = evaluate(self.held_out_objective, self.rules.where, params, self.rest, batch, self.valid_key)
            sums += float(loss) * (stop - start)
        return sums / rows

    def _join(self, params):
        return join(self.rules.where, params, self.rest)

    def _describe(self, params, arrays, rows, place) -> tuple[str, bool]:
        """Where a number is not finite and what to try; and whether other weights or smaller steps may help."""
        model = self._join(params)
        batch = {name: array[rows] for name, array in arrays.items()}
        limits = at_limits(batch)
        advice = (
            limits or f"a learning rate below {self.training.learning_rate:g} or a clip below {self.training.clip:g}"
        )
        return f"{place}: {first_fault(model, batch)}; try {advice}", not limits
