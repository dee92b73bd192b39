"""Application 1, distribution mapping: a table on the left, N(0, I) on the right."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pydantic

from flowknife._settings import validated
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_key
from flowknife.architectures import coupling_flow
from flowknife.bijections import Affine, Chain
from flowknife.data import load_table
from flowknife.diagnostics import Check, Flagging, conformal_p_values, ks_normal, round_trip_error
from flowknife.errors import InputError
from flowknife.inn import INN, Block
from flowknife.objectives import nll
from flowknife.storage import load_tree, read_history, read_run, write_run
from flowknife.train import Training, fit

_KEPT_ROWS = 5000  # training rows kept with the run, for figures
_ROWS_AT_ONCE = 16_384


class DensityConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Settings of `density`."""

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
    arXiv 1907.08982).

    Args:
        x: array (n, d), DataFrame, or path of a .csv, .parquet or .npy file.
        config: settings; default `DensityConfig()`.
        calibration: a table with the same columns that calibrates the p-values and has no other part in the fit;
            default rows of `x`, see `train.validation`.
        key: int, JAX key or None; None means `config.seed`.
        drop_invalid: drop rows with NaN or infinity instead of refusing them.
        show_progress: show a progress bar.
        **settings: fields of `DensityConfig` that replace those in `config`; `train` may be a dict.

    Returns:
        the fitted density.

    Raises:
        InputError: for a table that cannot be used.

    Warns:
        CalibrationWarning: without calibration rows, or with too few to flag anything.

    Example:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["moons"].sample(500, key=0)
        >>> flow = fk.density(x, layers=2, train={"steps": 20}, show_progress=False)
        >>> flow.sample(3, key=1).shape, flow.log_prob(x).shape
        ((3, 2), (500,))
    """
    base = {} if config is None else config.model_dump(exclude_unset=True)
    config = validated(DensityConfig, {**base, **settings})
    table = load_table(x, drop_invalid=drop_invalid)
    model_key, fit_key, split_key = jax.random.split(as_key(config.seed if key is None else key), 3)
    values = np.asarray(table.values)
    # far from zero, single precision would lose the variation: such columns are centred before it is used
    origin = values.mean(axis=0) if values.dtype == np.float64 else np.zeros(values.shape[1])
    rows = (values - origin).astype(np.float32)
    own = calibration is not None
    parts = split(len(rows), split_sizes(len(rows), config.train.validation, None if own else config.alpha), split_key)
    train_rows, stopping, held_out = (rows[part] for part in parts)
    if own:
        given = load_table(calibration, drop_invalid=drop_invalid, min_rows=1)
        held_out = _rows_of(given.values if _is_rows(calibration) else given.columns(table.names), table.names, origin)

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
    model = INN([Block("x", rows.shape[1])], [Block("z", rows.shape[1])], Chain([standardise, flow]))
    steps = int(np.clip(20 * len(train_rows) ** 0.5, 1000, 6000))
    training = config.train.or_else(steps=steps, batch_size=512, learning_rate=4e-3, patience=15)
    smoothing = min(0.1, 3.6 / len(rows) ** 0.5) if config.smoothing is None else config.smoothing
    result = fit(
        model,
        train_rows,
        training.model_copy(update={"validation": 0.0}),  # rows are held out above
        objective=_smoothed(smoothing * jnp.abs(standardise.scale.value)),
        held_out=stopping if len(stopping) else None,
        key=fit_key,
        label="density",
        show_progress=show_progress,
        throw=True,
    )
    return Density(
        model=result.model,
        names=table.names,
        origin=origin,
        reference=train_rows[:_KEPT_ROWS],
        held_out=held_out,
        config=config.model_copy(update={"train": training}),
        history=result.history,
        facts={
            "rows": len(rows),
            "dropped rows": table.dropped,
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "stopped because": result.message,
            **Flagging(len(held_out), config.alpha).facts(),
        },
    )


def _smoothed(scale):
    """The negative log-likelihood of rows with Gaussian noise of standard deviation `scale` per column."""

    def objective(model, batch, key):
        noise_key, key = jax.random.split(key)
        noise = scale * jax.random.normal(noise_key, batch["x"].shape)
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
        model: the network, x <-> z, of rows minus `origin`.
        names: column names.
        origin: what is subtracted from each column first, in its units.
        reference: training rows kept for figures.
        held_out: calibration rows, which had no part in training, not even in the choice of when to stop; none with
            `train.validation=0`.
        config: settings.
        history: columns of the training curve.
        facts: what is worth knowing about the run.
    """

    model: INN = field(repr=False)
    names: tuple[str, ...]
    origin: np.ndarray = field(repr=False)
    reference: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    config: DensityConfig
    history: dict[str, list[float]] = field(repr=False)
    facts: dict[str, Any]

    application = "density"

    def sample(self, n: int, key: Key = None, temperature: float = 1.0) -> np.ndarray:
        """Draw `n` rows, shape (n, d), in the units of the table.

        Args:
            n: number of rows.
            key: int, JAX key or None.
            temperature: scale of the latents; below 1 the rows gather where the density is high.
        """
        if n < 1:
            raise InputError(f"got n={n}; expected at least 1 row")
        return self._from_model(_sample(self.model, as_key(key), n, jnp.asarray(temperature)))

    def log_prob(self, x: Any) -> np.ndarray:
        """Log density of each row, in nats, shape (n,). A path or DataFrame is read like the training table."""
        rows = self._to_model(x)
        return self._log_prob_of(rows)

    def encode(self, x: Any) -> np.ndarray:
        """The latent of each row, shape (n, d), standard normal for rows of the same distribution."""
        return np.asarray(_encode(self.model, self._to_model(x)))

    def decode(self, z: Any) -> np.ndarray:
        """The row of each latent, shape (n, d)."""
        return self._from_model(_decode(self.model, jnp.asarray(z, jnp.float32)))

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

    def _log_prob_of(self, rows):
        return np.concatenate(
            [np.zeros(0, np.float32), *(np.asarray(_log_prob(self.model, part)) for part in _chunks(rows))]
        )

    def check(self, x: Any = None) -> list[Check]:
        """Round trip and latents of the held-out rows, or of `x`, against what they should be; flags of `x`.

        Where nothing can be flagged, one more check fails, and its `note` says what to do.

        Raises:
            InputError: without `x` and without held-out rows.
        """
        if x is None:
            self.flagging.require_held_out()
        rows = self.held_out if x is None else self._to_model(x)
        z = np.concatenate([np.asarray(_encode(self.model, part)) for part in _chunks(rows)])
        # a Kolmogorov-Smirnov distance of 0.05 is visible in a histogram; below, sampling noise of few rows is allowed
        limit = 0.05 + 1.5 / np.sqrt(z.size)
        return [
            Check("round trip, in standard deviations", round_trip_error(self.model.bijection, rows[:5000]), 1e-3),
            Check("distance of the latents from N(0, 1)", ks_normal(z), float(limit)),
            *self.flagging.checks_of(None if x is None else self._p_values(self._log_prob_of(rows))),
        ]

    def save(self, folder: str | Path) -> Path:
        """Write a run directory; `flowknife.load` reads it."""
        record = {
            "application": self.application,
            "config": self.config.model_dump(exclude_none=True),
            "metrics": self.metrics,
            "data": {"names": list(self.names)},
            "facts": self.facts,
        }
        # the origin needs double precision: text keeps it, whatever precision arrays are loaded in
        tree = {
            "model": self.model,
            "origin": tuple(float(value) for value in self.origin),
            "reference": self.reference,
            "held_out": self.held_out,
        }
        return write_run(folder, record, tree, self.history)

    @classmethod
    def load(cls, folder: str | Path) -> "Density":
        """Read a run directory that `save` wrote."""
        record, tree = read_run(folder), load_tree(Path(folder) / "model.safetensors")
        return cls(
            model=tree["model"],
            names=tuple(record["data"]["names"]),
            origin=np.asarray(tree["origin"], np.float64),
            reference=np.asarray(tree["reference"]),
            held_out=np.asarray(tree["held_out"]),
            config=DensityConfig.model_validate(record["config"]),
            history=read_history(folder),
            facts=record["facts"],
        )

    def report(self, folder: str | Path) -> Path:
        """Write the pictures and `report.html` into `folder`; return the page's path."""
        from flowknife.report import report_density

        return report_density(self, folder)

    def _to_model(self, x):
        return _rows_of(x, self.names, self.origin)

    def _from_model(self, rows):
        rows = np.asarray(rows)
        return rows + self.origin if np.any(self.origin) else rows


def _rows_of(x, names, origin):
    """Rows of a table as the model takes them."""
    values = np.asarray(x) if _is_rows(x) else load_table(x, min_rows=1).columns(names)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise InputError(
            f"got rows of shape {values.shape}; expected (n, {len(names)}), the columns {', '.join(names)}"
        )
    return (values - origin).astype(np.float32)


def _is_rows(x):
    """Whether `x` is a plain numeric matrix, which may have any number of rows and holds no names."""
    return isinstance(x, (np.ndarray, jax.Array)) and x.ndim == 2 and x.dtype.kind in "fiub"


def _chunks(rows):
    return [rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)]
