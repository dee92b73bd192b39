"""Applications 5, 6 and 7, inverse problems: parameters on the left, data and a latent on the right.

`sample(n, y=observation)` draws parameters that explain an observation. Two forms of one model represent the same
density p(x | y): *conditional*, x <-> z with y fed to every coupling, and *partitioned*, x <-> [y, z], or (x, noise)
<-> [y, z] for data with noise, where the same draw of the noise is added to y.
"""

import os
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np

from flowknife import priors
from flowknife._cluster import many_processes
from flowknife._frame import LocalSpread, plain_frame
from flowknife._interrupts import finish, until_interrupted
from flowknife._progress import note, progress
from flowknife._record import DataRecord, Record, Stopped, described
from flowknife._settings import asked, require_applicable
from flowknife._split import split, split_sizes
from flowknife._threads import in_threads
from flowknife._types import Key, as_generator, as_key, as_seed, keys_of
from flowknife.apps._track import tracked
from flowknife.apps.invert._config import TASK, InvertConfig
from flowknife.apps.invert._emulator import emulated, emulated_count, emulator_settings, further_settings, overfitted
from flowknife.apps.invert._gaps import filled, masked
from flowknife.apps.invert._models import conditional_model, objective_of, partitioned_model
from flowknife.apps.invert._pairs import (
    failures_note,
    frame_of,
    noise_of,
    pairs_fingerprint,
    prior_note,
    require_exact,
    require_inside,
    require_resolved,
    shape_of,
    tails_note,
)
from flowknife.apps.invert._result import Posterior
from flowknife.apps.invert._task import Task, task_of
from flowknife.data import Simulations, fingerprint, simulate, takes_key
from flowknife.data.sets import is_set
from flowknife.diagnostics import Flagging
from flowknife.errors import InputError, Interrupted, TrainingError
from flowknife.tracking import Track
from flowknife.train import Checkpoints, FitResult, Part, StoredRows, Training, about_fit, fit, take

_KEPT = 1000  # training pairs kept with the run
_CALIBRATING, _NUMBERS = 4000, 1_000_000  # calibration pairs, at most, and numbers in those beyond the first 1000

_HELD_OUT, _FIRST = 20_000, 200_000  # for pairs on disk: held-out pairs, and pairs for the closed-form start

_START_ROWS = 20_000  # pairs to which the closed-form layers are fitted, at most

_SHARP = 0.01  # noise added to noise-free data, in standard deviations

_FEW = 50_000  # pairs; beyond this, weight decay does not help


@tracked
def invert(
    simulator: Any = None,
    prior: priors.Prior | None = None,
    config: InvertConfig | None = None,
    *,
    pairs: Any = None,
    names: Sequence[str] | None = None,
    y_names: Sequence[str] | None = None,
    executor: Any = None,
    log_likelihood: Callable[[Any, Any], Any] | None = None,
    key: Key = None,
    show_progress: bool = True,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    track: Track = None,  # in effect by `tracked`
    **settings: Any,
) -> Posterior:
    """Learn the posterior p(x | y) of an inverse problem, for every observation y at once.

    Args:
        simulator: a Python function y = simulator(x) or simulator(x, key=...), of one row or of a batch, in NumPy or
            JAX; or a problem of `flowknife.problems`, which includes its prior and noise.
        prior: the distribution of the parameters; every posterior sample lies in its support. For pairs without a prior
            it is estimated from them, component by component (uniform, normal or log-normal, whichever is likeliest).
        config: settings; default `InvertConfig()`.
        pairs: existing pairs instead of a simulator: (x, y), arrays of equal length; an .npz file with the arrays x and
            y; a table (file or DataFrame) with the parameters `names` among its columns; or a folder of `simulate`,
            which includes its prior. If a problem is given too, its prior and noise are those of the pairs.
        names: names of the parameters; default those of the prior or of the columns.
        y_names: names of the data; default those of the problem or of the columns, all but the parameters.
        executor: a pool for a slow simulator, with `submit` or `map`: threads, or spawned processes, as in
            `ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))`.
        log_likelihood: `f(x, y)`, log p(y | x) of parameters (n, d) and one observation (m,), shape (n,), if it is
            known. The fit does not use it, but `sample(refine=True)` and `evidence` do. For a deterministic simulator
            with Gaussian `noise` it is known already.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        checkpoints: a folder for checkpoints: a new one or, with `resume`, that of the same fit.
        resume: continue from the checkpoints, if there are any.
        track: tracker of the fit, "tensorboard:DIR", "mlflow:URI" or a `tracking.Tracker`; or a list of trackers.
        **settings: fields of `InvertConfig`, merged over those in `config`; `train` may be a dict.

    Returns:
        the posterior.

    Raises:
        InputError: for a simulator or pairs that cannot be used, or settings without effect.
        StorageError: `checkpoints` belongs to another fit, or to this one while `resume` is False.
        Interrupted: on Ctrl-C during training; its `result` is the posterior with the best weights so far.

    Warns:
        CalibrationWarning: without calibration pairs, or with too few to flag anything.

    Examples:
        >>> import flowknife as fk
        >>> prior = fk.Uniform(low=[-2, -2], high=[2, 2])
        >>> posterior = fk.invert(
        ...     lambda x: x**2, prior, num_simulations=500, layers=2, train={"steps": 20}, show_progress=False
        ... )
        >>> posterior.sample(3, y=[1.0, 1.0], key=1).shape
        (3, 2)
    """
    began = time.monotonic()
    config = asked(InvertConfig, config, settings, as_seed(key))
    key = as_key(config.seed if key is None else key)
    keys = keys_of(key, 6)
    task = task_of(simulator, prior, pairs, config, names, y_names)
    if task.pairs is None and not task.name and many_processes():
        raise InputError(
            "got a simulator in a fit of several processes, which would all run it; expected pairs; try fk.simulate, "
            "then invert(pairs=...)"
        )
    used = _used(config, task)
    prior = task.prior
    require_resolved(prior)
    if task.pairs is None and task.simulator is not None and takes_key(task.simulator):
        require_exact(config, False)
    draw_key, simulate_key = keys_of(keys[0], 2)
    if task.pairs:
        theta, own = task.pairs.theta, {"data": pairs_fingerprint(task.pairs, task)}
    else:  # in double precision, since a simulator may add large numbers to them
        theta = np.asarray(prior.sample(used.num_simulations or 1, key=draw_key), np.float64)
        own = {"parameters": fingerprint(theta), "simulator": task.name or described(simulator)}
    gaps = config.embedding is not None
    kept = Checkpoints(checkpoints, about_fit("invert", config, **own), resume=resume, began=began, show=show_progress)
    data = task.pairs or _simulated(task, theta, simulate_key, executor, kept.part("simulations"), show_progress, gaps)
    if task.pairs is None or is_set(pairs):
        require_exact(config, data.exact)
    require_inside(prior, data.theta)
    y_names = task.y_names or tuple(f"y{i + 1}" for i in range(data.y.shape[1]))
    if len(y_names) != data.y.shape[1]:
        raise InputError(f"got {len(y_names)} y_names for data of {data.y.shape[1]} numbers; expected one for each")
    noise = noise_of(task.noise, data.y)
    used = used.completed(observation=shape_of(pairs, data.y, config) if gaps else None)
    frame = frame_of(data.y, noise, used)
    if not frame.dim:
        raise InputError(
            f"got data that are the same for all {len(data.y):,} parameters; expected data that depend on them; check "
            "the simulator"
        )
    tails = tails_note(data.theta, filled(data.y), prior, task.estimated, y_names)
    note(tails, show_progress)
    note(failures_note(data, task), show_progress)
    # from here on, everything is in the units of the model
    units = prior.frame or plain_frame(prior.dim)
    x, y = units.to_model(data.theta), frame.to_model(data.y)
    unlike = prior_note(x, prior, data) if task.pairs and not task.estimated else ""
    note(unlike, show_progress)
    user_noise, noise = noise, frame.widths_to_model(noise)
    spread = y.std(axis=0)
    if gaps:
        y = masked(y)
        spread = np.concatenate([frame.to_model(filled(data.y)).std(axis=0), np.zeros_like(noise)])
        noise = np.concatenate([noise, np.zeros_like(noise)])  # the mask has no noise
    sharp = data.exact and config.form == "conditional" and config.noise is None and not np.any(noise)
    noise_at = LocalSpread.constant(noise)
    if sharp:  # given a noise-free y, p(x | y) is concentrated on a surface, where its density is unbounded
        noise_at = LocalSpread.of(y, spread).scaled(_SHARP)
        user_noise = frame.widths_from_model(np.median(noise_at(y), axis=0)[: frame.dim])
    added = f"no noise in the data: {_SHARP:g} of their local spread was added" if sharp else ""
    note(added, show_progress and not task.name)  # for a problem it is known
    training = used.train
    if task.stored is not None:  # units and noise were computed from a subset of the pairs
        usable = task.stored.usable()
        x = StoredRows(_Converted(task.stored.theta, units, x.dtype), usable)
        y = StoredRows(_Converted(task.stored.y, frame, y.dtype), usable)
    parts = split(len(x), split_sizes(len(x), training.validation, config.alpha), keys[1])
    most = None if task.stored is None else _HELD_OUT
    rows = parts.train, parts.stopping[:most], parts.calibration[:most]
    whole, stopping, held_out = ({"x": take(x, part), "y": take(y, part)} for part in rows)
    if task.stored is not None:
        stopping, held_out = ({name: part[:] for name, part in each.items()} for each in (stopping, held_out))
    # for pairs on disk, those to which the closed-form layers are fitted
    train = {name: part if task.stored is None else part[:_FIRST] for name, part in whole.items()}

    generator = as_generator(keys[2])
    noisy, held_noisy = (
        part["y"] + np.asarray(noise_at(part["y"])) * generator.normal(size=part["y"].shape).astype(part["y"].dtype)
        for part in (train, held_out)
    )
    make = partitioned_model if config.form == "partitioned" else conditional_model
    start_y = train["y"] if config.form == "partitioned" else noisy

    def started(model_key):
        model = make(used, prior.inner, noisy, noise, model_key)
        return model.initialised(train["x"][:_START_ROWS], key=keys[4], y=start_y[:_START_ROWS])

    model = started(keys[3])
    candidates = _candidates(training, len(whole["x"]))
    trained: list[FitResult] = []

    def train_one(model, training, key, share, which, part, *, rival=None, pairs=whole):
        return fit(
            model,
            pairs,
            training.left(kept.began, share=share).model_copy(update={"validation": 0.0}),  # pairs are held out above
            objective=objective_of(used, prior.inner, noise_at),
            held_out=stopping if len(parts.stopping) else None,
            key=key,
            label=f"posterior{which}",
            show_progress=show_progress,
            throw=True,
            rival=rival,
            checkpoints=kept.part(part),
        )

    emulating = _emulating(
        config, candidates, _why_not_emulated(config, task, data, noise, whole, len(parts.stopping), unlike)
    )

    def train_candidate(i, training):
        # share of the remaining time, since earlier candidates may not have used theirs
        share = 1 / (len(candidates) - i + 2 * emulating + (1 + emulating) * (config.ensemble - 1))
        which = f", {i + 1} of {len(candidates)}: weight decay {training.weight_decay:g}" if len(candidates) > 1 else ""
        rival = min(trained, key=lambda result: result.loss, default=None)
        trained.append(train_one(model, training, keys[5], share, which, f"candidate-{i + 1}", rival=rival))
        return trained[-1]

    calls = [partial(train_candidate, i, training) for i, training in enumerate(candidates)]
    results, interrupted = until_interrupted(partial(in_threads, calls, threads=1))
    reached = [i for i, result in enumerate(results) if result is not None and result.steps]
    if not reached:
        raise KeyboardInterrupt
    best = min(reached, key=lambda i: results[i].loss)
    result, training = results[best], candidates[best]
    stages = len(candidates) + emulating

    def train_emulator(model, pairs, key):
        settings = emulator_settings(training.left(kept.began, share=0.5 / config.ensemble))
        part = kept.part("emulator")
        try:
            return fit(
                model,
                pairs,
                settings,
                key=key,
                label=part.name,
                show_progress=show_progress,
                throw=True,
                checkpoints=part,
            ).model
        except Interrupted:  # its result is no posterior
            raise Interrupted(None) from None

    @cache
    def emulated_pairs():
        key, sizes = jax.random.fold_in(keys[5], 0), {"width": used.width, "depth": used.depth}
        found = emulated(whole["x"], whole["y"][:, : frame.dim], prior.inner, key=key, train=train_emulator, **sizes)
        return found | {"y": masked(found["y"])} if gaps else found

    def train_more(model, key, share, which, part):
        """Continue with emulated pairs; the model so far is the first candidate for the best weights."""
        which = f"{which}, emulated pairs"
        return train_one(model, further_settings(training), key, share, which, part, pairs=emulated_pairs())

    emulate = False
    if emulating and not interrupted and (config.emulate or overfitted(result.history)):
        share, key = 1 / (2 * config.ensemble - 1), jax.random.fold_in(keys[5], config.ensemble)
        try:
            more, interrupted = until_interrupted(partial(train_more, result.model, key, share, "", "emulated"))
        except TrainingError as error:
            note(f"emulated pairs were not used: {error}", show_progress)
            more = None
        reached.append(stages - 1)
        emulate = more is not None and more.loss < result.loss
        result = more if emulate else result
    went = result.record
    members = []
    for i in range(1, 1 if interrupted else config.ensemble):
        model_key, fit_key = keys_of(jax.random.fold_in(keys[5], i), 2)
        share, which = 1 / (config.ensemble - i), f", {i + 1} of an ensemble of {config.ensemble}"

        def train_member(key=fit_key, model_key=model_key, share=share, which=which, i=i):
            first = share / 2 if emulate else share
            member = train_one(started(model_key), training, key, first, which, f"member-{i + 1}")
            if not emulate:
                return member
            return train_more(member.model, key, share / (2 - share), which, f"member-{i + 1}-emulated")

        member, interrupted = until_interrupted(train_member)
        members += [member.model] if member is not None and member.steps else []
        if interrupted:
            break
    if interrupted and stages > 1:
        went = went.model_copy(update={"stopped": Stopped.INTERRUPTED, "part": (reached[-1] + 1, stages)})
    room = _NUMBERS // (held_out["x"].shape[1] + held_noisy.shape[1])
    calibrating = min(len(held_noisy), max(_KEPT, min(_CALIBRATING, room)))
    Flagging(calibrating, config.alpha, "pairs").warn()
    posterior = Posterior(
        model=result.model,
        prior=prior,
        held_out={"x": held_out["x"][:calibrating], "y": held_noisy[:calibrating]},
        frame=frame,
        reference={"x": train["x"][:_KEPT], "y": noisy[:_KEPT]},
        noise=tuple(float(value) for value in user_noise),
        history=result.history,
        record=Record[InvertConfig](
            application="invert",
            config=config,
            used=used.model_copy(update={"train": training, "emulate": emulate if emulating else config.emulate}),
            data=DataRecord(
                kind="pairs",
                rows=len(x),
                source=described(pairs) if pairs is not None else task.name or described(simulator),
                names=prior.names,
                y_names=y_names,
                fingerprint=pairs_fingerprint(data, task),
                left_out=data.failed,
                reason=data.reason if data.failed else "",
                problem=task.name or None,
                prior_estimated=task.estimated,
                exact=sharp,
            ),
            training=went,
            notes=tuple(filter(None, (tails, added, unlike))),
        ),
        members=tuple(members),
        forward=task.forward_without_noise(data),
        simulator=task.simulator,
        log_likelihood=log_likelihood,
    )
    return finish(lambda: posterior, interrupted)


def _used(config: InvertConfig, task: Task) -> InvertConfig:
    """These settings, with open fields set to the defaults of the model.

    Raises:
        InputError: for a setting without effect.
    """
    noisy = "with" if np.any(task.noise) else "without"
    chosen = {
        "data": "pairs" if task.pairs else "simulator",
        "model": "conditional" if config.form == "conditional" else f"partitioned {noisy} noise",
    }
    require_applicable(config, TASK, chosen)
    defaults = {"num_simulations": 10_000, "scale": 0.02, "features": 64}
    own = {name: value for name, value in defaults.items() if chosen[TASK[name][0]] in TASK[name][1]}
    return config.completed(**own)


def _candidates(training: Training, rows: int) -> list[Training]:
    """Training settings by the number of pairs; among several candidates, held-out pairs choose.

    With few pairs and many parameters, strong weight decay towards the linear-Gaussian start helps; for posteriors with
    fine structure it hurts. There is only one candidate if steps, epochs or weight decay are set, or if no pairs are
    held out.
    """
    few, asked_for = rows <= _FEW, (training.weight_decay, training.steps, training.epochs)
    # half the steps at twice the rate reach the same held-out density: two moons, gaussian_linear
    steps = int(np.clip((20 if few else 40) * rows**0.5, 500, 20_000))
    training = training.completed(
        steps=steps, batch_size=256, learning_rate=4e-3 if few else 1e-3, patience=15
    ).with_defaults()
    if not few or any(value is not None for value in asked_for):
        return [training]
    pulls = (0.0, 1.0, 5.0)
    if training.validation == 0:
        return [training.model_copy(update={"weight_decay": 1.0})]
    return [training.model_copy(update={"weight_decay": pull}) for pull in pulls]


def _why_not_emulated(config, task, data, noise, pairs, held_out, unlike) -> str:
    """Why an emulator cannot help; "" if it can."""
    if task.stored is not None:
        return "pairs on disk"
    x, y = pairs["x"], pairs["y"]
    reasons = {
        "form=partitioned": config.form != "conditional",
        "data without noise of the simulator": data.exact or bool(np.any(noise)),
        "parameters that are no draws of a given prior": task.estimated or bool(unlike),
        "failed simulations": data.failed > 0,
        "several processes": many_processes(),
        "no held-out pairs": not held_out,
        "missing numbers": config.embedding is not None and not np.all(y[:, y.shape[1] // 2 :]),
        "too many numbers": emulated_count(x, y) < 2 * len(x),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _emulating(config, candidates, why_not) -> bool:
    """Whether an emulator may be trained: if it was asked for, or if the length of training is open for few pairs.

    Raises:
        InputError: it was asked for where it cannot help.
    """
    if config.emulate and why_not:
        raise InputError(
            f"got emulate=True with {why_not}; expected pairs of a noisy simulator, in memory, and their prior; try "
            "leaving emulate out"
        )
    is_open = len(candidates) > 1 and config.train.minutes is None
    return not why_not and (is_open if config.emulate is None else config.emulate)


class _Converted:
    """Rows on disk in the units of the model, converted as they are read."""

    def __init__(self, rows, frame, dtype):
        self.rows, self.frame, self.dtype = rows, frame, dtype
        self.shape = (len(rows), len(frame.kept))

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        found = self.rows[rows]
        converted = self.frame.to_model(found.reshape(-1, found.shape[-1]))
        return converted.reshape(*found.shape[:-1], -1).astype(self.dtype)


def _simulated(task, theta, key, executor, kept: Part, show_progress, gaps) -> Simulations:
    with progress("simulating", show_progress) as report:
        return simulate(
            task.simulator,
            theta,
            key=key,
            executor=executor,
            on_progress=lambda done, total: report(done / total, f"{done:,} of {total:,}"),
            kept=kept,
            gaps=gaps,
        )
