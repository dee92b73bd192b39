"""The result of `flowknife.density`: a fitted density."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowknife._batches import ROWS_AT_ONCE, draw_batches, map_batches
from flowknife._frame import Frame
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, sizes_agree
from flowknife.apps._result import Result
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._given import read_given
from flowknife.data import load_table
from flowknife.data.tables import names_in
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


def ends(rows: np.ndarray, dim: int) -> dict[str, np.ndarray]:
    """Rows as blocks: x, and as y what is given, if anything is."""
    return {"x": rows[:, :dim], **({"y": rows[:, dim:]} if rows.shape[1] > dim else {})}


@eqx.filter_jit
def _log_prob(model, x, **given):
    return model.log_prob(x, **given)


@eqx.filter_jit
def _sample(model, key, n, temperature, given):
    return model.sample(key, () if given else n, temperature=temperature, **given)


@eqx.filter_jit
def _encode(model, x, **given):
    return model.encode(x, **given)["z"]


@eqx.filter_jit
def _decode(model, z, given):
    return model.decode(z, **given)["x"]


@dataclass(frozen=True, kw_only=True)
class Density(Result[DensityConfig]):
    """A fitted density of the rows of a table, or of some of its columns given the others.

    Where there are conditions, every method takes `given`: one row of them for all rows, or one for each; an array, a
    table, or a mapping of numbers by name. Of a table with all columns of training (a DataFrame or a file) `given` may
    be left out.

    Attributes:
        model: the network, x <-> z, of rows in `frame`.
        frame: origin and scale of each column, in its units.
        reference: training rows kept for figures, as the model takes them, the conditions last.
        held_out: calibration rows, as the model takes them, which had no part in training, not even in the choice of
            when to stop; none with `train.validation=0`.
        given_frame: origin and scale of each condition.
    """

    application: ClassVar[str] = "density"
    title: ClassVar[str] = "density"
    settings: ClassVar[type[Settings]] = DensityConfig
    kept: ClassVar[tuple[str, ...]] = ("frame", "given_frame", "reference", "held_out")

    frame: Frame = field(repr=False)
    reference: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    given_frame: Frame = field(default=Frame((), ()), repr=False)

    def sample(
        self, n: int, *, key: Key = None, temperature: float | int = 1.0, given: Any = None
    ) -> Float[np.ndarray, "n d"]:
        """Draw `n` rows, shape (n, d), in the units of the table.

        Args:
            n: number of rows.
            key: int, JAX key or None.
            temperature: scale of the latents; below 1 the rows gather where the density is high.
            given: the condition of all, or one for each, where there are conditions.
        """
        n = as_count(n, "row")
        temperature = as_temperature(temperature)
        scale, known = jnp.asarray(temperature), self._known(given, n)
        drawn = draw_batches(
            lambda k, size, part: _sample(self.model, k, size, scale, part), n, as_key(key), ROWS_AT_ONCE, known
        )
        return require_finite_draws(self.frame.from_model(drawn), temperature)

    def log_prob(self, x: Any, given: Any = None) -> Float[np.ndarray, " n"]:
        """Log density of each row (given its condition), in nats, shape (n,), -inf for a row that is impossible.

        Columns that are constant in training count for nothing, and any other value of them is impossible; so are
        values beyond single precision. A path or DataFrame is read like the training table.
        """
        return self._log_prob_at(self._values(x, given))

    def _log_prob_at(self, values):
        """Log density of rows in the user's units."""
        possible = self.frame.possible(values[:, : len(self.names)])
        return np.where(possible, self._log_prob_of(self.joint_frame.to_model(values)), -np.inf)

    def _log_prob_of(self, rows):
        """Log density, in the user's units, of rows as the model takes them."""
        blocks = ends(rows, self.frame.dim)
        (found,) = map_batches(lambda part: [_log_prob(self.model, **part)], blocks, ROWS_AT_ONCE)
        return found + self.frame.log_det

    def encode(self, x: Any, given: Any = None) -> Float[np.ndarray, "n k"]:
        """The latent of each row, standard normal for rows of the same distribution.

        Shape (n, k), k the number of columns that vary in training.
        """
        return self._encoded(self._to_model(x, given))

    def decode(self, z: Any, given: Any = None) -> Float[np.ndarray, "n d"]:
        """The row of each latent (n, k), shape (n, d); constant columns have their value."""
        z = jnp.asarray(z, jnp.float32)
        return self.frame.from_model(_decode(self.model, z, self._known(given, len(z))))

    def score(self, x: Any, given: Any = None) -> Scores:
        """Log density of each row, and the anomaly score -log_prob with its p-value; see `Scores`.

        Without calibration rows there are no p-values, and a `CalibrationWarning` says why; see `flagging`.

        Raises:
            InputError: for rows of another width, or with missing or infinite values.
        """
        values = self._values(x, given)
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            raise InputError(
                f"got {len(bad)} rows with missing or infinite values (the first is row {bad[0]}, counted from 0); "
                "expected finite numbers; try leaving such rows out"
            )
        log_prob = self._log_prob_at(values)
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

    def _checks(self, x, given, /):
        """The worst round trip of a row, the latents, the likelihood against simple densities, and the flags of `x`."""
        frame, dim, columns = self.joint_frame, self.frame.dim, len(self.names)
        rows = self.held_out if x is None else self._to_model(x, given)
        every = np.concatenate([rows, self.reference]) if x is None else rows
        values = frame.from_model(every) if x is None else self._values(x, given)
        z = self._encoded(rows)
        known = {name: part for name, part in ends(every, dim).items() if name != "x"}
        back = self.frame.from_model(_decode(self.model, self._encoded(every), known))
        # a Kolmogorov-Smirnov distance of 0.05 is visible in a histogram; below, sampling noise of few rows is allowed
        limit = 0.05 + 1.5 / np.sqrt(z.size)
        units = self.frame.log_det
        simple = {
            # log p(x, y) - log p(y) of a joint Gaussian
            "a Gaussian": gaussian_losses(self.reference, rows)
            - gaussian_losses(self.reference[:, dim:], rows[:, dim:])
            - units,
            "histograms": histogram_losses(self.reference[:, :dim], rows[:, :dim]) - units,
        }
        return [
            Check.of_round_trip(values[:, :columns], back, self.names, frame.from_model(self.reference)[:, :columns]),
            Check("distance of the latents from N(0, 1)", ks_normal(z), float(limit)),
            reference_check("nll in nats", -self._log_prob_of(rows), simple, _AS_GOOD * (1 + dim)),
            *self.flagging.checks_of(None if x is None else self._p_values(self._log_prob_of(rows))),
        ]

    def _encoded(self, rows):
        blocks = ends(rows, self.frame.dim)
        return map_batches(lambda part: [_encode(self.model, **part)], blocks, ROWS_AT_ONCE)[0]

    def _fits(self):
        named = (len(self.names), len(self.given_names)) == (len(self.frame.origin), len(self.given_frame.origin))
        ends = self.model.partition
        sizes = [sum(block.size for block in end) for end in (ends.left, ends.cond)]
        seen = sizes == [self.frame.dim, self.given_frame.dim] and len(ends.left) == 1
        return named and seen and sizes_agree(("m d", self.reference), ("n d", self.held_out), d=sum(sizes))

    def _report(self, folder, others):
        from flowknife.apps.density._report import report_density

        self._without(others=others)
        return report_density(self, folder)

    def _explore(self, folder):
        from flowknife.apps.density._explore import explore_density

        return explore_density(self, folder)

    @property
    def joint_frame(self) -> Frame:
        """Origin and scale of the columns and the conditions, in this order."""
        return self.frame.join(self.given_frame)

    def conditions(self, given: Any, n: int) -> np.ndarray:
        """Conditions in their units, float64 (n, k), from one row for all or one for each.

        Raises:
            InputError: for conditions that are missing, of another length, or not those of training.
        """
        if (given is None) == bool(self.given_names):
            if given is not None:
                raise InputError(f"got given={given!r} for a model without conditions; expected none; try it without")
            values = ", ".join(f"{name!r}: 1.0" for name in self.given_names)
            raise InputError(
                f"got no condition; expected values of {', '.join(self.given_names)}; try given={{{values}}} "
                f"(command line: --given {','.join(f'{name}=1.0' for name in self.given_names)}), or a table with "
                "these columns"
            )
        return np.zeros((n, 0)) if given is None else read_given(given, self.given_names, n)

    def _known(self, given, n):
        """The conditions as the model takes them."""
        rows = self.given_frame.to_model(self.conditions(given, n))
        return {"y": rows} if self.given_names else {}

    def _to_model(self, x, given):
        return self.joint_frame.to_model(self._values(x, given))

    def _values(self, x, given=None):
        """Rows of a table in the user's units, in the columns of training, the conditions last."""
        if given is None and self.given_names and (isinstance(x, (str, Path)) or names_in(x)):
            return load_table(x, columns=(*self.names, *self.given_names), min_rows=1).values
        plain = _is_rows(x, len(self.names))
        values = np.asarray(x) if plain else load_table(x, columns=self.names, min_rows=1).values
        given = self.conditions(given, len(values))
        return np.concatenate([values, given], axis=1) if self.given_names else values


def _is_rows(x, columns):
    """Whether `x` is a plain matrix of numbers, which has no names and need not be finite."""
    plain = isinstance(x, (np.ndarray, jax.Array)) and not isinstance(x, np.ma.MaskedArray)
    return plain and x.dtype.kind in "fiub" and x.ndim == 2 and x.shape[1] == columns and len(x) > 0
