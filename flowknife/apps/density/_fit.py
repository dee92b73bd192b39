"""Fit a density to a table."""

import os
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowknife._frame import Frame, LocalSpread, heavy_tails
from flowknife._interrupts import finish, until_interrupted
from flowknife._progress import note
from flowknife._record import DataRecord, Record, described
from flowknife._settings import asked
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_generator, as_key, as_seed, built, keys_of
from flowknife.apps._tables import continuous, described_columns, discrete_columns, filled, mixed_of
from flowknife.apps._track import tracked
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._given import read_table
from flowknife.apps.density._result import Density, ends
from flowknife.architectures import coupling_flow, flow_given
from flowknife.bijections import Affine, Chain, PrincipalRotation
from flowknife.data import fingerprint, load_table
from flowknife.diagnostics import kept_rows
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.objectives import Dequantised, Noisy, nll
from flowknife.tracking import Track
from flowknife.train import Checkpoints, about_fit, fit

_KEPT_ROWS = 5000  # training rows kept with the run, for figures
_START_ROWS = 20_000  # rows to which the closed-form layers are fitted, at most
_FEW = 50_000  # rows; beyond this, weight decay does not improve a conditional density
_WIDE = 200  # columns; beyond this, full matrices between the couplings are slow and inaccurate


@tracked
def density(
    x: Any,
    config: DensityConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    given: Any = None,
    calibration: Any = None,
    key: Key = None,
    drop_invalid: bool = False,
    show_progress: bool = True,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    track: Track = None,  # in effect by `tracked`
    **settings: Any,
) -> "Density":
    """Fit a density to a table.

    The rows are standardised inside the model and mapped to N(0, I) by rational-quadratic spline couplings. Training
    rows get a little Gaussian noise, which keeps a flexible density from concentrating on single rows (Rothfuss et al.
    2019, arXiv 1907.08982). Constant columns bypass the network and keep their value in samples.

    Text, booleans, dates and missing values are refused, unless the settings `categories`, `dates` and `missing`
    include them in the model. Samples then have them too, and are returned as a DataFrame.

    Args:
        x: array (n, d), DataFrame, or path of a .csv, .parquet or .npy file.
        config: settings; default `DensityConfig()`.
        names: names for the columns of an array (with its conditions, if `given` names them), or the columns of a table
            to use; default all.
        given: conditions, to learn p(x | given): names of columns of `x`, or a separate array (n, k) or (n,). Training
            starts at the linear-Gaussian solution.
        calibration: a table with the same columns (conditions last, if columns have no names), used only to calibrate
            the p-values; default: held-out rows of `x`, see `train.validation`.
        key: int, JAX key or None; None means `config.seed`.
        drop_invalid: drop rows with NaN or infinity instead of refusing them.
        show_progress: show a progress bar.
        checkpoints: a folder for checkpoints: a new one or, with `resume`, that of the same fit.
        resume: continue from the checkpoints, if there are any.
        track: tracker of the fit, "tensorboard:DIR", "mlflow:URI" or a `tracking.Tracker`; or a list of trackers.
        **settings: fields of `DensityConfig`, merged over those in `config`; `train` may be a dict.

    Returns:
        the fitted density.

    Raises:
        InputError: for a table that cannot be used.
        StorageError: `checkpoints` belongs to another fit, or to this one while `resume` is False.
        Interrupted: on Ctrl-C during training; its `result` is the density with the best weights so far.

    Warns:
        CalibrationWarning: without calibration rows, or with too few to flag anything.

    Examples:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["moons"].sample(500, key=0)
        >>> flow = fk.density(x, layers=2, train={"steps": 20}, show_progress=False)
        >>> flow.sample(3, key=1).shape, flow.log_prob(x).shape
        ((3, 2), (500,))
        >>> given = fk.density(x[:, 1], given=x[:, 0], layers=2, train={"steps": 20}, show_progress=False)
        >>> given.sample(3, key=1, given=0.5).shape, given.log_prob(x[:, 1], given=x[:, 0]).shape
        ((3, 1), (500,))
    """
    began = time.monotonic()
    config = asked(DensityConfig, config, settings, as_seed(key))
    table, given_names, encoding = read_table(x, given, names, config, drop_invalid, calibration)
    names = table.names[: len(table.names) - len(given_names)]
    key = as_key(config.seed if key is None else key)
    data = fingerprint(table.values)
    own = {"names": table.names, "given": len(given_names), "data": data}
    if calibration is not None:
        if encoding is None:
            found = load_table(calibration, columns=table.names, drop_invalid=drop_invalid, min_rows=1)
        else:
            found = encoding.read(calibration, given_names, drop_invalid=drop_invalid)
        calibration = found.values
        own["calibration"] = fingerprint(calibration)
    about = about_fit("density", config, **own)
    kept = Checkpoints(checkpoints, about, resume=resume, began=began, show=show_progress)
    model_key, fit_key, split_key = keys_of(key, 3)
    frame = Frame.of(table.values[:, : len(names)], drop_constant=True)
    discrete = discrete_columns(encoding)
    frame = frame.plain_at(discrete)
    conditions = table.values[:, len(names) :]
    given_frame = Frame.of(conditions, drop_constant=True) if given_names else Frame((), ())
    if given_frame.constant:
        name = given_names[given_frame.constant[0]]
        raise InputError(f"got the condition {name}, which never varies; expected one that does; try without it")
    if not frame.dim:
        raise InputError(
            f"got a table in which no column varies ({len(table.values)} equal rows); expected at least one that does"
        )
    tails = heavy_tails(*continuous(table, encoding))
    note(tails, show_progress)
    joint = frame.join(given_frame)
    rows = joint.to_model(table.values)
    training = config.train
    alpha = config.alpha if calibration is None else None
    parts = split(len(rows), split_sizes(len(rows), training.validation, alpha), split_key)
    train_rows, stopping, held_out = (rows[part] for part in parts)
    impossible = None
    if calibration is not None:
        possible = frame.possible(calibration[:, : len(names)])
        if not possible.any():
            raise InputError(
                "got calibration rows that all have another value of a column that is constant in training; expected "
                "rows of the same distribution"
            )
        held_out, impossible = joint.to_model(calibration[possible]), calibration[~possible]

    dim = frame.dim
    train_x, train_y = np.split(train_rows, [dim], axis=1)
    mixed = mixed_of(train_x, frame, encoding)
    train_x = filled(train_x, mixed)
    standardise = Affine.standardise(train_x)
    spread = np.abs(np.asarray(standardise.scale.value))
    smoothing = min(0.1, 3.6 / len(rows) ** 0.5)
    used = config.completed(mixing="lu" if dim <= _WIDE else "permute", smoothing=smoothing)
    couplings = {name: getattr(used, name) for name in ("layers", "width", "depth", "scalar", "mixing")}
    start = [] if given_names else _start(train_x, standardise)

    def started(model_key):
        if not given_names:
            flow = built(coupling_flow, dim, key=model_key, **couplings)
            return INN([Block("x", dim)], [Block("z", dim)], Chain([*start, flow]))
        flow, cond = flow_given(dim, train_y, key=model_key, **couplings), [Block("y", len(given_names))]
        model = INN([Block("x", dim)], [Block("z", dim)], Chain([standardise, flow]), cond)
        return model.initialised(train_x[:_START_ROWS], y=train_y[:_START_ROWS])

    if given_names:
        spread = _unexplained(train_x, train_y)
    training = training.completed(
        steps=int(np.clip(20 * len(train_rows) ** 0.5, 300, 6000)),
        batch_size=_batch_size(dim),
        learning_rate=4e-3,
        patience=8,
        weight_decay=float(len(rows) <= _FEW) if given_names else _weight_decay(len(train_rows) / dim),
    ).with_defaults()
    spread = np.where(np.isin(frame.kept, discrete), 0.0, spread)
    noise = LocalSpread.of(train_x, spread).scaled(used.smoothing)
    objective = Noisy(nll, "x", noise)
    if mixed is None:  # fixed noise for discrete columns
        clean = stopping[:, :dim]
        drawn = as_generator(fit_key).normal(size=clean.shape).astype(clean.dtype)
        stopping = np.concatenate([clean + np.asarray(noise(clean)) * drawn, stopping[:, dim:]], axis=1)

    def train(i, model_key, key):
        which = f", {i + 1} of an ensemble of {config.ensemble}" if config.ensemble > 1 else ""
        left = training.left(kept.began, share=1 / (config.ensemble - i))
        return fit(
            started(model_key),
            ends(train_rows, dim),
            left.model_copy(update={"validation": 0.0}),  # rows are held out above
            objective=objective if mixed is None else Dequantised(objective, "x", mixed),
            # rows that already have their noise; a fitted density uses the same program
            held_out_objective=nll if mixed is None else None,
            held_out=ends(stopping, dim) if len(stopping) else None,
            key=key,
            label=f"density{which}",
            show_progress=show_progress,
            throw=True,
            checkpoints=kept.part(f"member-{i + 1}" if i else "training"),
        )

    result, interrupted = until_interrupted(partial(train, 0, model_key, fit_key))
    members = []
    for i in range(1, 1 if interrupted else config.ensemble):
        member, interrupted = until_interrupted(partial(train, i, *keys_of(jax.random.fold_in(fit_key, i), 2)))
        members += [member.model] if member.steps else []
        if interrupted:
            break
    fitted = Density(
        model=result.model,
        members=tuple(members),
        frame=frame,
        given_frame=given_frame,
        mixed=mixed,
        reference=train_rows[kept_rows(train_rows, _KEPT_ROWS)],
        held_out=held_out,
        impossible=impossible,
        history=result.history,
        record=Record[DensityConfig](
            application="density",
            config=config,
            used=used.model_copy(update={"train": training}),
            data=DataRecord(
                kind="rows",
                rows=len(rows),
                source=described(x),
                names=encoding.names if encoding else names,
                given_names=given_names,
                **described_columns(encoding),
                fingerprint=data,
                left_out=table.dropped,
            ),
            training=result.record,
            notes=(tails,) if tails else (),
        ),
    )
    fitted.flagging.warn()
    return finish(lambda: fitted, interrupted)


def _start(rows, standardise):
    """The closed-form start: standardisation and whitening of the columns.

    Without it, the network would memorise single rows before it learned the correlations of many columns. Starting from
    the shrunk Gaussian, it only has to learn the deviations from it. With few rows, that Gaussian is already the best
    model.
    """
    if rows.shape[1] == 1:
        return [standardise]
    return [standardise, _whitening(standardise, rows[:_START_ROWS])]


@eqx.filter_jit
def _whitening(standardise, rows):
    return PrincipalRotation(rows.shape[1], back=True).fit(standardise.encode(rows)[0])


def _weight_decay(rows_per_column):
    """Weight decay towards the Gaussian start for small tables; large tables need none.

    On tables of 178 x 13, 569 x 30, 1,000 x 20, 4,000 x 8, 2,000 x 2 and 8,000 x 2, the held-out likelihood was best at
    a decay of 20, 10 to 20, 10, 5, 1 to 2 and 0.
    """
    decay = min(600 / rows_per_column, 20.0)
    return round(decay, 1) if decay >= 0.5 else 0.0


def _batch_size(columns):
    """Rows per step: fewer for wide tables, whose steps take longer."""
    return int(np.clip(2 ** round(np.log2(60_000 / columns)), 64, 512))


def _unexplained(x, y):
    """The standard deviation of each column around its linear regression on the conditions."""
    centred, y = x - x.mean(axis=0), np.asarray(Affine.standardise(y).encode(y)[0])
    residual = centred - y @ np.linalg.lstsq(y, centred, rcond=None)[0]
    return np.maximum(residual.std(axis=0), 1e-4 * x.std(axis=0))
