"""Fit a density to a table."""

from functools import partial
from typing import Any

import jax
import numpy as np

from flowknife._frame import Frame, LocalSpread, heavy_tails
from flowknife._interrupts import PARTIAL, finish, until_interrupted
from flowknife._progress import note
from flowknife._settings import asked
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_key, as_seed
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._result import Density
from flowknife.architectures import coupling_flow
from flowknife.bijections import Affine, Chain, PrincipalRotation
from flowknife.data import load_table
from flowknife.diagnostics import (
    Flagging,
    kept_rows,
)
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.objectives import Noisy, nll
from flowknife.train import fit

_KEPT_ROWS = 5000  # training rows kept with the run, for figures
_ROWS_PER_COLUMN = 10  # with fewer, the correlations of the columns are fitted in closed form


def density(
    x: Any,
    config: DensityConfig | None = None,
    *,
    calibration: Any = None,
    key: Key = None,
    drop_invalid: bool = False,
    show_progress: bool = True,
    **settings: Any,
) -> "Density":
    """Fit a density to a table.

    The rows are standardised inside the model and mapped to N(0, I) by rational-quadratic spline couplings. Training
    rows get a little Gaussian noise, which keeps a flexible density from following single rows (Rothfuss et al. 2019,
    arXiv 1907.08982). Columns that are constant stay outside of the network: they come back as they are.

    Args:
        x: array (n, d), DataFrame, or path of a .csv, .parquet or .npy file.
        config: settings; default `DensityConfig()`.
        calibration: a table with the same columns that calibrates the p-values and has no other part in the fit;
            default rows of `x`, see `train.validation`.
        key: int, JAX key or None; None means `config.seed`.
        drop_invalid: drop rows with NaN or infinity instead of refusing them.
        show_progress: show a progress bar.
        **settings: fields of `DensityConfig`, merged over those in `config`; `train` may be a dict.

    Returns:
        the fitted density.

    Raises:
        InputError: for a table that cannot be used.
        Interrupted: by Ctrl-C during training; its `result` is the density with the best weights so far.

    Warns:
        CalibrationWarning: without calibration rows, or with too few to flag anything.

    Example:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["moons"].sample(500, key=0)
        >>> flow = fk.density(x, layers=2, train={"steps": 20}, show_progress=False)
        >>> flow.sample(3, key=1).shape, flow.log_prob(x).shape
        ((3, 2), (500,))
    """
    config = asked(DensityConfig, config, settings, as_seed(key))
    table = load_table(x, drop_invalid=drop_invalid)
    model_key, fit_key, split_key = jax.random.split(as_key(config.seed if key is None else key), 3)
    frame = Frame.of(table.values, drop_constant=True)
    if not frame.dim:
        raise InputError(
            f"got a table in which no column varies ({len(table.values)} equal rows); expected at least one that does"
        )
    tails = heavy_tails(table.values, table.names)
    note(tails, show_progress)
    rows = frame.to_model(table.values)
    own = calibration is not None
    training = config.train
    parts = split(len(rows), split_sizes(len(rows), training.validation, None if own else config.alpha), split_key)
    train_rows, stopping, held_out = (rows[part] for part in parts)
    if own:
        held_out = load_table(calibration, columns=table.names, drop_invalid=drop_invalid, min_rows=1)
        held_out = frame.to_model(held_out.values)

    standardise = Affine.standardise(train_rows)
    flow = coupling_flow(
        rows.shape[1],
        layers=config.layers,
        width=config.width,
        depth=config.depth,
        scalar=config.scalar,
        mixing=config.mixing,
        key=model_key,
    )
    bijection = Chain([*_start(train_rows, standardise), flow])
    model = INN([Block("x", rows.shape[1])], [Block("z", rows.shape[1])], bijection)
    steps = int(np.clip(20 * len(train_rows) ** 0.5, 1000, 6000))
    training = training.completed(steps=steps, batch_size=512, learning_rate=4e-3, patience=15).with_defaults()
    smoothing = min(0.1, 3.6 / len(rows) ** 0.5) if config.smoothing is None else config.smoothing
    train = partial(
        fit,
        model,
        train_rows,
        training.model_copy(update={"validation": 0.0}),  # rows are held out above
        objective=Noisy(nll, "x", LocalSpread.of(train_rows, np.abs(standardise.scale.value)).scaled(smoothing)),
        held_out=stopping if len(stopping) else None,
        key=fit_key,
        label="density",
        show_progress=show_progress,
        throw=True,
    )
    result, interrupted = until_interrupted(train)
    if interrupted and not result.steps:
        raise KeyboardInterrupt
    fitted = Density(
        model=result.model,
        names=table.names,
        frame=frame,
        reference=train_rows[kept_rows(train_rows, _KEPT_ROWS)],
        held_out=held_out,
        config=config,
        used=config.model_copy(update={"smoothing": smoothing, "train": training}),
        history=result.history,
        facts={
            **({PARTIAL: result.message} if interrupted else {}),
            "rows": len(rows),
            "dropped rows": table.dropped,
            **({"heavy tails": tails} if tails else {}),
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "stopped because": result.message,
            **Flagging(len(held_out), config.alpha).facts(),
        },
    )
    return finish(lambda: fitted, interrupted)


def _start(rows, standardise):
    """What is fitted in closed form before training: the units and, with few rows for each column, the correlations.

    The network would learn single rows before it learned how hundreds of columns depend on each other. From the shrunk
    Gaussian it only has to learn in what they differ from that.
    """
    columns = rows.shape[1]
    if columns == 1 or len(rows) >= _ROWS_PER_COLUMN * columns:
        return [standardise]
    return [standardise, PrincipalRotation(columns, back=True).fit(standardise.encode(rows)[0])]
