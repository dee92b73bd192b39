"""The result of `flowknife.density`: a fitted density."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from flowknife._batches import ROWS_AT_ONCE, draw_batches, map_batches
from flowknife._frame import Frame
from flowknife._mixed import POINTS, Mixed
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, sizes_agree
from flowknife.apps._result import Result
from flowknife.apps._tables import restored
from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._explain import Explanation, explained
from flowknife.apps.density._given import read_given
from flowknife.data import load_table
from flowknife.data.encoding import Coded
from flowknife.data.tables import names_in
from flowknife.diagnostics import (
    Check,
    Flagging,
    Region,
    Scores,
    conformal_p_values,
    conformal_quantile,
    gaussian_losses,
    histogram_losses,
    ks_normal,
    reference_check,
    scored,
)
from flowknife.errors import InputError
from flowknife.export import numpyro_flow
from flowknife.inn import INN
from flowknife.laws import as_temperature, require_finite_draws
from flowknife.objectives import log_probs

_AS_GOOD = 0.02  # nats per column by which the model may be worse than simple reference models

_SHOWN, _SHOWN_COLUMNS = 1000, 3  # rows and columns of the figure
_APART = 0.5  # allowed median disagreement of an ensemble, in nats


def ends(rows: np.ndarray, dim: int) -> dict[str, np.ndarray]:
    """Rows as blocks: x, and the conditions as y, if there are any."""
    return {"x": rows[:, :dim], **({"y": rows[:, dim:]} if rows.shape[1] > dim else {})}


@eqx.filter_jit
def _mixed_log_prob(model, mixed, points, x, **given):
    return mixed.averaged(lambda filled: model.log_prob(filled, **given), x, points)


@eqx.filter_jit
def _sample(model, key, n, temperature, given):
    return model.sample(key, () if given else n, temperature=temperature, **given)


@eqx.filter_jit
def _encode(model, x, **given):
    return model.encode(x, **given)["z"]


@eqx.filter_jit
def _decode(model, z, given):
    return model.decode(z, **given)["x"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Density(Result[DensityConfig]):
    """A fitted density of the rows of a table, possibly conditional on some of its columns.

    With conditions, every method takes `given`: one row of conditions for all rows, or one for each; an array, a table,
    or a mapping of numbers by name. For a table with all columns of training (a DataFrame or a file) `given` may be
    left out.

    Attributes:
        model: the network, x <-> z, of rows in `frame`.
        frame: origin and scale of each column, in its units.
        reference: training rows kept for figures, in the units of the model, the conditions last.
        held_out: calibration rows, in the units of the model, used neither for training nor for early stopping; none
            with `train.validation=0`.
        given_frame: origin and scale of each condition.
        impossible: further calibration rows, in their units, with another value of a column that is constant in
            training; the model has no density for them.
        mixed: the discrete columns of rows of the model; None if there are none.
        members: the other models of an ensemble, trained from other seeds; the density is the average of all. `encode`
            and `decode` use `model` alone.

    For a table with categories, dates or missing values, `sample` and `decode` return a DataFrame with such columns.
    `log_prob` is then the log of the probability of the discrete columns times the density of the continuous ones, per
    day for dates. It is a lower bound on average, estimated with 64 fixed draws; see `docs/tables.md`.
    """

    application: ClassVar[str] = "density"
    title: ClassVar[str] = "density"
    settings: ClassVar[type[Settings]] = DensityConfig
    kept: ClassVar[tuple[str, ...]] = (
        "frame",
        "given_frame",
        "reference",
        "held_out",
        "impossible",
        "mixed",
        "members",
    )
    later: ClassVar[Mapping[str, Any]] = {"members": (), "impossible": None}
    parts: ClassVar[Mapping[str, Any]] = {"mixed": Mixed}

    frame: Frame = field(repr=False)
    reference: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    impossible: np.ndarray | None = field(default=None, repr=False)
    given_frame: Frame = field(default=Frame((), ()), repr=False)
    mixed: Mixed | None = field(default=None, repr=False)
    members: tuple[INN, ...] = field(default=(), repr=False)

    @property
    def models(self) -> tuple[INN, ...]:
        """The models of the ensemble; the density is their average."""
        return (self.model, *self.members)

    def sample(self, n: int, *, key: Key = None, temperature: float | int = 1.0, given: Any = None) -> Any:
        """Draw `n` rows, shape (n, d), in the units of the table; a DataFrame if it has non-numeric columns.

        Args:
            n: number of rows.
            key: int, JAX key or None.
            temperature: scale of the latents; below 1, samples concentrate where the density is high.
            given: the condition of all rows, or one for each, if the model has conditions.
        """
        return self._as_table(self.sample_numbers(n, key=key, temperature=temperature, given=given))

    def sample_numbers(
        self, n: int, *, key: Key = None, temperature: float | int = 1.0, given: Any = None
    ) -> Float[np.ndarray, "n d"]:
        """Like `sample`, but as numbers in `columns`: categories as their index, dates as days."""
        n = as_count(n, "row")
        temperature = as_temperature(temperature)
        scale, known = jnp.asarray(temperature), self._known(given, n)
        if not self.members:
            drawn = self._drawn(self.model, as_key(key), n, scale, known)
        else:
            which, drawn = np.arange(n) % len(self.models), np.empty((n, self.frame.dim), np.float32)
            keys = jax.random.split(as_key(key), len(self.models))
            for i, (model, own) in enumerate(zip(self.models[:n], keys, strict=False)):
                part = {name: rows[which == i] for name, rows in known.items()}
                drawn[which == i] = self._drawn(model, own, int(np.sum(which == i)), scale, part)
        return require_finite_draws(self.frame.from_model(restored(drawn, self.mixed)), temperature)

    def _drawn(self, model, key, n, scale, known):
        return draw_batches(lambda k, size, part: _sample(model, k, size, scale, part), n, key, ROWS_AT_ONCE, known)

    def _filled(self, rows):
        """Rows for the network, with discrete columns dequantised, and the term to add to their log densities."""
        if self.mixed is None:
            return rows, 0.0
        x, given = np.split(rows, [self.frame.dim], axis=1)
        filled, weight = self.mixed.at_random(x)
        return np.concatenate([filled, given], axis=1), weight

    def log_prob(self, x: Any, given: Any = None) -> Float[np.ndarray, " n"]:
        """Log density of each row (given its condition), in nats, shape (n,); -inf for impossible rows.

        Columns that are constant in training do not contribute; any other value of such a column is impossible, and so
        are values beyond single precision. A path or DataFrame is read like the training table.
        """
        return self._log_prob_at(self._values(x, given))

    def _log_prob_at(self, values):
        """Log density of rows in the user's units."""
        return self._where_possible(values, self._log_prob_of(self.joint_frame.to_model(values)))

    def _where_possible(self, values, log_prob):
        """Log densities of rows in the user's units; -inf for another value of a constant column."""
        return np.where(self.frame.possible(values[:, : len(self.columns)]), log_prob, -np.inf)

    def _log_prob_of(self, rows, draws=POINTS, most=ROWS_AT_ONCE):
        """Log density, in the user's units, of rows in the units of the model."""
        found = [self._log_prob_by(model, rows, draws, most) for model in self.models]
        return found[0] if len(found) == 1 else logsumexp(found, axis=0) - np.log(len(found))

    def _log_prob_by(self, model, rows, draws, most):
        blocks = ends(rows, self.frame.dim)
        if self.mixed is None:
            (found,) = map_batches(lambda part: [log_probs(model, part, as_key(0))], blocks, most)
            return found + self.frame.log_det
        mixed, points = self.mixed, jnp.asarray(self.mixed.points(draws))
        (found,) = map_batches(lambda part: [_mixed_log_prob(model, mixed, points, **part)], blocks, most)
        return np.where(mixed.known(rows), found + self._log_units(rows), -np.inf)

    def _log_units(self, rows):
        """log|d model / d value| of rows; missing numbers do not contribute."""
        gaps = self.mixed.gap_units(rows, self.frame.scale_kept) if self.mixed else 0.0
        return self.frame.log_det + gaps

    def disagreement(self, x: Any, given: Any = None) -> Float[np.ndarray, " n"]:
        """Standard deviation of the log densities of the ensemble members at each row, in nats.

        If it is large, another fit would give a different density. It is zero for a single model.
        """
        values = self._values(x, given)
        rows = self.joint_frame.to_model(values)
        found = np.stack([self._log_prob_by(model, rows, POINTS, ROWS_AT_ONCE) for model in self.models])
        return np.std(np.where(np.isfinite(found), found, np.nan), axis=0)

    def encode(self, x: Any, given: Any = None) -> Float[np.ndarray, "n k"]:
        """The latent of each row, standard normal for rows of the same distribution.

        Shape (n, k), k the number of columns that vary in training.
        """
        return self._encoded(self._filled(self._to_model(x, given))[0])

    def decode(self, z: Any, given: Any = None) -> Any:
        """The row of each latent (n, k): shape (n, d), or a DataFrame as from `sample`, including constant columns."""
        return self._as_table(self.decode_numbers(z, given))

    def decode_numbers(self, z: Any, given: Any = None) -> Float[np.ndarray, "n d"]:
        """Like `decode`, but as numbers in `columns`, see `sample_numbers`."""
        z = np.asarray(z, np.float32)
        parts = z, self._known(given, len(z))
        (rows,) = map_batches(lambda part: [_decode(self.model, *part)], parts, ROWS_AT_ONCE)
        return self.frame.from_model(restored(rows, self.mixed))

    def score(self, x: Any, given: Any = None, *, explain: bool = False) -> Scores:
        """Log density of each row, and the anomaly score -log_prob with its p-value; see `Scores`.

        Without calibration rows there are no p-values, and a `CalibrationWarning` gives the reason; see `flagging`.

        Args:
            x: rows, or a table.
            given: their conditions, if the model has conditions.
            explain: add the three columns that make a row most unusual, see `explain`: reason_1, its gain_1 and its
                most likely value likely_1, and so on up to reason_3.

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
        found = scored(columns, self.flagging, self._p_values(log_prob))
        return Scores({**found, **self._explained(values).reasons()}, found.note) if explain else found

    def explain(self, x: Any, given: Any = None) -> Explanation:
        """Which columns make each row unusual: the gain in log density if one column had its most likely value.

            gain_j = max_t log p(x_j = t, other columns) - log p(x) >= 0

        For a Gaussian the gain is half the squared distance of x_j from its mean given the other columns, in standard
        deviations. If either of two columns could be wrong, both have a gain. For numbers the maximum is searched on a
        grid of training values, refined around the best one; for categories over all values. A missing value is
        compared with the probability of not being missing. An impossible value has an infinite gain.

        Returns:
            the gains (n, d) in nats, and the most likely values.
        """
        return self._explained(self._values(x, given))

    def _explained(self, values):
        return explained(self, values, self._log_prob_of)

    def region(self, level: float = 0.9, given: Any = None) -> Region:
        """The region of high log density that contains a new row with probability `level`.

        The threshold comes from calibration rows (split conformal prediction), so the coverage is valid even for a
        poorly trained model, on average over new rows (and over their conditions).

        Args:
            level: the coverage.
            given: one row of conditions, if the model has conditions.

        Raises:
            InputError: without calibration rows.
        """
        self.flagging.require_held_out()
        bound = -conformal_quantile(-self._calibration_log_prob, level)
        return Region(
            level,
            bound,
            lambda x: self.log_prob(x, given=given),
            lambda n, key: self.sample(n, key=key, given=given),
        )

    def numpyro(self, given: Any = None) -> Any:
        """This density as a `numpyro.distributions.Distribution` of rows (d,): a prior, a likelihood or a guide.

        Args:
            given: one row of conditions, if the model has conditions.

        Raises:
            InputError: NumPyro is not installed, or the table has columns that never vary or are no numbers.
        """
        self._require_numbers("a NumPyro distribution")
        known = {name: rows[0] for name, rows in self._known(given, 1).items()}
        self._require_one_model("a NumPyro distribution")
        return numpyro_flow(self.model, self.frame, known)

    @property
    def flagging(self) -> Flagging:
        """How rows are flagged; if none can be flagged, its `note` gives the reason."""
        return Flagging(len(self.held_out) + len(self._impossible), self.config.alpha)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`nll`: mean negative log density of the held-out rows, in nats per row.

        Without held-out rows: `training_nll`, the same for training rows.
        """
        log_prob = self._held_out_log_prob if len(self.held_out) else self._log_prob_of(self.reference)
        return self.flagging.named({"nll": float(-np.mean(log_prob))})

    @cached_property
    def _held_out_log_prob(self):
        return self._log_prob_of(self.held_out)

    @cached_property
    def _calibration_log_prob(self):
        """Log densities of all calibration rows; -inf for impossible ones."""
        return np.concatenate([self._held_out_log_prob, np.full(len(self._impossible), -np.inf)])

    @property
    def _impossible(self):
        """The impossible calibration rows; an empty array if there are none."""
        return np.zeros((0, len(self.joint_frame.origin))) if self.impossible is None else self.impossible

    @property
    def calibration_rows(self) -> Float[np.ndarray, "n d"]:
        """All calibration rows as numbers, in their units, the conditions last."""
        return np.concatenate([self.joint_frame.from_model(self.held_out), self._impossible])

    def _p_values(self, log_prob):
        return conformal_p_values(-log_prob, -self._calibration_log_prob)

    def _checks(self, x, given, /):
        """The worst round trip of a row, the latents, the likelihood against simple densities, and the flags of `x`."""
        frame, dim, columns = self.joint_frame, self.frame.dim, len(self.columns)
        new = None if x is None else self._values(x, given)
        rows = self.held_out if new is None else frame.to_model(new)
        (filled, weight), (reference, _) = self._filled(rows), self._filled(self.reference)
        every = np.concatenate([filled, reference]) if new is None else filled
        values = frame.from_model(every) if new is None or self.mixed else new
        z = self._encoded(filled)
        known = {name: part for name, part in ends(every, dim).items() if name != "x"}
        back = self.frame.from_model(_decode(self.model, self._encoded(every), known))
        # a Kolmogorov-Smirnov distance of 0.05 is visible in a histogram; few rows have more sampling noise than that
        limit = 0.05 + 1.5 / np.sqrt(z.size)
        units = self._log_units(rows) + weight
        log_prob = self._held_out_log_prob if new is None else self._log_prob_of(rows)
        p_value = None if new is None else self._p_values(self._where_possible(new, log_prob))
        simple = {
            # log p(x, y) - log p(y) of a joint Gaussian
            "a Gaussian": gaussian_losses(reference, filled)
            - gaussian_losses(reference[:, dim:], filled[:, dim:])
            - units,
            "histograms": histogram_losses(reference[:, :dim], filled[:, :dim]) - units,
        }
        apart = []
        if self.members:
            found = [self._log_prob_by(model, rows, POINTS, ROWS_AT_ONCE) for model in self.models]
            name = f"disagreement of {len(found)} fits, in nats"
            apart = [Check(name, float(np.median(np.std(found, axis=0))), _APART)]
        return [
            Check.of_round_trip(values[:, :columns], back, self.columns, frame.from_model(reference)[:, :columns]),
            Check("distance of the latents from N(0, 1)", ks_normal(z), float(limit)),
            reference_check("nll in nats", -log_prob, simple, _AS_GOOD * (1 + dim)),
            *apart,
            *self.flagging.checks_of(p_value),
        ]

    def _encoded(self, rows):
        blocks = ends(rows, self.frame.dim)
        return map_batches(lambda part: [_encode(self.model, **part)], blocks, ROWS_AT_ONCE)[0]

    def _fits(self):
        named = (len(self.columns), len(self.given_names)) == (len(self.frame.origin), len(self.given_frame.origin))
        if self.mixed is not None:
            named = named and self.mixed.fits(self.frame.dim)
        ends = self.model.partition
        sizes = [sum(block.size for block in end) for end in (ends.left, ends.cond)]
        seen = sizes == [self.frame.dim, self.given_frame.dim] and len(ends.left) == 1
        return (
            named
            and seen
            and sizes_agree(
                ("m d", self.reference),
                ("n d", self.held_out),
                ("i c", self._impossible),
                d=sum(sizes),
                c=len(self.joint_frame.origin),
            )
        )

    def _figure(self):
        from flowknife import plots

        rows = self.joint_frame.from_model(self.reference[:_SHOWN])
        given = rows[:, len(self.columns) :]
        drawn = self.sample_numbers(len(rows), key=0, given=given if self.given_names else None)
        some = slice(0, _SHOWN_COLUMNS)
        names = self.columns[some]
        return {"samples": plots.samples(rows[:, : len(self.columns)][:, some], drawn[:, some], names)}

    def _exported(self):
        from flowknife.apps.density._export import exported

        return exported(self)

    def _report(self, folder, others):
        from flowknife.apps.density._report import report_density

        self._without(others=others)
        return report_density(self, folder)

    def _explore(self, folder):
        from flowknife.apps.density._explore import explore_density

        if self.members:
            raise InputError("got an ensemble; expected one model; try ensemble=1")
        return explore_density(self, folder)

    def _live(self, images=None):
        from flowknife.apps.density._explore import live_density

        self._without(images=images)
        return live_density(self)

    @property
    def joint_frame(self) -> Frame:
        """Origin and scale of the columns and the conditions, in this order."""
        return self.frame.join(self.given_frame)

    def conditions(self, given: Any, n: int) -> np.ndarray:
        """Conditions in the user's units, float64 (n, k), from one row for all or one for each.

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
        """The conditions in the units of the model."""
        rows = self.given_frame.to_model(self.conditions(given, n))
        return {"y": rows} if self.given_names else {}

    def _to_model(self, x, given):
        return self.joint_frame.to_model(self._values(x, given))

    def _values(self, x, given=None):
        """Rows of a table in the user's units, in the columns of training, the conditions last."""
        if isinstance(x, Coded):
            given = self.conditions(given, len(x)) if x.values.shape[1] == len(self.columns) else np.zeros((len(x), 0))
            return np.concatenate([x.values, given], axis=1)
        if self.encoding is not None:
            own = self.given_names if given is None else ()
            return self._values(Coded(self.encoding.read(x, own).values), given)
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
