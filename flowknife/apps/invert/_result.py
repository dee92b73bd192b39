"""The result of `flowknife.invert`: the posterior of an inverse problem, for every observation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from scipy.special import ndtri

from flowknife._batches import ROWS_AT_ONCE, bucket, map_batches
from flowknife._frame import Frame, plain_frame
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, sizes_agree
from flowknife.apps._result import Result
from flowknife.apps.invert._config import InvertConfig
from flowknife.apps.invert._regions import intervals, region, scores
from flowknife.data import load_table
from flowknife.data._pairs import is_table, read_pairs
from flowknife.data._read import by_name, names_in
from flowknife.diagnostics import (
    Check,
    Flagging,
    Misspecification,
    Region,
    Scores,
    coverage,
    hpd_coverage,
    misspecification,
    reference_check,
    resimulation_error,
    sbc,
    scored,
    tarp,
)
from flowknife.errors import InputError
from flowknife.export import numpyro_flow
from flowknife.inn import INN
from flowknife.laws import as_temperature
from flowknife.priors import Prior
from flowknife.problems import PROBLEMS

NUMBERS_AT_ONCE = 2_000_000

_FARTHEST = 1e30  # what networks are given of larger numbers

_IMPOSSIBLE = 1e3  # normal scores

_AS_GOOD = 0.02  # nats per parameter that a posterior may be worse than the prior

_SHOWN = 4  # parameters of the figure

_CHECKED, _DRAWS = 300, 200  # held-out observations that are checked, and draws of each


@eqx.filter_jit
def _sample(model, key, n, temperature, y):
    return jnp.moveaxis(model.sample_left(key, n, temperature=temperature, y=y)["x"], 0, -2)


@eqx.filter_jit
def _sample_common(model, key, n, temperature, y):
    return jax.vmap(lambda row: model.sample_left(key, n, temperature=temperature, y=row)["x"])(y)


@eqx.filter_jit
def _sample_noise(model, key, n, y):
    blocks = model.sample_left(key, n, y=y)
    return tuple(jnp.moveaxis(blocks[name], 0, -2) for name in ("x", "noise"))


@eqx.filter_jit
def _there_and_back(model, x, cond):
    return model.bijection.decode(model.bijection.encode(x, cond)[0], cond)[0]


@eqx.filter_jit
def log_density(model: INN, x, y):
    """Log p(x | y) of rows x given rows y; for a model of (x, noise), at the noise that makes x explain y exactly."""
    names = [block.name for block in model.partition.left]
    if "noise" not in names:
        return model.log_prob(x, y=y)
    noise = y - model.encode({"x": x, "noise": jnp.zeros_like(y)})["y"]
    law = model.partition.right[0]
    at_centre = law.law.log_prob(y, law.shape, y)  # what the law of y adds, a constant there
    return model.log_prob({"x": x, "noise": noise}, y=y) - at_centre


@eqx.filter_jit
def _forward(model, x):
    left = {"x": x}
    for block in model.partition.left[1:]:
        left[block.name] = jnp.zeros((*x.shape[:-1], *block.shape))
    return model.encode(left)["y"]


@eqx.filter_jit
def _climb(model, prior, x, y, steps, rate):
    """Gradient ascent of log p(x | y), in coordinates where the prior is standard normal."""
    u, _ = prior.bijection.encode(x)
    optimiser = optax.adam(1.0)

    def loss(u):
        values = log_density(model, prior.bijection.decode(u)[0], y)
        return -jnp.sum(values), values

    def step(i, carry):
        u, state, best, best_value = carry
        (_, values), slope = jax.value_and_grad(loss, has_aux=True)(u)
        better = (values > best_value)[:, None]
        best, best_value = jnp.where(better, u, best), jnp.maximum(values, best_value)
        updates, state = optimiser.update(jnp.nan_to_num(slope), state)
        return u + rate * (1 - i / steps) * updates, state, best, best_value

    start = (u, optimiser.init(u), u, jnp.full(len(u), -jnp.inf))
    *_, best, value = jax.lax.fori_loop(0, steps, step, start)
    return prior.bijection.decode(best)[0], value


@dataclass(frozen=True, kw_only=True, repr=False)
class Posterior(Result[InvertConfig]):
    """The posterior p(x | y) of the parameters x of an inverse problem, for every observation y.

    An observation is a vector of m numbers. Everywhere, one observation (m,) or many (k, m) may be given; with many,
    results have a leading axis of length k, and what is at place i of it belongs to observation i alone.

    Attributes:
        model: the network, x <-> z given y, or x (and noise) <-> [y, z].
        prior: of the parameters.
        held_out: calibration pairs {"x", "y"}, as the model takes them, with the noise of the data in y, which had no
            part in training, not even in the choice of when to stop; none with `train.validation=0`.
            `held_out_pairs` has them in their units.
        reference: training pairs, as the model takes them, with the noise of the data in y.
        frame: origin and scale of the data; those of the parameters are `prior.frame`.
        noise: standard deviation of the noise that was added to simulated data, one for each number.
        forward: the noise-free simulator of a batch, if it is known.
    """

    application: ClassVar[str] = "invert"
    title: ClassVar[str] = "inverse problem"
    settings: ClassVar[type[Settings]] = InvertConfig
    kept: ClassVar[tuple[str, ...]] = ("prior", "held_out", "frame", "reference", "noise")

    prior: Prior = field(repr=False)
    held_out: dict[str, np.ndarray] = field(repr=False)
    frame: Frame = field(repr=False)
    reference: dict[str, np.ndarray] = field(repr=False)
    noise: tuple[float, ...]
    forward: Callable[[Any], Any] | None = field(default=None, repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return self.prior.names

    @property
    def y_names(self) -> tuple[str, ...]:
        """Names of the data."""
        return self.record.data.y_names

    @property
    def held_out_pairs(self) -> dict[str, np.ndarray]:
        """The held-out pairs {"x", "y"} in the user's units, in double precision."""
        return self._in_units(self.held_out)

    @property
    def example_pairs(self) -> dict[str, np.ndarray]:
        """Pairs {"x", "y"} to show, in the user's units: held-out ones, or training pairs where none were held out."""
        return self._in_units(self.examples)

    def _in_units(self, pairs):
        return {"x": self._x_frame.from_model(pairs["x"]), "y": self.frame.from_model(pairs["y"])}

    @property
    def _x_frame(self):
        return self.prior.frame or plain_frame(self.prior.dim)

    def sample(
        self, n: int, *, y: Any, key: Key = None, temperature: float | int = 1.0, common: bool = False
    ) -> Float[np.ndarray, "*k n d"]:
        """Draw `n` parameters that explain an observation: shape (n, d), or (k, n, d) for k observations.

        Args:
            n: number of draws for each observation.
            y: one observation (m,) or several (k, m).
            key: int, JAX key or None.
            temperature: scale of the latents; 1 is the posterior.
            common: draw from the same latents for every observation, so that what is drawn for one does not depend on
                the others, and differences between them are less noisy.

        Raises:
            InputError: for an observation of another length, or with a number that is not finite.
        """
        rows, single = self._observations(y)
        n = as_count(n, "draw")
        scale, rows = jnp.asarray(as_temperature(temperature)), self._given(rows)
        size = bucket(n)
        if common:
            each = as_key(key)
            most = max(2 ** int(np.log2(max(NUMBERS_AT_ONCE // (size * self.prior.dim), 1))), 1)
            found = map_batches(lambda part: [_sample_common(self.model, each, size, scale, part)], rows, most)
            return _plain(self._x_frame.from_model(found[0][:, :n]), single)
        most = max(NUMBERS_AT_ONCE // (size * self.prior.dim), 1)  # observations at a time
        keys = iter(jax.random.split(as_key(key), -(-len(rows) // most)))
        drawn = [
            np.asarray(_sample(self.model, next(keys), size, scale, rows[start : start + most]))[:, :n]
            for start in range(0, len(rows), most)
        ]
        return _plain(self._x_frame.from_model(np.concatenate(drawn)), single)

    def sample_noise(
        self, n: int, *, y: Any, key: Key = None
    ) -> tuple[Float[np.ndarray, "*k n d"], Float[np.ndarray, "*k n m"]]:
        """Draw pairs (parameters, noise of the data) that explain an observation; y - noise is the noise-free data.

        Needs a model of (x, noise) <-> [y, z]: `form="partitioned"` and `noise`.
        """
        if "noise" not in [block.name for block in self.model.partition.left]:
            raise InputError(
                f"got a {self.config.form} posterior without a block of noise; expected (x, noise) <-> [y, z]; try "
                'form="partitioned", noise=...'
            )
        rows, single = self._observations(y)
        x, noise = map(np.asarray, _sample_noise(self.model, as_key(key), as_count(n, "draw"), self._given(rows)))
        return _plain(self._x_frame.from_model(x), single), _plain(self.frame.widths_from_model(noise), single)

    def log_prob(self, x: Any, y: Any) -> Float[np.ndarray, "..."]:
        """Log posterior density, in nats per unit of x: one for each row of x.

        Args:
            x: parameters: (n, d) for one observation, (k, n, d) for n of each of k observations, or (k, d) for one of
                each.
            y: one observation (m,), or (k, m).
        """
        x = np.asarray(self._named(x), np.float64)
        rows, single = self._observations(y)
        if x.ndim < 1 or x.shape[-1] != self.prior.dim:
            raise InputError(
                f"got parameters of shape {x.shape}; expected (..., {self.prior.dim}): {', '.join(self.names)}"
            )
        if np.isnan(x).any():
            raise InputError(f"got {np.isnan(x).sum()} parameters that are NaN; expected numbers")
        rows = self._given(rows)
        if single:
            rows = np.broadcast_to(rows[0], (*x.shape[:-1], rows.shape[-1]))
        elif x.ndim == 3:
            rows = np.broadcast_to(rows[:, None], (len(rows), x.shape[1], rows.shape[-1]))
        if rows.shape[:-1] != x.shape[:-1]:
            raise InputError(
                f"got parameters of shape {x.shape} and observations of shape {np.shape(y)}; expected one observation, "
                "or as many as the leading axis of the parameters"
            )
        possible = np.asarray(self.prior.log_prob(x)) > -np.inf
        inside = np.where(possible[..., None], self._x_frame.to_model(x), self.examples["x"][0])
        found = self._log_density(inside, rows).astype(np.float64) + self._x_frame.log_det
        return np.where(possible & ~np.isnan(found), found, -np.inf)

    def quantiles(
        self, y: Any, q: Sequence[float] = (0.05, 0.5, 0.95), n: int = 4000, *, key: Key = None
    ) -> Float[np.ndarray, "*k q d"]:
        """Quantiles of each parameter, shape (len(q), d), or (k, len(q), d) for k observations, from `n` draws."""
        return np.moveaxis(np.quantile(self.sample(n, y=y, key=key), q, axis=-2), 0, -2)

    def map(self, y: Any, n: int = 200, *, key: Key = None) -> Float[np.ndarray, "*k d"]:
        """The parameters of largest posterior density, (d,) or (k, d): from the best of `n` draws, uphill."""
        rows, single = self._observations(y)
        drawn = self.sample(n, y=rows, key=key)
        best = np.argmax(self.log_prob(drawn, rows), axis=1)
        start = np.take_along_axis(drawn, best[:, None, None], axis=1)[:, 0]
        start, rows = self._x_frame.to_model(start), self._given(rows)
        top, _ = _climb(self.model, self.prior.inner, jnp.asarray(start), rows, jnp.asarray(200), jnp.asarray(0.03))
        return _plain(self._x_frame.from_model(top), single)

    def predict(self, x: Any) -> Float[np.ndarray, "*n m"]:
        """Noise-free data of parameters x of shape (..., d): the forward direction of the network, or the simulator.

        Raises:
            InputError: for a conditional model whose simulator is not known; it has no forward direction.
        """
        x = np.asarray(self._named(x), np.float64)
        if self.config.form == "partitioned":
            return self.frame.from_model(_forward(self.model, self._x_frame.to_model(x)))
        if self.forward is None:
            raise InputError(
                "got a conditional posterior, which has no forward direction, and no simulator; try "
                'form="partitioned", or the simulator itself'
            )
        return np.asarray(self.forward(x.reshape(-1, x.shape[-1])), float).reshape(*x.shape[:-1], -1)

    def misspecification(self, y: Any) -> Misspecification:
        """P-value of each observation under the simulator; small where it cannot have made it.

        The distance is fitted to training pairs, and calibrated with pairs that had no part in training.

        Raises:
            InputError: without held-out pairs.
        """
        self.flagging.require_held_out()
        return self._misspecification(self._observations(y)[0])

    def score(self, y: Any) -> Scores:
        """Anomaly score of observations under the simulator, with p-values; see `Scores`.

        Without calibration pairs there are no p-values, and a `CalibrationWarning` says why; see `flagging`.
        """
        found = self._misspecification(self._observations(y)[0])
        columns = {"row": np.arange(len(found.scores)), "score": found.scores}
        return scored(columns, self.flagging, found.p_values)

    def _misspecification(self, rows):
        parts = self.reference["y"], self.held_out["y"], self._given(rows)
        reference, held_out, observed = (self._features(y) for y in parts)
        # another value of a datum that never varies is farther than anything that the simulator makes
        observed = observed + np.where(self.frame.possible(rows), 0.0, _IMPOSSIBLE)[:, None]
        return misspecification(reference, observed, calibration=held_out)

    @property
    def flagging(self) -> Flagging:
        """How observations are flagged; its `note` says why nothing can be, where that is so."""
        return Flagging(len(self.held_out["x"]), self.config.alpha, "pairs")

    @property
    def examples(self) -> dict[str, np.ndarray]:
        """Pairs to show, as the model takes them: held-out ones, or training pairs where none were held out."""
        return self.held_out if self.flagging.rows else self.reference

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`nll`: mean -log p(x | y) of held-out pairs, in nats; `prior_nll`: the same before y is known.

        Where no pairs were held out `training_nll` and `training_prior_nll`, the same of training pairs.
        """
        x, y = self.examples["x"], self.examples["y"]
        units = self._x_frame.log_det
        nll, prior_nll = -np.mean(self._log_density(x, y)), -np.mean(self.prior.inner.log_prob(x))
        return self.flagging.named({"nll": float(nll) - units, "prior_nll": float(prior_nll) - units})

    def region(self, y: Any, level: float = 0.9, *, local: bool = False) -> Region:
        """Where log p(x | y) is high enough for the true parameters to lie there with a probability of `level`.

        The bound comes from calibration pairs, so that the promise holds however short training was: on average over
        parameters of the prior and their data (split-conformal, see `diagnostics.conformal_quantile`).

        Args:
            y: one observation (m,).
            level: the coverage.
            local: compare log p(x | y) with that of draws for the same y, so that observations with wide and with
                narrow posteriors are covered alike (as in CP4SBI, arXiv 2508.17077).

        Raises:
            InputError: without calibration pairs, or for several observations.
        """
        self.flagging.require_held_out()
        rows, _ = self._observations(y)
        if len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time")
        return region(self, rows[0], level, local)

    def intervals(self, y: Any, level: float = 0.9) -> Float[np.ndarray, "*k 2 d"]:
        """Lower and upper end of each parameter, (2, d) or (k, 2, d), that hold the true one at a rate of `level`.

        Quantiles of the posterior, widened or narrowed by what calibration pairs show (conformalised quantiles, Romano
        et al. 2019, arXiv 1905.03222), within the support of the prior.

        Raises:
            InputError: without calibration pairs.
        """
        self.flagging.require_held_out()
        rows, single = self._observations(y)
        return _plain(intervals(self, rows, level), single)

    @cached_property
    def calibration_scores(self) -> dict[str, Float[np.ndarray, " m"]]:
        """How unlikely the true parameters of each calibration pair are, "global" and "local"; see `region`."""
        return scores(self)

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """Ranks, coverage and re-simulation of held-out pairs, by name; each has a `verdict` and a `check`.

        Raises:
            InputError: without held-out pairs.
        """
        self.flagging.require_held_out()
        x, y = (self.held_out_pairs[name][:_CHECKED] for name in ("x", "y"))
        drawn = self.sample(_DRAWS, y=y, key=0)
        found = {
            "ranks": sbc(drawn, x, self.names),
            "coverage": coverage(drawn, x, names=self.names),
            "tarp": tarp(drawn, x),
        }
        # without noise the truth lies on the surface around which the law of y spreads the draws: always on top
        if self.config.form == "conditional" or any(self.noise):
            found["highest density"] = hpd_coverage(self.log_prob(drawn, y), self.log_prob(x, y))
        if self.config.form == "partitioned" or self.forward is not None:
            found["resimulation"] = resimulation_error(self.predict(drawn[:, :20]), y[:, None])
        return found

    def _checks(self, pairs, given, /):
        """The worst round trip of a parameter, the calibration, and the likelihood against that of the prior."""
        self._without(given=given)
        if pairs is not None:
            if is_table(pairs):
                pairs = read_pairs(pairs, self.names, self.y_names)
            x, y = self._x_frame.to_model(self._named(pairs[0])), self._given(self._observations(pairs[1])[0])
            judged = replace(self, held_out={"x": x, "y": y})
            return [*judged._checks_of_held_out(), *self.flagging.checks_of()]
        return [*self._checks_of_held_out(), *self.flagging.checks_of()]

    def _checks_of_held_out(self):
        x, y = self.held_out["x"], self.held_out["y"]
        back = self._x_frame.from_model(_there_and_back(self.model, *self._ends(x, y))[:, : x.shape[1]])
        found = [value.check for value in self.calibration.values() if hasattr(value, "check")]
        units = self._x_frame.log_det
        own, before = (-np.asarray(each) - units for each in (self._log_density(x, y), self.prior.inner.log_prob(x)))
        return [
            Check.of_round_trip(self.held_out_pairs["x"], back, self.names),
            *found,
            reference_check("nll in nats", own, {"the prior": before}, _AS_GOOD * (1 + x.shape[1])),
        ]

    def _log_density(self, x, y):
        """Log density, as the model has it, of rows (..., d) given observations (..., m)."""
        dim = x.shape[-1]
        rows = np.concatenate([x, y], axis=-1).reshape(-1, dim + y.shape[-1])

        def program(part):
            return [log_density(self.model, part[:, :dim], part[:, dim:])]

        return map_batches(program, rows, ROWS_AT_ONCE)[0].reshape(x.shape[:-1])

    def to_arviz(self, y: Any, n: int = 1000, *, key: Key = None) -> Any:
        """`n` draws given one observation as ArviZ `InferenceData`, with the observed data."""
        try:
            import arviz  # ty: ignore[import-not-found]
        except ImportError:
            raise InputError('ArviZ is not installed; try pip install "flowknife[arviz]"') from None
        rows, single = self._observations(y)
        if not single and len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time")
        drawn = self.sample(n, y=rows[0], key=key)
        posterior = {name: drawn[None, :, i] for i, name in enumerate(self.names)}
        observed = {"y": np.asarray(rows[0])}
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict({"posterior": posterior, "observed_data": observed})
        return arviz.from_dict(posterior=posterior, observed_data=observed)

    def numpyro(self, y: Any) -> Any:
        """The posterior of one observation as a `numpyro.distributions.Distribution`: a prior, or a guide.

        Values stay in the support of the prior, also in NumPyro's samplers and guides.

        Args:
            y: one observation (m,).

        Raises:
            InputError: NumPyro is not installed, a parameter never varies, or there are several observations.
        """
        rows, _ = self._observations(y)
        if len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time")
        bijection = self.prior.inner.bijection
        return numpyro_flow(self.model, self._x_frame, {"y": self._given(rows)[0]}, bijection, log_density)

    @classmethod
    def _derived(cls, record):
        problem = PROBLEMS.get(record.data.problem or "")
        return {"forward": problem().forward if problem else None}

    def _fits(self):
        named = len(self.y_names) == len(self.frame.origin) and self.record.data.names == self.names
        conditional = bool(self.model.partition.cond)
        return (
            named
            and conditional == (self.config.form == "conditional")
            and sizes_agree(
                ("m d", self.reference["x"]),
                ("m k", self.reference["y"]),
                ("n d", self.held_out["x"]),
                ("n k", self.held_out["y"]),
            )
        )

    def _figure(self):
        from flowknife import plots

        pair = self.example_pairs
        drawn, truth = self.sample(1000, y=pair["y"][0], key=0), pair["x"][0]
        some = slice(0, _SHOWN)
        return {"posterior": plots.corner(drawn[:, some], self.names[some], truth[some], units=self.prior.units[some])}

    def _exported(self):
        from flowknife.apps.invert._export import exported

        return exported(self)

    def _report(self, folder, others):
        from flowknife.apps.invert._report import report_invert

        self._without(others=others)
        return report_invert(self, folder)

    def _explore(self, folder):
        from flowknife.apps.invert._explore import explore_invert

        return explore_invert(self, folder)

    def _live(self):
        from flowknife.apps.invert._explore import live_invert

        return live_invert(self)

    def _observations(self, y) -> tuple[np.ndarray, bool]:
        """Observations as rows (k, m), and whether there is only one, given without an axis for it."""
        if names_in(y) is not None:
            y = load_table(y, columns=self.y_names, min_rows=1).values
        elif (found := by_name(y, self.y_names)) is not None:
            y = found
        try:
            rows = np.asarray(y, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"got {type(y).__name__} as an observation; expected numbers") from None
        length, single = len(self.y_names), rows.ndim <= 1
        rows = rows.reshape(1, -1) if single else rows
        if rows.ndim != 2 or rows.shape[1] != length:
            raise InputError(
                f"got observations of shape {np.shape(y)}; expected ({length},), or (k, {length}) for k of them: "
                f"{', '.join(self.y_names[:8])}{' ...' if length > 8 else ''}"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            place = int(np.flatnonzero(~np.isfinite(rows[bad[0]]))[0])
            what = f"{rows[bad[0], place]} as {self.y_names[place]} of observation {bad[0] + 1}"
            raise InputError(f"got {what}; expected finite numbers")
        return rows, single

    def _given(self, rows):
        """Observations (k, m) as the model takes them; beyond single precision they are merely far."""
        return np.clip(self.frame.to_model(rows), -_FARTHEST, _FARTHEST)

    def _named(self, x):
        """Parameters, of a data frame by the names of its columns."""
        return x if names_in(x) is None else load_table(x, columns=self.names, min_rows=1).values

    @cached_property
    def ordered_data(self) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, " m"]]:
        """Each datum of the training pairs in ascending order, and its standard deviation, as the model takes them."""
        ordered = np.sort(self.reference["y"], axis=0)  # not of the pairs that calibrate: their ranks are no draws
        return ordered, np.maximum(ordered.std(axis=0), 1e-12)

    def _features(self, y):
        """Normal scores of observations, in which a distance means something."""
        ordered, spread = self.ordered_data
        count = len(ordered)
        below = np.stack([np.interp(c, o, np.arange(1, count + 1)) for c, o in zip(y.T, ordered.T, strict=True)], 1)
        beyond = np.maximum(y - ordered[-1], 0) / spread - np.maximum(ordered[0] - y, 0) / spread
        return ndtri((below - 0.5) / count) + beyond

    def _ends(self, x, y):
        """The left end as one array, and the condition, of pairs."""
        left = self.model.left_end(x, key=0, y=y)
        return left.array, left.cond


def _plain(values, single):
    return values[0] if single else values
