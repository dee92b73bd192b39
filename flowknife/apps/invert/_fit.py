"""Applications 5, 6 and 7, inverse problems: parameters on the left, data and a latent on the right.

`sample(n, y=observation)` draws parameters that explain an observation. Two forms of one model represent the same
density p(x | y): *conditional*, x <-> z with y fed to every coupling, and *partitioned*, x <-> [y, z], or (x, noise)
<-> [y, z] for data with noise, where the same draw of the noise is added to y.
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowknife import priors
from flowknife._cluster import many_processes
from flowknife._frame import LocalSpread, plain_frame
from flowknife._interrupts import finish
from flowknife._progress import note, progress
from flowknife._record import DataRecord, Record, described
from flowknife._settings import asked, require_applicable
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_generator, as_key, as_seed, keys_of
from flowknife.apps._track import tracked
from flowknife.apps.invert._config import TASK, InvertConfig
from flowknife.apps.invert._emulator import emulated_count
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
from flowknife.apps.invert._refine import require_likelihood
from flowknife.apps.invert._result import Posterior
from flowknife.apps.invert._task import Task, task_of
from flowknife.apps.invert._training import Trainings
from flowknife.data import Simulations, fingerprint, simulate, takes_key
from flowknife.data.sets import is_set
from flowknife.diagnostics import Flagging
from flowknife.errors import InputError
from flowknife.tracking import Track
from flowknife.train import Checkpoints, Part, StoredRows, about_fit, take

_KEPT = 1000  # training pairs kept with the run
_CALIBRATING, _NUMBERS = 4000, 1_000_000  # calibration pairs, at most, and numbers in those beyond the first 1000

_HELD_OUT, _FIRST = 20_000, 200_000  # for pairs on disk: held-out pairs, and pairs for the closed-form start

_START_ROWS = 20_000  # pairs to which the closed-form layers are fitted, at most

_SHARP = 0.01  # noise added to noise-free data, in standard deviations


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
    if log_likelihood is not None:
        require_likelihood(log_likelihood)
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

    trained = Trainings(
        config=used,
        pairs=whole,
        stopping=stopping if len(parts.stopping) else None,
        start=started,
        objective=objective_of(used, prior.inner, noise_at),
        prior=prior.inner,
        no_emulator=_why_not_emulated(config, task, data, noise, whole, len(parts.stopping), unlike),
        kept=kept,
        key=keys[5],
        show_progress=show_progress,
    ).run(keys[3])
    chosen = {"emulate": trained.emulate} if config.form == "conditional" else {}
    room = _NUMBERS // (held_out["x"].shape[1] + held_noisy.shape[1])
    calibrating = min(len(held_noisy), max(_KEPT, min(_CALIBRATING, room)))
    Flagging(calibrating, config.alpha, "pairs").warn()
    posterior = Posterior(
        model=trained.result.model,
        prior=prior,
        held_out={"x": held_out["x"][:calibrating], "y": held_noisy[:calibrating]},
        frame=frame,
        reference={"x": train["x"][:_KEPT], "y": noisy[:_KEPT]},
        noise=tuple(float(value) for value in user_noise),
        history=trained.result.history,
        record=Record[InvertConfig](
            application="invert",
            config=config,
            used=used.model_copy(update={"train": trained.settings, **chosen}),
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
                own_likelihood=log_likelihood is not None,
            ),
            training=trained.record,
            notes=tuple(filter(None, (tails, added, unlike))),
        ),
        members=trained.members,
        forward=task.forward_without_noise(data),
        simulator=task.simulator,
        log_likelihood=log_likelihood,
    )
    return finish(lambda: posterior, trained.interrupted)


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
