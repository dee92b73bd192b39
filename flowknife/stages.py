"""Training a model part by part within one time budget, such as the levels of a multi-scale flow."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp

from flowknife._cluster import mesh
from flowknife._interrupts import until_interrupted
from flowknife._record import Stopped, TrainingRecord
from flowknife._threads import in_threads
from flowknife.data import augment
from flowknife.inn import INN
from flowknife.laws import Pixels
from flowknife.multiscale import independent_levels
from flowknife.objectives import Objective
from flowknife.train import Checkpoints, Training, fit

_NUMBERS_FOR_START = 60_000_000  # closed-form parts are fitted to at most this many numbers

History = dict[str, list[float]]


class Trained(NamedTuple):
    """A model that was trained part by part.

    Attributes:
        model: the model; after an interruption, with the best weights so far.
        history: the columns of the training curve; the level is -1 if all levels are trained together.
        training: the settings that all parts share; one that differs between parts is open.
        record: summary of training.
    """

    model: INN
    history: History
    training: Training
    record: TrainingRecord


class Stage(NamedTuple):
    """A part that is trained on its own.

    Attributes:
        level: 0 is the coarsest, -1 all together.
        share: share of the time, relative to the other stages.
        label: the text of the progress bar.
        where: selects the part of the model.
        objective: objective of that part.
        held_out_objective: objective on held-out rows, without augmentation.
        settings: training settings that differ from those of the other stages.
    """

    level: int
    share: float
    label: str
    where: Callable[[INN], Any]
    objective: Objective
    held_out_objective: Objective | None = None
    settings: Mapping[str, Any] = {}


def fit_stages(
    model: INN,
    data: Any,
    held_out: Any,
    training: Training,
    stages: Sequence[Stage],
    key: jax.Array,
    show_progress: bool,
    *,
    checkpoints: Checkpoints,
    reserve: float = 0.0,
    alone: int = 0,
    parallel: int = 1,
) -> Trained:
    """Train the parts of a model within one time budget; time that a part does not use goes to the others.

    Args:
        model: the model to start from, its closed-form parts fitted.
        data: as for `fit`.
        held_out: data that decide when to stop; None for none.
        training: settings of every stage; the time budget is for all of them together.
        stages: the stages in order; their parts do not overlap.
        key: JAX key.
        show_progress: show progress bars.
        checkpoints: checkpoints of the fit; each stage is one part.
        reserve: seconds of the time budget that are kept for the steps after training.
        alone: the first `alone` stages run one by one before the others, which start from their results.
        parallel: number of threads for the other stages; with 2 or more they do not see each other's results.

    Returns:
        the model and how training went. After an interruption the parts that were trained keep their best weights.

    Raises:
        KeyboardInterrupt: before the first step.
    """
    first = stages[0].settings
    shared = {name for name in first if len({stage.settings[name] for stage in stages}) == 1}
    training = training.completed(**{name: first[name] for name in shared})

    def run(stage, model, minutes):
        return fit(
            model,
            data,
            training.model_copy(update={**stage.settings, "minutes": minutes, "validation": 0.0}),
            objective=stage.objective,
            held_out_objective=stage.held_out_objective,
            where=stage.where,
            held_out=held_out,
            initialise=False,
            key=jax.random.fold_in(key, max(stage.level, 0)),
            label=stage.label,
            show_progress=show_progress,
            throw=True,
            checkpoints=checkpoints.part(f"level-{stage.level}" if stage.level >= 0 else "all-levels"),
        )

    history: History = {}
    made = done = 0  # steps, and stages
    ends: set[Stopped] = set()
    start, todo = time.monotonic(), sum(stage.share for stage in stages)
    one_by_one = len(stages) if parallel == 1 else alone
    groups = [*([stage] for stage in stages[:one_by_one]), stages[one_by_one:]]  # the last one may be empty
    for group in groups:
        # programs that wait for other devices must start in the same order in every process
        threads = min(parallel, len(group)) if mesh() is None else 1
        left = training.left(checkpoints.began, reserve).minutes
        minutes = [left and max(left * min(threads * stage.share / todo, 1.0), 0.01) for stage in group]
        calls = [partial(run, stage, model, m) for stage, m in zip(group, minutes, strict=True)]
        results, interrupted = until_interrupted(partial(in_threads, calls, threads))
        for stage, result in zip(group, results, strict=True):
            if result is None:  # interrupted before it began
                continue
            model = eqx.tree_at(stage.where, model, stage.where(result.model))
            columns = {"level": [float(stage.level)] * len(result.history["step"]), **result.history}
            history = {name: history.get(name, []) + column for name, column in columns.items()}
            made += result.steps
            ends.add(result.stopped)
        if interrupted:
            if not made:
                raise KeyboardInterrupt
            part, ends = (done + 1, len(stages)), {Stopped.INTERRUPTED}
            break
        done += len(group)
        todo -= sum(stage.share for stage in group)
    else:
        part = None
    stopped = ends.pop() if len(ends) == 1 else None
    seconds = round(time.monotonic() - start, 1)
    return Trained(model, history, training, TrainingRecord(steps=made, seconds=seconds, stopped=stopped, part=part))


@eqx.filter_jit
def _initialised(flow, x, cond):
    return flow.initialise(x, cond)[0]


@eqx.filter_jit
def _to_coarse(flow, x, cond):
    return flow.encode_coarsest(x, cond), cond


def closed_form_start(model, train, augmentation, flip, key, cond=None):
    """Fit the closed-form layers (colours, whitenings, actnorm) to as many training images as fit in memory.

    If the images are large, these are too few for the principal directions of whole images. So the flow of the coarsest
    grid is fitted again, to as many coarse images as fit. `cond` has a row for each image, if there are conditions.
    """
    independent = independent_levels(model.bijection)
    image = model.partition.left[0]
    copies = 2 if flip else 1

    def rows(start, count):
        augment_key, noise_key = jax.random.split(jax.random.fold_in(key, start))
        pixels = augment(augment_key, jnp.asarray(train[start : start + count]), augmentation, flip=False)
        pixels = jnp.concatenate([pixels, pixels[:, :, ::-1]]) if flip else pixels
        # the dequantisation noise starts as uniform, so its network need not be evaluated on all rows
        x = Pixels(image.law.bits).prepare(noise_key, pixels, pixels.shape[:1], image.shape)
        return x, None if cond is None else jnp.tile(jnp.asarray(cond[start : start + count]), (copies, 1))

    # actnorm needs the output of every layer before it, a wavelet flow's whitenings need none
    most = _NUMBERS_FOR_START if independent else _NUMBERS_FOR_START // 20
    count = max(most // image.size // copies, 16)
    first = rows(0, count)
    flow = _initialised(model.bijection, *first)
    coarse = model.bijection.coarsest  # the unfitted one, since layers that are already fitted are not fitted again
    if independent and coarse.shape != flow.shape and count < len(train):
        enough = min(most // math.prod(coarse.shape) // copies, len(train))
        others = (rows(start, count) for start in range(count, enough, count))
        parts = [_to_coarse(flow, *part) for part in itertools.chain([first], others)]
        joined = jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
        flow = eqx.tree_at(lambda flow: flow.coarsest, flow, _initialised(coarse, *joined))
    return eqx.tree_at(lambda m: m.bijection, model, flow)
