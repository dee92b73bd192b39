"""The result of `flowknife.density`: a fitted density."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowknife._batches import ROWS_AT_ONCE, draw_batches, map_batches
from flowknife._frame import Frame
from flowknife._types import Key, as_key
from flowknife.apps._result import Result
from flowknife.apps.density._config import DensityConfig
from flowknife.data import load_table
from flowknife.diagnostics import (
    Check,
    Flagging,
    Scores,
    conformal_p_values,
    gaussian_losses,
    histogram_losses,
    ks_normal,
    reference_check,
    scored,
)
from flowknife.errors import InputError
from flowknife.laws import as_temperature, require_finite_draws

_AS_GOOD = 0.02  # nats per column that the model may be worse than simple references


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


@dataclass(frozen=True, kw_only=True)
class Density(Result[DensityConfig]):
    """A fitted density of the rows of a table.

    Attributes:
        model: the network, x <-> z, of rows in `frame`.
        frame: origin and scale of each column, in its units.
        reference: training rows kept for figures, as the model takes them.
        held_out: calibration rows, as the model takes them, which had no part in training, not even in the choice of
            when to stop; none with `train.validation=0`.
    """

    application: ClassVar[str] = "density"
    settings: ClassVar[type] = DensityConfig
    kept: ClassVar[tuple[str, ...]] = ("frame", "reference", "held_out")

    frame: Frame = field(repr=False)
    reference: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)

    def sample(self, n: int, *, key: Key = None, temperature: float | int = 1.0) -> Float[np.ndarray, "n d"]:
        """Draw `n` rows, shape (n, d), in the units of the table.

        Args:
            n: number of rows.
            key: int, JAX key or None.
            temperature: scale of the latents; below 1 the rows gather where the density is high.
        """
        if n < 1:
            raise InputError(f"got n={n}; expected at least 1 row")
        temperature = as_temperature(temperature)
        scale = jnp.asarray(temperature)
        drawn = draw_batches(lambda k, size: _sample(self.model, k, size, scale), n, as_key(key), ROWS_AT_ONCE)
        return require_finite_draws(self.frame.from_model(drawn), temperature)

    def log_prob(self, x: Any) -> Float[np.ndarray, " n"]:
        """Log density of each row, in nats, shape (n,), -inf for a row that is impossible.

        Columns that are constant in training count for nothing, and any other value of them is impossible; so are
        values beyond single precision. A path or DataFrame is read like the training table.
        """
        values = self._values(x)
        return np.where(self.frame.possible(values), self._log_prob_of(self.frame.to_model(values)), -np.inf)

    def _log_prob_of(self, rows):
        """Log density, in the user's units, of rows as the model takes them."""
        (found,) = map_batches(lambda part: [_log_prob(self.model, part)], rows, ROWS_AT_ONCE)
        return found + self.frame.log_det

    def encode(self, x: Any) -> Float[np.ndarray, "n k"]:
        """The latent of each row, standard normal for rows of the same distribution.

        Shape (n, k), k the number of columns that vary in training.
        """
        return self._encoded(self._to_model(x))

    def decode(self, z: Any) -> Float[np.ndarray, "n d"]:
        """The row of each latent (n, k), shape (n, d); constant columns have their value."""
        return self.frame.from_model(_decode(self.model, jnp.asarray(z, jnp.float32)))

    def score(self, x: Any) -> Scores:
        """Log density of each row, and the anomaly score -log_prob with its p-value; see `Scores`.

        Without calibration rows there are no p-values, and a `CalibrationWarning` says why; see `flagging`.
        """
        log_prob = self.log_prob(x)
        columns = {"row": np.arange(len(log_prob)), "log_prob": log_prob, "score": -log_prob}
        return scored(columns, self.flagging, self._p_values(log_prob))

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

    def _checks(self, x, /):
        """The worst round trip of a row, the latents, the likelihood against simple densities, and the flags of `x`."""
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
        ]

    def _encoded(self, rows):
        return map_batches(lambda part: [_encode(self.model, part)], rows, ROWS_AT_ONCE)[0]

    def _fits(self):
        return len(self.names) == len(self.frame.origin)

    def _report(self, folder, others):
        from flowknife.apps.density._report import report_density

        self._without_others(others)
        return report_density(self, folder)

    def _to_model(self, x):
        return self.frame.to_model(self._values(x))

    def _values(self, x):
        """Rows of a table in the user's units, in the columns of training."""
        if _is_rows(x, len(self.names)):
            return np.asarray(x)
        return load_table(x, columns=self.names, min_rows=1).values


def _is_rows(x, columns):
    """Whether `x` is a plain matrix of numbers, which has no names and need not be finite."""
    plain = isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, np.ma.MaskedArray)
    return plain and x.dtype.kind in "fiub" and x.ndim == 2 and x.shape[1] == columns and len(x) > 0
