"""Application 1, distribution mapping: a table on the left, N(0, I) on the right."""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife._frame import Frame, LocalSpread, heavy_tails
from flowknife._interrupts import PARTIAL, finish, until_interrupted
from flowknife._progress import note
from flowknife._settings import Settings, asked, recorded, recovered
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_key, as_seed
from flowknife.architectures import coupling_flow
from flowknife.bijections import Affine, Chain, PrincipalRotation
from flowknife.data import load_table
from flowknife.diagnostics import (
    Check,
    Flagging,
    conformal_p_values,
    gaussian_losses,
    histogram_losses,
    kept_rows,
    ks_normal,
    reference_check,
)
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.laws import as_temperature, require_finite_draws
from flowknife.objectives import nll
from flowknife.storage import load_tree, read_history, read_run, write_run
from flowknife.train import MINIMUM_STEPS, Training, fit, missing_steps

_KEPT_ROWS = 5000  # training rows kept with the run, for figures
_ROWS_AT_ONCE = 16_384
_ROWS_PER_COLUMN = 10  # with fewer, the correlations of the columns are fitted in closed form
_AS_GOOD = 0.02  # nats per column that the model may be worse than simple references


class DensityConfig(Settings):
    """Settings of `density`; those that are None are chosen from the data."""

    seed: int = 0
    layers: int = pydantic.Field(8, ge=1, description="couplings")
    width: int = pydantic.Field(64, ge=1, description="hidden units of each coupling's network")
    depth: int = pydantic.Field(2, ge=1, description="hidden layers of each coupling's network")
    scalar: Literal["spline", "affine", "additive"] = "spline"
    mixing: Literal["lu", "orthogonal", "permute"] = "lu"
    smoothing: float | None = pydantic.Field(
        None,
        ge=0,
        description="noise on the training rows, in standard deviations; default 3.6/sqrt(rows), at most 0.1",
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="rows with a p-value below are flagged")
    train: Training = Training()


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
        held_out = frame.to_model(_values_of(calibration, table.names, drop_invalid))

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
    model = INN(
        [Block("x", rows.shape[1])], [Block("z", rows.shape[1])], Chain([*_start(train_rows, standardise), flow])
    )
    steps = int(np.clip(20 * len(train_rows) ** 0.5, 1000, 6000))
    training = training.completed(steps=steps, batch_size=512, learning_rate=4e-3, patience=15).with_defaults()
    smoothing = min(0.1, 3.6 / len(rows) ** 0.5) if config.smoothing is None else config.smoothing
    train = partial(
        fit,
        model,
        train_rows,
        training.model_copy(update={"validation": 0.0}),  # rows are held out above
        objective=_smoothed(smoothing, LocalSpread.of(train_rows, np.abs(standardise.scale.value))),
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

    The network would learn single rows before it learned how hundreds of columns depend on each other; from the shrunk
    Gaussian it has only to learn in what they differ from that.
    """
    columns = rows.shape[1]
    if columns == 1 or len(rows) >= _ROWS_PER_COLUMN * columns:
        return [standardise]
    return [standardise, PrincipalRotation(columns, back=True).fit(standardise.encode(rows)[0])]


def _smoothed(share, spread):
    """The negative log-likelihood of rows with Gaussian noise, whose standard deviation is a share of their spread."""

    def objective(model, batch, key):
        noise_key, key = jax.random.split(key)
        noise = share * spread(batch["x"]) * jax.random.normal(noise_key, batch["x"].shape)
        return nll(model, {"x": batch["x"] + noise}, key)

    return objective


@eqx.filter_jit
def _log_prob(model, x):
    return model.log_prob(x)


@eqx.filter_jit
def _sample(model, key, n, temperature):
    return model.sample(key, n, temperature=temperature)


@eqx.filter_jit
def _encode(model, x):
    return model.encode(x)["z"]


@eqx.filter_jit
def _decode(model, z):
    return model.decode(z)["x"]


@dataclass(frozen=True)
class Density:
    """A fitted density of the rows of a table.

    Attributes:
        model: the network, x <-> z, of rows in `frame`.
        names: column names.
        frame: origin and scale of each column, in its units.
        reference: training rows kept for figures, as the model takes them.
        held_out: calibration rows, as the model takes them, which had no part in training, not even in the choice of
            when to stop; none with `train.validation=0`.
        config: settings as they were asked.
        used: the same settings, with what the fit chose where they were open.
        history: columns of the training curve.
        facts: what is worth knowing about the run.
    """

    model: INN = field(repr=False)
    names: tuple[str, ...]
    frame: Frame = field(repr=False)
    reference: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    config: DensityConfig
    used: DensityConfig
    history: dict[str, list[float]] = field(repr=False)
    facts: dict[str, Any]

    application = "density"

    def sample(self, n: int, key: Key = None, temperature: float | int = 1.0) -> np.ndarray:
        """Draw `n` rows, shape (n, d), in the units of the table.

        Args:
            n: number of rows.
            key: int, JAX key or None.
            temperature: scale of the latents; below 1 the rows gather where the density is high.
        """
        if n < 1:
            raise InputError(f"got n={n}; expected at least 1 row")
        temperature = as_temperature(temperature)
        drawn = self.frame.from_model(_sample(self.model, as_key(key), n, jnp.asarray(temperature)))
        return require_finite_draws(drawn, temperature)

    def log_prob(self, x: Any) -> np.ndarray:
        """Log density of each row, in nats, shape (n,), -inf for a row that is impossible.

        Columns that are constant in training count for nothing, and any other value of them is impossible; so are
        values beyond single precision. A path or DataFrame is read like the training table.
        """
        values = self._values(x)
        return np.where(self.frame.possible(values), self._log_prob_of(self.frame.to_model(values)), -np.inf)

    def _log_prob_of(self, rows):
        """Log density, in the user's units, of rows as the model takes them."""
        parts = [np.asarray(_log_prob(self.model, part)) for part in _chunks(rows)]
        return np.concatenate([np.zeros(0, np.float32), *parts]) + self.frame.log_det

    def encode(self, x: Any) -> np.ndarray:
        """The latent of each row, standard normal for rows of the same distribution.

        Shape (n, k), k the number of columns that vary in training.
        """
        return self._encoded(self._to_model(x))

    def decode(self, z: Any) -> np.ndarray:
        """The row of each latent (n, k), shape (n, d); constant columns have their value."""
        return self.frame.from_model(_decode(self.model, jnp.asarray(z, jnp.float32)))

    def score(self, x: Any) -> dict[str, np.ndarray]:
        """How usual each row is: log density, split-conformal p-value and flag (p < alpha).

        Of new rows of the same distribution a share alpha is flagged, and no more. Without calibration rows there are
        no columns p_value and flag, and a `CalibrationWarning` says why; see `flagging`.
        """
        log_prob = self.log_prob(x)
        columns = self.flagging.columns(self._p_values(log_prob))
        return {"row": np.arange(len(log_prob)), "log_prob": log_prob, **columns}

    @property
    def flagging(self) -> Flagging:
        """How rows are flagged; its `note` says why nothing can be, where that is so."""
        return Flagging(len(self.held_out), self.config.alpha)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`nll`: mean negative log density of the held-out rows, in nats per row.

        Without held-out rows `training_nll`, the same of training rows.
        """
        log_prob = self._held_out_log_prob if self.flagging.rows else self._log_prob_of(self.reference)
        return self.flagging.named({"nll": float(-np.mean(log_prob))})

    @cached_property
    def _held_out_log_prob(self):
        return self._log_prob_of(self.held_out)

    def _p_values(self, log_prob):
        return conformal_p_values(-log_prob, -self._held_out_log_prob)

    def check(self, x: Any = None) -> list[Check]:
        """Whether the model can be trusted: each number with its limit, of the held-out rows or of `x`.

        The worst round trip of a row (of held-out and training rows), the law of the latents, the likelihood against
        that of a Gaussian and of histograms, the flags of `x`, and the steps of training. Where nothing can be flagged,
        one more check fails, and its `note` says what to do.

        Raises:
            InputError: without `x` and without held-out rows.
        """
        if x is None:
            self.flagging.require_held_out()
        rows = self.held_out if x is None else self._to_model(x)
        values = self._values(x) if x is not None else self.frame.from_model(np.concatenate([rows, self.reference]))
        z = self._encoded(rows)
        back = self.decode(self._encoded(self.frame.to_model(values)))
        # a Kolmogorov-Smirnov distance of 0.05 is visible in a histogram; below, sampling noise of few rows is allowed
        limit = 0.05 + 1.5 / np.sqrt(z.size)
        units = self.frame.log_det
        simple = {
            "a Gaussian": gaussian_losses(self.reference, rows) - units,
            "histograms": histogram_losses(self.reference, rows) - units,
        }
        return [
            Check.of_round_trip(values, back, self.names, self.frame.from_model(self.reference)),
            Check("distance of the latents from N(0, 1)", ks_normal(z), float(limit)),
            reference_check("nll in nats", -self._log_prob_of(rows), simple, _AS_GOOD * (1 + rows.shape[1])),
            *self.flagging.checks_of(None if x is None else self._p_values(self._log_prob_of(rows))),
            Check.of_steps(missing_steps(self.history), MINIMUM_STEPS),
        ]

    def _encoded(self, rows):
        return np.concatenate([np.asarray(_encode(self.model, part)) for part in _chunks(rows)])

    def save(self, folder: str | Path) -> Path:
        """Write a run directory; `flowknife.load` reads it."""
        record = {
            "application": self.application,
            **recorded(self.config, self.used),
            "metrics": self.metrics,
            "data": {"names": list(self.names)},
            "facts": self.facts,
        }
        tree = {
            "model": self.model,
            "frame": self.frame,
            "reference": self.reference,
            "held_out": self.held_out,
        }
        return write_run(folder, record, tree, self.history)

    @classmethod
    def load(cls, folder: str | Path) -> "Density":
        """Read a run directory that `save` wrote."""
        record, tree = read_run(folder), load_tree(Path(folder) / "model.safetensors")
        config, used = recovered(DensityConfig, record)
        return cls(
            model=tree["model"],
            names=tuple(record["data"]["names"]),
            frame=tree["frame"] if "frame" in tree else Frame(tree["origin"], np.ones(len(tree["origin"]))),
            reference=np.asarray(tree["reference"]),
            held_out=np.asarray(tree["held_out"]),
            config=config,
            used=used,
            history=read_history(folder),
            facts=record["facts"],
        )

    def report(self, folder: str | Path) -> Path:
        """Write the pictures and `report.html` into `folder`; return the page's path."""
        from flowknife.report import report_density

        return report_density(self, folder)

    def _to_model(self, x):
        return self.frame.to_model(self._values(x))

    def _values(self, x):
        return _values_of(x, self.names)


def _values_of(x, names, drop_invalid=False):
    """Rows of a table in the user's units, in the columns of training."""
    if _is_rows(x, len(names)):
        return np.asarray(x)
    return load_table(x, columns=names, drop_invalid=drop_invalid, min_rows=1).values


def _is_rows(x, columns):
    """Whether `x` is a plain matrix of numbers, which has no names and need not be finite."""
    plain = isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, np.ma.MaskedArray)
    return plain and x.dtype.kind in "fiub" and x.ndim == 2 and x.shape[1] == columns and len(x) > 0


def _chunks(rows):
    return [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
