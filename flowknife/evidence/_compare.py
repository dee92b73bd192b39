"""Comparison of simulators by a generative classifier with one density for each simulator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp, softmax

from flowknife._settings import asked
from flowknife._types import Key, as_key, keys_of
from flowknife.apps import Density, DensityConfig, density
from flowknife.apps.classify._training import fit_temperature
from flowknife.data._read import names_in, some
from flowknife.diagnostics import Check, Reliability, advised, reliability
from flowknife.errors import InputError
from flowknife.evidence._likelihood import pairs_of, read_rows
from flowknife.problems import Problem


@dataclass(frozen=True)
class Odds:
    """Posterior probabilities and evidences of models, given observations.

    Attributes:
        names: names of the models.
        probability: calibrated probability of each model given each observation, with the prior of the comparison,
            shape (k, n).
        log_evidence: log p(y | model) of each model, in nats per unit of y, shape (k, n); differences are log Bayes
            factors.
    """

    names: tuple[str, ...]
    probability: Float[np.ndarray, "k n"]
    log_evidence: Float[np.ndarray, "k n"] = field(repr=False)

    def log_bayes_factor(self, model: str, against: str) -> Float[np.ndarray, " k"]:
        """Log p(y | model) - log p(y | against), in nats, one for each observation.

        Raises:
            InputError: for an unknown model.
        """
        for name in (model, against):
            if name not in self.names:
                raise InputError(f"got the model {name!r}; expected one of {', '.join(self.names)}")
        first, second = (self.names.index(name) for name in (model, against))
        return self.log_evidence[:, first] - self.log_evidence[:, second]


@dataclass(frozen=True)
class Comparison:
    """A generative classifier of data whose classes are simulators.

    Attributes:
        densities: density of the data of each simulator, log p(y | model), by name. Each has `check`, and its `score`
            tests whether an observation comes from this simulator.
        prior: prior probability of each model.
        temperature: divisor of the log evidences, fitted to data that were not used in training; about 1.
    """

    densities: Mapping[str, Density]
    prior: tuple[float, ...]
    temperature: float = 1.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.densities)

    def odds(self, y: Any) -> Odds:
        """Probabilities and evidences of all models, for observations (k, m) or one (m,).

        If every model gives an observation a density of zero, its probabilities are the prior ones. If the simulated
        data have names, the columns of a DataFrame and the index of a Series are matched by name.

        Raises:
            InputError: for observations of another length, or with missing or infinite numbers.
        """
        rows = read_rows(y, next(iter(self.densities.values())).names)
        evidence = np.stack([flow.log_prob(rows) for flow in self.densities.values()], axis=1).astype(np.float64)
        known = np.isfinite(evidence).any(axis=1, keepdims=True)
        level = np.where(known, evidence, 0.0) / self.temperature + np.log(self.prior)
        return Odds(self.names, softmax(level, axis=1), evidence)

    @cached_property
    def held_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Log evidences of held-out data under each model, and the indices of the true models."""
        parts = [flow.joint_frame.from_model(flow.held_out) for flow in self.densities.values()]
        return self.odds(np.concatenate(parts)).log_evidence, np.repeat(np.arange(len(parts)), [len(p) for p in parts])

    def reliability(self) -> Reliability:
        """Confidence against accuracy over held-out data, with equal prior probabilities."""
        evidence, made = self.held_out
        return reliability(softmax(evidence / self.temperature, axis=1), made)

    def check(self) -> list[Check]:
        """Whether the probabilities are calibrated."""
        return advised([self.reliability().check])


def compare(
    simulators: Mapping[str, Any],
    config: DensityConfig | None = None,
    *,
    prior: Mapping[str, float | int] | None = None,
    num_simulations: int = 10_000,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Compare simulators: the probability that each one produced an observation, with parameters integrated out.

    Parameters are drawn from each simulator's prior, data are simulated, and a density of the data is learnt for each
    simulator, p(y | model), which is the evidence. The probabilities by Bayes' rule are calibrated by a temperature,
    on data that were not used in training.

    Args:
        simulators: by name, each a problem of `flowknife.problems`, a pair (simulator, prior), or an array of simulated
            data (n, m). Simulators must include their noise: noise-free data may have no density.
        config: settings of the densities; default `DensityConfig()`.
        prior: prior probability of each model; default: equal.
        num_simulations: number of simulations of each simulator.
        key: int, JAX key or None.
        show_progress: show progress bars.
        **settings: fields of `DensityConfig`; see `density`.

    Raises:
        InputError: for fewer than two simulators, data of different lengths, or priors of other names.

    Examples:
        >>> import flowknife as fk
        >>> import numpy as np
        >>> g = np.random.default_rng(0)
        >>> data = {"narrow": g.normal(size=(400, 1)), "wide": 3 * g.normal(size=(400, 1))}
        >>> found = fk.compare(data, layers=1, train={"steps": 20}, show_progress=False)
        >>> found.odds([[0.1], [5.0]]).probability.shape
        (2, 2)
    """
    if not isinstance(simulators, Mapping) or len(simulators) < 2:
        count = f"{len(simulators)} simulator" if isinstance(simulators, Mapping) else type(simulators).__name__
        raise InputError(f'got {count}; expected at least two simulators, by name; try {{"one": first, "two": second}}')
    names = tuple(map(str, simulators))
    weights = _weights(prior, names)
    if asked(DensityConfig, config, settings).train.validation == 0:
        raise InputError(
            "got train.validation=0; expected held-out data, which calibrate the probabilities; try leaving it out"
        )
    keys = keys_of(as_key(key), 2 * len(names))
    data = [_data(each, num_simulations, k) for each, k in zip(simulators.values(), keys[: len(names)], strict=True)]
    lengths = {rows.shape[1] for rows, _ in data}
    if len(lengths) > 1:
        raise InputError(f"got data of {' and '.join(map(str, sorted(lengths)))} numbers; expected as many from each")
    data, columns = _matched(data)
    flows = {
        name: density(rows, config, names=columns, key=k, show_progress=show_progress, **settings)
        for name, rows, k in zip(names, data, keys[len(names) :], strict=True)
    }
    total = sum(weights.values())
    found = Comparison(flows, tuple(weights[name] / total for name in names))
    evidence, made = found.held_out
    usable = np.isfinite(evidence).all(axis=1)
    if not len(set(made[usable])) > 1:
        return found
    joint = evidence[usable] - logsumexp(evidence[usable], axis=1, keepdims=True)
    return Comparison(flows, found.prior, float(fit_temperature(joint, made[usable])))


def _weights(prior, names):
    """The prior weight of each model."""
    wanted = f"expected a positive probability for each of {', '.join(names)}"
    if prior is None:
        return dict.fromkeys(names, 1.0)
    if not isinstance(prior, Mapping):
        raise InputError(f"got prior={prior}; {wanted}; try {{{names[0]!r}: 0.5, ...}}")
    weights = {str(name): float(p) for name, p in prior.items()}
    if set(weights) != set(names) or not all(0 < weight < np.inf for weight in weights.values()):
        raise InputError(f"got prior={prior}; {wanted}")
    return weights


def _matched(data):
    """Data of all simulators with their columns in one order, and the names of these; None without names."""
    named = [names for _, names in data if names]
    if not named:
        return [rows for rows, _ in data], None
    for names in named:
        if set(names) != set(named[0]):
            raise InputError(f"got data of the columns {some(named[0])} and of {some(names)}; expected equal names")
    places = [[names.index(name) for name in named[0]] if names else slice(None) for _, names in data]
    return [rows[:, place] for (rows, _), place in zip(data, places, strict=True)], named[0]


def _data(simulator, count, key):
    """Simulated data (n, m) of one simulator, and the names of the columns; () without names."""
    if isinstance(simulator, Problem):
        return pairs_of(simulator, None, None, count, key)[0].y, simulator.y_names
    if isinstance(simulator, tuple) and len(simulator) == 2 and callable(simulator[0]):
        return pairs_of(*simulator, None, count, key)[0].y, ()
    rows = np.asarray(simulator, np.float64) if not callable(simulator) else np.zeros(0)
    if rows.ndim != 2:
        raise InputError(
            f"got {type(simulator).__name__} as a simulator; expected a problem, a pair (simulator, prior), or "
            "simulated data (n, m)"
        )
    return rows, names_in(simulator) or ()
