"""The result of `flowknife.invert`: the posterior of an inverse problem, for every observation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import count
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import ndtri

from flowknife._batches import bucket, map_batches
from flowknife._frame import Frame, plain_frame
from flowknife._progress import note, progress
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, as_numbers, sizes_agree
from flowknife.apps._result import Result
from flowknife.apps.invert import _checks, _programs
from flowknife.apps.invert._config import InvertConfig
from flowknife.apps.invert._gaps import masked, set_in_order, with_gaps
from flowknife.apps.invert._refine import Evidence, Likelihood, Refined, evidence, known_likelihood, refine
from flowknife.apps.invert._regions import LOCAL, cells, intervals, region, scores
from flowknife.data import load_table
from flowknife.data._pairs import is_table, read_pairs
from flowknife.data._read import by_name, names_in
from flowknife.diagnostics import (
    Cells,
    Flagging,
    Misspecification,
    Region,
    Scores,
    misspecification,
    scored,
)
from flowknife.errors import InputError
from flowknife.export import numpyro_flow
from flowknife.inn import INN
from flowknife.laws import as_temperature
from flowknife.priors import Prior
from flowknife.problems import problem_of

NUMBERS_AT_ONCE = 2_000_000

PAIRS_AT_ONCE = 1024  # larger batches gain little; a fixed size shares one compiled program

_FARTHEST = 1e30  # larger numbers are clipped to this before they enter a network

_IMPOSSIBLE = 1e3  # normal scores

_SHOWN = 4  # parameters of the figure


@dataclass(frozen=True, kw_only=True, repr=False)
class Posterior(Result[InvertConfig]):
    """The posterior p(x | y) of the parameters x of an inverse problem, for every observation y.

    An observation is a vector of m numbers. All methods accept one observation (m,) or many (k, m). With many, results
    have a leading axis of length k, and entry i depends on observation i only.

    Attributes:
        model: the network, x <-> z given y, or x (and noise) <-> [y, z].
        prior: the prior of the parameters.
        held_out: calibration pairs {"x", "y"}, in the units of the model, with noise in y, used neither for training
            nor for early stopping; none with `train.validation=0`. `held_out_pairs` has them in the user's units.
        reference: training pairs, in the units of the model, with noise in y.
        frame: origin and scale of the data; those of the parameters are `prior.frame`.
        noise: standard deviation of the noise that was added to simulated data, one for each number.
        members: the other models of an ensemble, trained from other seeds; the posterior is the average of all.
        forward: the noise-free simulator of a batch, if it is known.
        simulator: the simulator of the pairs, for `focus`; a loaded run has it only for a problem of
            `flowknife.problems`.
        log_likelihood: `f(x, y)`, log p(y | x) of parameters (n, d) and one observation (m,), shape (n,), if it is
            known and differs from Gaussian noise around `forward`. If it is written in JAX, `refine` uses its
            gradients.
    """

    application: ClassVar[str] = "invert"
    title: ClassVar[str] = "inverse problem"
    settings: ClassVar[type[Settings]] = InvertConfig
    kept: ClassVar[tuple[str, ...]] = ("prior", "held_out", "frame", "reference", "noise", "members")
    later: ClassVar[Mapping[str, Any]] = {"members": ()}

    prior: Prior = field(repr=False)
    held_out: dict[str, np.ndarray] = field(repr=False)
    frame: Frame = field(repr=False)
    reference: dict[str, np.ndarray] = field(repr=False)
    noise: tuple[float, ...]
    members: tuple[INN, ...] = field(default=(), repr=False)
    forward: Callable[[Any], Any] | None = field(default=None, repr=False)
    simulator: Callable[..., Any] | None = field(default=None, repr=False)
    log_likelihood: Callable[[Any, Any], Any] | None = field(default=None, repr=False)

    @property
    def models(self) -> tuple[INN, ...]:
        """The models of the ensemble; the posterior is their average."""
        return (self.model, *self.members)

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
    def training_pairs(self) -> dict[str, np.ndarray]:
        """Some of the training pairs {"x", "y"}, in the user's units."""
        return self._in_units(self.reference)

    @property
    def example_pairs(self) -> dict[str, np.ndarray]:
        """Example pairs {"x", "y"}, in the user's units: held-out pairs, or training pairs if none were held out."""
        return self._in_units(self.examples)

    def _in_units(self, pairs):
        y = with_gaps(pairs["y"]) if self.gaps else pairs["y"]
        return {"x": self.prior_frame.from_model(pairs["x"]), "y": self.frame.from_model(y)}

    @property
    def gaps(self) -> bool:
        """Whether observations may have missing numbers, NaN."""
        return self.used.embedding is not None

    @property
    def prior_frame(self) -> Frame:
        """Origin and scale of the parameters."""
        return self.prior.frame or plain_frame(self.prior.dim)

    def sample(
        self,
        n: int,
        *,
        y: Any,
        key: Key = None,
        temperature: float | int = 1.0,
        common: bool = False,
        refine: bool = False,
        show_progress: bool = False,
    ) -> Float[np.ndarray, "*k n d"]:
        """Draw `n` parameters that explain an observation: shape (n, d), or (k, n, d) for k observations.

        Args:
            n: number of draws for each observation.
            y: one observation (m,) or several (k, m).
            key: int, JAX key or None.
            temperature: scale of the latents; 1 is the posterior.
            common: use the same latents for every observation. The draws for one observation then do not depend on the
                others, and differences between observations are less noisy.
            refine: draw from the exact posterior, if the likelihood is known, see `refine`; a note reports for how many
                observations MCMC was needed.
            show_progress: show a progress bar with `refine`, which can take minutes.

        Raises:
            InputError: for an observation of another length, or with a number that is not finite; with `refine`,
                where the likelihood is not known.
        """
        rows, single = self._observations(y)
        n = as_count(n, "draw")
        if refine:
            return self._sample_refined(n, rows, single, key, temperature, common, show_progress)
        scale, rows = jnp.asarray(as_temperature(temperature)), self._given(rows)
        draw = self._draw_common if common else self._draw
        (found,) = _programs.pooled(self.models, n, as_key(key), partial(draw, rows, scale))
        return _plain(self.prior_frame.from_model(found), single)

    def _draw_common(self, rows, scale, model, key, n):
        size = bucket(n)
        most = max(2 ** int(np.log2(max(NUMBERS_AT_ONCE // (size * self.prior.dim), 1))), 1)
        found = map_batches(lambda part: [_programs.sample_common(model, key, size, scale, part)], rows, most)
        return (found[0][:, :n],)

    def _draw(self, rows, scale, model, key, n):
        size = bucket(n)
        most = max(NUMBERS_AT_ONCE // (size * self.prior.dim), 1)  # observations per batch
        # few draws for many observations: in batches of one size, since every size is compiled separately
        most = min(most, len(rows) if len(rows) == 1 or size > bucket(1) else bucket(1))
        number = count()

        def draw(part):
            found = _programs.sample(model, jax.random.fold_in(key, next(number)), size, scale, part)
            return [np.asarray(found)[:, :n]]

        return map_batches(draw, rows, most)

    def _sample_refined(self, n, rows, single, key, temperature, common, show_progress):
        if common or temperature != 1:
            raise InputError(
                "got refine=True with common or a temperature; expected one of them; try refine=True alone"
            )
        found = self.refine(rows, n, key=key, show_progress=show_progress)
        handed = [one for one in found if one.method != "weights"]
        if handed:
            which = handed[0].verdict if single else f"{len(handed)} of {len(found)} observations: {handed[0].verdict}"
            note(which)
        return _plain(np.stack([one.draws for one in found]), single)

    def refine(self, y: Any, n: int = 1000, *, key: Key = None, show_progress: bool = False) -> Any:
        """Draw `n` parameters from the exact posterior of an observation, if the likelihood is known.

        Draws x of the flow are resampled with the importance weights p(y | x) p(x) / q(x | y), after Pareto smoothing
        (Vehtari et al. 2024, arXiv 1507.02646). If the Pareto shape k-hat is above 0.7, or the weights would repeat
        draws, Markov chains continue from them: NUTS (extra `mcmc`) in the prior's coordinates, with a mass matrix from
        the draws. Without a gradient in JAX, random-walk Metropolis is used where k-hat is above 0.7 or fewer than n/2
        draws are effective.

        The likelihood is known for a deterministic simulator with Gaussian noise (`noise`, or that of a problem), and
        through `log_likelihood`.

        Args:
            y: one observation (m,), or several (k, m).
            n: number of draws for each.
            key: int, JAX key or None.
            show_progress: show a progress bar.

        Returns:
            the draws, k-hat, the effective sample size, and the method; a list for several observations.

        Raises:
            InputError: where the likelihood is not known.
        """
        rows, single = self._observations(y)
        n = as_count(n, "draw")
        keys = jax.random.split(as_key(key), len(rows))
        found: list[Refined] = []
        with progress("refining", show_progress) as report:
            for i, (row, k) in enumerate(zip(rows, keys, strict=True)):
                found.append(refine(self, row, n, k, partial(report, i / len(rows))))
            report(1.0)
        return found[0] if single else found

    def evidence(self, y: Any, n: int = 4000, *, key: Key = None) -> Any:
        """Log p(y), the log of the mean likelihood over the prior, from `n` weighted draws; see `refine`.

        If k-hat is above 0.7, MCMC is run first, and half of the proposals come from a Student t fitted to its draws.
        The prior is that of the simulations. After `focus` it is still the original one, so that evidences remain
        comparable, for the observation of the focus.

        Returns:
            log_evidence in nats, its standard error and k-hat; a list for several observations.

        Raises:
            InputError: where the likelihood is not known.
        """
        rows, single = self._observations(y)
        keys = jax.random.split(as_key(key), len(rows))
        found: list[Evidence] = [evidence(self, row, as_count(n, "draw"), k) for row, k in zip(rows, keys, strict=True)]
        return found[0] if single else found

    @cached_property
    def likelihood(self) -> Likelihood:
        """The likelihood, if it is known.

        Raises:
            InputError: it is not.
        """
        return known_likelihood(self)

    def focus(
        self, y: Any, rounds: int = 2, *, num_simulations: int | None = None, key: Key = None, **settings: Any
    ) -> "Posterior":
        """Refit sequentially to simulations near one observation, for posteriors much narrower than the prior.

        Each round truncates the prior to the conformal region of y, which contains the parameters with probability 99.9
        %, or less if there are too few calibration pairs. New parameters are drawn from it, and the posterior is fitted
        to them (truncated proposals, Deistler et al. 2022, arXiv 2210.04815). No importance weights are needed, and
        densities stay normalised. The result is valid only for y and similar observations.

        Args:
            y: one observation (m,).
            rounds: number of rounds.
            num_simulations: number of simulations per round; default as for this posterior.
            key: int, JAX key or None; None means `config.seed`.
            **settings: settings of the fits, see `InvertConfig`; default those of this posterior.

        Raises:
            InputError: without a simulator or calibration pairs, or for several observations.
        """
        from flowknife.apps.invert._focus import focus

        self.flagging.require_held_out()
        rows, _ = self._observations(y)
        if len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time")
        return focus(self, rows[0], as_count(rounds, "round"), num_simulations, key, settings)

    def disagreement(self, y: Any, n: int = 500, *, key: Key = None) -> Float[np.ndarray, "*k d"]:
        """Disagreement of the ensemble members: the spread of their means, in standard deviations of the posterior.

        If it is large, another fit would give a different posterior. Shape (d,) or (k, d); zero for a single model.
        """
        rows, single = self._observations(y)
        given, scale, key = self._given(rows), jnp.asarray(1.0), as_key(key)
        drawn = np.stack([self._draw(given, scale, model, key, as_count(n, "draw"))[0] for model in self.models])
        whole = np.maximum(np.std(np.moveaxis(drawn, 0, 1).reshape(len(rows), -1, drawn.shape[-1]), axis=1), 1e-30)
        return _plain(np.std(drawn.mean(axis=2), axis=0) / whole, single)

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
        given = self._given(rows)
        x, noise = _programs.pooled(
            self.models,
            as_count(n, "draw"),
            as_key(key),
            lambda model, k, count: tuple(map(np.asarray, _programs.sample_noise(model, k, count, given))),
        )
        return _plain(self.prior_frame.from_model(x), single), _plain(self.frame.widths_from_model(noise), single)

    def log_prob(self, x: Any, y: Any) -> Float[np.ndarray, "..."]:
        """Log posterior density, in nats per unit of x: one for each row of x.

        Args:
            x: parameters: (n, d) for one observation, (k, n, d) for n of each of k observations, or (k, d) for one of
                each.
            y: one observation (m,), or (k, m).
        """
        x = self._parameters(x)
        rows, single = self._observations(y)
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
        inside = np.where(possible[..., None], self.prior_frame.to_model(x), self.examples["x"][0])
        found = self.log_density(inside, rows).astype(np.float64) + self.prior_frame.log_det
        return np.where(possible & ~np.isnan(found), found, -np.inf)

    def quantiles(
        self, y: Any, q: Sequence[float] = (0.05, 0.5, 0.95), n: int = 4000, *, key: Key = None
    ) -> Float[np.ndarray, "*k q d"]:
        """Quantiles of each parameter, shape (len(q), d), or (k, len(q), d) for k observations, from `n` draws.

        Raises:
            InputError: for probabilities `q` out of range.
        """
        wanted = np.atleast_1d(as_numbers(q, "q"))
        if wanted.ndim != 1 or not len(wanted) or not np.all((wanted >= 0) & (wanted <= 1)):
            raise InputError(f"got q={q}; expected probabilities between 0 and 1; try q=(0.05, 0.5, 0.95)")
        return np.moveaxis(np.quantile(self.sample(n, y=y, key=key), wanted, axis=-2), 0, -2)

    def map(self, y: Any, n: int = 200, *, key: Key = None) -> Float[np.ndarray, "*k d"]:
        """The maximum a posteriori (MAP) parameters, (d,) or (k, d), by gradient ascent from the best of `n` draws."""
        rows, single = self._observations(y)
        drawn = self.sample(n, y=rows, key=key)
        best = np.argmax(self.log_prob(drawn, rows), axis=1)
        start = np.take_along_axis(drawn, best[:, None, None], axis=1)[:, 0]
        start, rows = self.prior_frame.to_model(start), self._given(rows)
        top, _ = _programs.climb(
            self.models, self.prior.inner, jnp.asarray(start), rows, jnp.asarray(200), jnp.asarray(0.03)
        )
        return _plain(self.prior_frame.from_model(top), single)

    def predict(self, x: Any) -> Float[np.ndarray, "*n m"]:
        """Noise-free data of parameters x of shape (..., d): the forward direction of the network, or the simulator.

        Raises:
            InputError: for a conditional model, which has no forward direction, unless a deterministic simulator is
                known; or for parameters of another length.
        """
        x = self._parameters(x)
        if self.config.form == "partitioned":
            inside = self.prior_frame.to_model(x)
            return self.frame.from_model(np.mean([_programs.forward(model, inside) for model in self.models], axis=0))
        if self.forward is None:
            raise InputError(
                "got a conditional posterior, which has no forward direction, and no simulator without randomness; try "
                'form="partitioned", or the simulator itself'
            )
        return np.asarray(self.forward(x.reshape(-1, x.shape[-1])), float).reshape(*x.shape[:-1], -1)

    def misspecification(self, y: Any) -> Misspecification:
        """P-value of each observation under the simulator; small if the simulator cannot have produced it.

        The distance is fitted to training pairs, and calibrated on pairs that were not used in training.

        Raises:
            InputError: without held-out pairs.
        """
        self.flagging.require_held_out()
        return self._misspecification(self._observations(y)[0])

    def score(self, y: Any) -> Scores:
        """Anomaly score of observations under the simulator, with p-values; see `Scores`.

        Without calibration pairs there are no p-values, and a `CalibrationWarning` gives the reason; see `flagging`.
        """
        found = self._misspecification(self._observations(y)[0])
        columns = {"row": np.arange(len(found.scores)), "score": found.scores}
        return scored(columns, self.flagging, found.p_values)

    def _misspecification(self, rows):
        parts = self.reference["y"], self.held_out["y"], self._given(rows)
        reference, held_out, observed = (self._features(y) for y in parts)
        # another value of a constant datum is farther than anything that the simulator produces
        observed = observed + np.where(self.frame.possible(rows), 0.0, _IMPOSSIBLE)[:, None]
        return misspecification(reference, observed, calibration=held_out)

    @property
    def flagging(self) -> Flagging:
        """How observations are flagged; if none can be flagged, its `note` gives the reason."""
        return Flagging(len(self.held_out["x"]), self.config.alpha, "pairs")

    @property
    def examples(self) -> dict[str, np.ndarray]:
        """Example pairs, in the units of the model: held-out pairs, or training pairs if none were held out."""
        return self.held_out if self.flagging.rows else self.reference

    @cached_property
    def metrics(self) -> dict[str, float]:
        """`nll`: mean -log p(x | y) of held-out pairs, in nats; `prior_nll`: mean -log p(x) under the prior.

        If no pairs were held out: `training_nll` and `training_prior_nll`, the same for training pairs.
        """
        x, y = self.examples["x"], self.examples["y"]
        units = self.prior_frame.log_det
        nll, prior_nll = -np.mean(self.log_density(x, y)), -np.mean(self.prior.inner.log_prob(x))
        return self.flagging.named({"nll": float(nll) - units, "prior_nll": float(prior_nll) - units})

    def region(self, y: Any, level: float = 0.9, *, local: bool = False) -> Region:
        """The region of high posterior density that contains the true parameters with probability `level`.

        The threshold comes from calibration pairs (split conformal prediction, see `diagnostics.conformal_quantile`),
        so the coverage is valid even for a poorly trained model, on average over the prior and its simulated data.

        Args:
            y: one observation (m,).
            level: the coverage.
            local: calibrate locally, so that the coverage is valid for each kind of observation (as in CP4SBI, arXiv
                2508.17077). The score is the rank of log p(x | y) among draws for the same y, and only pairs in the
                same cell of a partition of observations calibrate it; the partition is fitted to training pairs. Since
                a cell has few calibration pairs, the level is raised by one standard error.

        Raises:
            InputError: without calibration pairs, or for several observations.
        """
        self.flagging.require_held_out()
        rows, _ = self._observations(y)
        if len(rows) > 1:
            raise InputError(f"got {len(rows)} observations; expected one at a time")
        return region(self, rows[0], level, local)

    def intervals(self, y: Any, level: float = 0.9) -> Float[np.ndarray, "*k 2 d"]:
        """Lower and upper end of an interval for each parameter, with coverage `level`: (2, d) or (k, 2, d).

        Quantiles of the posterior are widened or narrowed to have this coverage on calibration pairs (conformalised
        quantiles, Romano et al. 2019, arXiv 1905.03222), within the support of the prior.

        Raises:
            InputError: without calibration pairs, or for a level out of range.
        """
        self.flagging.require_held_out()
        rows, single = self._observations(y)
        return _plain(intervals(self, rows, level), single)

    @cached_property
    def calibration_cells(self) -> tuple[Cells, np.ndarray]:
        """A partition of observations for local regions, and the cell of each calibration pair; see `region`."""
        return cells(self)

    def features_of(self, y: Any) -> Float[np.ndarray, "n k"]:
        """Normal scores of observations (n, m), in which distances are meaningful."""
        return self._features(self._given(self._observations(y)[0]))

    @cached_property
    def calibration_scores(self) -> Float[np.ndarray, " m"]:
        """Conformity score of each calibration pair, -log p(x | y); see `region`."""
        return scores(self, local=False)

    @cached_property
    def local_scores(self) -> Float[np.ndarray, " m"]:
        """Conformity scores: ranks of log p among draws for the same observation; see `region`."""
        return scores(self, local=True, most=LOCAL)

    @cached_property
    def calibration(self) -> dict[str, Any]:
        """Ranks, coverage, regions, sharpness and re-simulation of held-out pairs, by name; most have a `check`.

        Raises:
            InputError: without held-out pairs.
        """
        self.flagging.require_held_out()
        return _checks.calibration(self)

    def _checks(self, pairs, given, /):
        """The worst round trip of a parameter, calibration, and the likelihood against that of the prior."""
        self._without(given=given)
        judged = self
        if pairs is not None:
            if is_table(pairs):
                pairs = read_pairs(pairs, self.names, self.y_names)
            x, y = (
                self.prior_frame.to_model(_matched(pairs[0], self.names)),
                self._given(self._observations(pairs[1])[0]),
            )
            judged = replace(self, held_out={"x": x, "y": y})
        return [*_checks.checks(judged), *self.flagging.checks_of()]

    def log_density(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Log density, in the units of the model, of rows (..., d) given observations (..., m)."""
        dim = x.shape[-1]
        rows = np.concatenate([x, y], axis=-1).reshape(-1, dim + y.shape[-1])

        def program(part):
            return [_programs.log_density(self.models, part[:, :dim], part[:, dim:])]

        return map_batches(program, rows, PAIRS_AT_ONCE)[0].reshape(x.shape[:-1])

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
        self._require_one_model("a NumPyro distribution")
        return numpyro_flow(
            self.model, self.prior_frame, {"y": self._given(rows)[0]}, bijection, _programs.log_density_of
        )

    @classmethod
    def _derived(cls, record):
        problem = problem_of(record.data.problem, len(record.data.names), len(record.data.y_names))
        forward = problem.forward if problem else None
        return {"forward": forward, "simulator": forward}

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

        if self.members or self.gaps:
            raise InputError("got an ensemble or an embedding by name; expected one model of plain observations")
        return explore_invert(self, folder)

    def _live(self, images=None):
        from flowknife.apps.invert._explore import live_invert

        self._without(images=images)
        return live_invert(self)

    def _observations(self, y) -> tuple[np.ndarray, bool]:
        """Observations as rows (k, m), and whether a single one was passed, as (m,)."""
        y = _matched(y, self.y_names)
        try:
            rows = np.asarray(y, np.float64)
        except (TypeError, ValueError):
            raise InputError(f"got {type(y).__name__} as an observation; expected numbers") from None
        length, shape = len(self.y_names), self.used.observation
        if shape is not None and len(shape) > 1 and rows.shape[-len(shape) :] == shape:
            rows = rows.reshape(*rows.shape[: -len(shape)], length)
        single = rows.ndim <= 1
        rows = rows.reshape(1, -1) if single else rows
        if not len(rows):
            raise InputError("got no observation; expected at least one")
        if rows.ndim != 2 or rows.shape[1] != length:
            raise InputError(
                f"got observations of shape {np.shape(y)}; expected ({length},), or (k, {length}) for k of them: "
                f"{', '.join(self.y_names[:8])}{' ...' if length > 8 else ''}"
            )
        usable = np.isfinite(rows) | (np.isnan(rows) & self.gaps)
        bad = np.flatnonzero(~usable.all(axis=1))
        if len(bad):
            place = int(np.flatnonzero(~usable[bad[0]])[0])
            what = f"{rows[bad[0], place]} as {self.y_names[place]} of observation {bad[0] + 1}"
            try_gaps = "" if self.gaps or not np.isnan(rows[bad[0], place]) else '; try a fit with embedding="numbers"'
            raise InputError(f"got {what}; expected finite numbers{try_gaps}")
        return rows, single

    def _given(self, rows):
        """Observations (k, m) in the units of the model, clipped to the range of single precision."""
        inside = np.clip(self.frame.to_model(rows), -_FARTHEST, _FARTHEST)
        return masked(inside) if self.gaps else inside

    def _parameters(self, x):
        """Parameters (..., d) in double precision."""
        x = as_numbers(_matched(x, self.names), "parameters")
        if x.ndim < 1 or x.shape[-1] != self.prior.dim:
            raise InputError(
                f"got parameters of shape {x.shape}; expected (..., {self.prior.dim}): {', '.join(self.names)}"
            )
        if np.isnan(x).any():
            raise InputError(f"got {np.isnan(x).sum()} parameters that are NaN; expected numbers")
        return x

    @cached_property
    def ordered_data(self) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, " m"]]:
        """Each datum of the training pairs in ascending order, and its standard deviation, in units of the model."""
        ordered = np.sort(self._in_order(self.reference["y"]), axis=0)  # calibration pairs would have fixed ranks
        return ordered, np.maximum(ordered.std(axis=0), 1e-12)

    def _features(self, y):
        """Normal scores of observations, in which distances are meaningful."""
        y = self._in_order(y)
        ordered, spread = self.ordered_data
        count = len(ordered)
        below = np.stack([np.interp(c, o, np.arange(1, count + 1)) for c, o in zip(y.T, ordered.T, strict=True)], 1)
        beyond = np.maximum(y - ordered[-1], 0) / spread - np.maximum(ordered[0] - y, 0) / spread
        return ndtri((below - 0.5) / count) + beyond

    def _in_order(self, y):
        """Observations in the units of the model, with the elements of a set in ascending order."""
        shape = self.used.observation
        return set_in_order(y, shape) if self.config.embedding == "set" and shape else y


def _matched(source, names):
    """The values of a DataFrame, a Series or a mapping in the order of `names`; anything else as it is."""
    if names_in(source) is not None:
        return load_table(source, columns=names, min_rows=1).values
    return source if (found := by_name(source, names)) is None else found


def _plain(values, single):
    return values[0] if single else values
