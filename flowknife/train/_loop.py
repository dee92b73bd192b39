"""The training loop and its state."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
from jaxtyping import Array

from flowknife import _cluster
from flowknife._batches import ROWS_AT_ONCE, in_batches, map_batches
from flowknife._record import Stopped
from flowknife._threads import in_threads, raise_if_interrupted
from flowknife._types import keys_of, split_trainable
from flowknife.errors import InputError, Interrupted
from flowknife.objectives import log_probs, nll
from flowknife.train._checkpoints import Count, Saved, Seconds
from flowknife.train._faults import at_limits, first_fault
from flowknife.train._result import FitResult
from flowknife.train._steps import (
    MATMUL,
    Numbers,
    Rules,
    advance,
    evaluate,
    fresh,
    join,
    log_prob_of_first,
    step_shares,
)

_SECONDS_PER_CALL = 0.5  # duration of one compiled call, so that progress and time budgets stay responsive

_FIRST_EVALUATIONS = 25  # steps between them

_IN_A_ROW = 3  # skipped steps, after which training returns to its best weights

_RETURNS = 3  # returns to the best weights, each with half the learning rate

_FAIR = 0.25  # share of the rival's steps after which the two are compared


@dataclass(frozen=True)
class _Reached:
    """The state of training, as stored in a checkpoint.

    It is replaced as a whole, so that it is consistent whenever an interruption occurs.
    """

    state: tuple[Any, Any, Any]  # weights, their average, and the optimiser state
    best: Any
    total: Array  # sum of the losses of this round
    best_loss: float
    best_step: int = 0
    stale: int = 0  # evaluations since then
    step: int = 0
    round: int = 0
    row: int = 0  # next batch of this round
    made: int = 0  # completed steps of this round
    dropped: int = 0  # skipped steps
    in_a_row: int = 0  # consecutive skipped steps
    returns: int = 0  # number of returns to the best weights
    fault: str = ""  # description of the first one
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


def _equal_columns(history):
    if set(history) != set(_COLUMNS) or len({len(column) for column in history.values()}) > 1:
        raise ValueError("a history of other columns")
    return history


History = Annotated[dict[str, tuple[float, ...]], pydantic.AfterValidator(_equal_columns)]


class _State(Saved):
    """Plain values in a checkpoint of an unfinished training: those of `_Reached`, and the time."""

    best_loss: float
    best_step: Count
    stale: Count
    step: Count
    round: Count
    row: Count
    made: Count
    dropped: Count
    in_a_row: Count
    returns: Count
    fault: str
    history: History
    seconds: Seconds
    minutes: Seconds | None


class _End(Saved):
    """Plain values in a checkpoint of a finished training: those of a result."""

    loss: float
    step: Count
    steps: Count
    seconds: Seconds
    history: History
    fault: str
    dropped: Count
    stopped: Annotated[Stopped, pydantic.Field(strict=False)]  # by its value


class Trainer:
    """The training loop."""

    def __init__(self, model, where, training, objectives, held_out, valid_key, part, rival=None, devices=None):
        self.training, self.held_out, self.valid_key, self.part = training, held_out, valid_key, part
        self.rival = rival
        if training.matmul not in (None, "float32") and jax.default_backend() == "cpu":
            raise InputError(
                f"got train.matmul={training.matmul!r} on a CPU, which computes in float32; expected a GPU or TPU; try "
                "without it"
            )
        objective, self.held_out_objective = objectives
        self.devices, self.agreed = devices, 0.0  # and the share of the time budget that all processes agreed on
        model, objective, self.held_out_objective = _cluster.from_first((model, objective, self.held_out_objective))
        params, rest = split_trainable(where(model))
        self.model, self.rest = (model, rest), self._everywhere((model, rest))
        self.params, self.shares = self._everywhere(params), step_shares(params)
        self.held_out_objective = self._everywhere(self.held_out_objective)
        self.rules = Rules(self._everywhere(objective), where, training.optimiser, training.schedule, devices)
        self.numbers = self._everywhere(Numbers.of(training))
        self.valid_key = self._everywhere(self.valid_key)
        self.reached: Any = None  # nothing yet
        self.start = time.monotonic()
        self.listener: Callable[[int, Mapping[str, float]], None] = lambda step, values: (
            None
        )  # listeners to evaluations

    def run(self, feed, key, report, late) -> FitResult:
        """Train until an end, or until an interruption recorded in `late`; a finished training is read."""
        if (ended := self._from_first(self.part.finished(self.params, _End), self.params)) is not None:
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
        except (RuntimeError, ValueError) as error:
            if not _cluster.many_processes() or not _cluster.is_of_runtime(error):
                raise
            raise _cluster.lost(error) from None

    def _everywhere(self, tree):
        return _cluster.everywhere(tree, self.devices)

    def _from_first(self, found, like):
        """The checkpoint of the first process, the only one that reads and writes checkpoints."""
        if not _cluster.many_processes():
            return found
        plain = _cluster.plain_from_first(None if found is None else found[1])
        if plain is None:
            return None
        return self._everywhere(_cluster.from_first(_cluster.here(like if found is None else found[0]))), plain

    def _meet(self, count: int, late: bool) -> int:
        """Agree with all processes on the number of steps of the next call and on the time.

        Raises:
            KeyboardInterrupt: a process was interrupted.
        """
        if _cluster.many_processes():
            first, self.agreed = _cluster.agreed(count, self._share_of_time)
            count = int(first)
        if _cluster.anywhere(late):
            raise KeyboardInterrupt
        return count

    @property
    def _share_of_time(self) -> float:
        minutes = self.training.minutes
        return self._seconds / 60 / minutes if minutes else 0.0

    def _begin(self) -> _Reached:
        """The initial state, not yet evaluated, or the state of the last checkpoint."""
        start = (self.params, self.params, self._fresh(self.params))
        first = _Reached(
            start, self.params, self._everywhere(jnp.zeros(())), math.inf, history={name: [] for name in _COLUMNS}
        )
        found = self._from_first(self.part.latest(first.arrays, _State), first.arrays)
        if found is None:
            return first
        (state, best, total), plain = self._everywhere(found[0]), dict(found[1])
        self.start = time.monotonic() - plain.pop("seconds")
        # its share of the budget is unchanged
        self.training = self.training.model_copy(update={"minutes": plain.pop("minutes")})
        return _Reached(state, best, total, **plain)

    def _evaluated_start(self, reached, arrays, order, key) -> _Reached:
        """Add the held-out loss of the initial model, while the training program is compiled.

        A closed-form start may be the best model for few rows, so it is a candidate for the best weights.
        """
        if self.devices is not None:  # all devices have to run their programs in the same order
            loss = self.evaluate(self.params)
        else:
            steps = partial(self._advance, reached, arrays, order, 0, 0.0, 0.0, key)
            try:
                loss, _ = in_threads([partial(self.evaluate, self.params), steps], 2)
            except Interrupted as stop:  # `fit` was notified too, and ends before the next step
                loss = math.inf if stop.result[0] is None else stop.result[0]
        return replace(reached, best_loss=loss) if math.isfinite(loss) else reached

    def _advance(self, reached, arrays, order, count, elapsed, rate, key):
        """The state, the sum of losses and the steps made after `count` more steps of this round."""
        # arrays, since a Python number would be compiled into the loop
        place = self._everywhere([jnp.asarray(n) for n in (reached.row, count, reached.step, elapsed, rate)])
        numbers = self.numbers._replace(learning_rate=self.numbers.learning_rate * 0.5**reached.returns)
        fixed = self.rules, self._everywhere(numbers), self.shares, reached.state, self.rest
        with jax.default_matmul_precision(MATMUL[self.training.matmul]):
            return advance(*fixed, arrays, order, reached.total, *place, key)

    def _fresh(self, params):
        return self._everywhere(fresh(self.rules.optimiser, self.numbers, params))

    def _run(self, feed, key, report, late) -> FitResult:
        reached = self.reached = self._begin()
        t = self.training
        if reached.step:
            report(0.0, f"resuming from step {reached.step}")
        per_call, fault = 1, ""
        total = min(t.steps or np.inf, (t.epochs or np.inf) * feed.steps_per_epoch)
        rate = 1.0 / total if np.isfinite(total) else 0.0

        def elapsed():
            return self.agreed if _cluster.many_processes() else self._share_of_time

        def done_fraction():
            return max(elapsed(), self.reached.step / total)

        def tell(loss):
            now = self.reached
            report(min(done_fraction(), 1.0), f"step {now.step}, loss {loss:.3f}, best {now.best_loss:.3f}")

        def end():
            """The reason to end training after an evaluation; None to continue."""
            now = self.reached
            if fault:
                return Stopped.NON_FINITE
            if now.step not in now.history["step"][-1:]:  # not evaluated yet
                return None
            if done_fraction() >= 1:
                return Stopped.BUDGET
            if t.patience and now.stale >= t.patience:
                return Stopped.PATIENCE
            return Stopped.BEHIND if self._behind() else None

        order_key, step_key = keys_of(key, 2)
        step_key = self._everywhere(step_key)
        rounds = iter(feed.rounds(order_key, reached.round))
        arrays, order = next(rounds, (None, ()))
        if compiled := bool(self.held_out and not reached.step and arrays is not None):
            reached = self.reached = self._evaluated_start(reached, arrays, order, step_key)
        while (stopped := end()) is None:
            if not len(order):
                arrays, order = next(rounds, (None, ()))
            if arrays is None:
                stopped = Stopped.STREAM
                break
            reached = self.reached
            stop = min(reached.row + self._until_evaluation(feed.round), len(order))
            while reached.row < stop and (reached.step == 0 or done_fraction() < 1):
                raise_if_interrupted()
                left = self.part.steps_left(reached.step, t.checkpoint_every) or len(order)
                count = int(min(per_call, left, stop - reached.row, max(total - reached.step, 1)))
                count = self._meet(count, bool(late))
                before = time.monotonic()
                state, losses, made = self._advance(reached, arrays, order, count, elapsed(), rate, step_key)
                made = int(made)
                if compiled:
                    seconds = time.monotonic() - before
                    per_call = max(1, int(count * min(4.0, _SECONDS_PER_CALL / max(seconds, 1e-3))))
                compiled = True
                loss = (float(losses) - float(reached.total)) / made if made else math.nan
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
                if _cluster.agreed(self.part.due(reached.step, t.checkpoint_every))[0]:
                    self._save(reached)
                tell(loss)
            train = reached.train
            loss = self.evaluate(reached.state[1]) if self.held_out else train
            if not fault and not np.isfinite(loss) and (self.held_out or reached.made):
                place = f"for the held-out rows, at step {reached.step}"
                words, _ = self._describe(reached.state[1], self.held_out or arrays, slice(None), place)
                fault = f"training stopped {words}"
            reached = replace(reached.evaluated(self._seconds, loss), made=0, total=self._everywhere(jnp.zeros(())))
            self.listener(reached.step, {"train": train, "validation": float(loss)})
            if reached.row == len(order):
                reached, order = replace(reached, round=reached.round + 1, row=0), ()
            self.reached = reached
            if _cluster.many_processes():
                (self.agreed,) = _cluster.agreed(self._share_of_time)
            tell(train)
        plain = self._end_of(reached, fault)
        if stopped is not Stopped.NON_FINITE:  # otherwise it may be resumed with other settings
            self.part.finish(reached.best, plain | {"stopped": str(stopped)})
        return self._result(reached.best, plain, stopped)

    def _behind(self) -> bool:
        """Whether the rival's best loss was lower after the same number of steps."""
        if self.rival is None:
            return False
        steps, losses = (self.rival.history[name] for name in ("step", "validation"))
        now = self.reached
        seen = [loss for step, loss in zip(steps, losses, strict=True) if step <= now.step]
        return bool(seen) and now.step >= _FAIR * steps[-1] and now.best_loss > min(seen)

    def _until_evaluation(self, most: int) -> int:
        """Steps until the next evaluation: few at first, since small tables overfit early, later up to a round."""
        if self.training.evaluate_every:
            return most
        step, last = self.reached.step, max(self.reached.history["step"], default=0)
        return int(last + np.clip(last // 4, _FIRST_EVALUATIONS, most) - step)

    def _without_step(self, reached, arrays, rows):
        """The state after a step with a non-finite number, and the reason to end training, or "".

        The step is skipped. After several skipped steps in a row, training returns to its best weights with half the
        learning rate. It ends if that does not help or cannot help, and at the first step, which has no earlier
        weights.
        """
        words, curable = self._describe(reached.state[0], arrays, rows, f"at step {reached.step}")
        curable = not _cluster.anywhere(not curable)
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
        """Duration of training in seconds, over all processes of a resumed fit."""
        return time.monotonic() - self.start

    def _save(self, reached) -> None:
        plain = reached.plain | {"seconds": self._seconds, "minutes": self.training.minutes}
        self.part.save(reached.step, reached.arrays, plain)

    def _interrupted(self, reached):
        """The best weights at an interruption, after a last evaluation of the current ones."""
        if reached.step > max(reached.history["step"], default=0):
            loss = self.evaluate(reached.state[1]) if self.held_out else reached.train
            reached = reached.evaluated(self._seconds, loss)
        return self._result(reached.best, self._end_of(reached), Stopped.INTERRUPTED)

    def _end_of(self, reached, fault="") -> dict[str, Any]:
        """The plain fields of a result."""
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
        """The objective on the held-out rows, with fixed noise."""
        rows = len(next(iter(self.held_out.values())))
        if self.held_out_objective is nll and self.devices is None:
            model = self._join(params)
            (found,) = map_batches(lambda part: [log_probs(model, part, self.valid_key)], self.held_out, ROWS_AT_ONCE)
            return -float(np.mean(found, dtype=np.float64))
        if self.held_out_objective is nll:  # in the same batches as one device, whose noise is another for another size
            fixed, total = (self.rules.where, params, self.rest), 0.0
            for count, part in in_batches(self.held_out, ROWS_AT_ONCE):
                first = self._everywhere(jnp.asarray(count))
                total += float(log_prob_of_first(*fixed, self._shared(part), first, self.valid_key))
            return -total / rows
        size = min(rows, max(self.training.batch_size, 1000) if rows > 10_000 else max(self.training.batch_size, 1))
        sums = 0.0
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            # the last batch is filled with earlier rows, so that all batches share one compiled program
            batch = self._shared({name: array[stop - size : stop] for name, array in self.held_out.items()})
            loss = evaluate(self.held_out_objective, self.rules.where, params, self.rest, batch, self.valid_key)
            sums += float(loss) * (stop - start)
        return sums / rows

    def _shared(self, batch):
        """Held-out rows, divided among several devices if they divide evenly."""
        if self.devices is None:
            return batch
        if len(next(iter(batch.values()))) % self.devices.size:
            return self._everywhere({name: jnp.asarray(array) for name, array in batch.items()})
        host = {name: np.asarray(array) for name, array in batch.items()}
        return {
            name: _cluster.divided(lambda index, array=array: array[index], array.shape, self.devices, axis=0)
            for name, array in host.items()
        }

    def _join(self, params):
        return join(self.rules.where, params if self.devices is None else _cluster.here(params), self.model)

    def _describe(self, params, arrays, rows, place) -> tuple[str, bool]:
        """The place of a non-finite number, with advice; and whether other weights or smaller steps may help."""
        model = self._join(params)
        divided = self.devices is not None and arrays is not self.held_out
        batch: Any = {name: _cluster.own_rows(a, rows) if divided else a[rows] for name, a in arrays.items()}
        limits = at_limits(batch)
        advice = (
            limits or f"a learning rate below {self.training.learning_rate:g} or a clip below {self.training.clip:g}"
        )
        return f"{place}: {first_fault(model, batch)}; try {advice}", not limits
