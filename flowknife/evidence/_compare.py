"""Which simulator made these data? A classifier of data with one class for each simulator."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_key, keys_of
from flowknife.apps import Classifier, ClassifyConfig, classify
from flowknife.errors import InputError
from flowknife.evidence._likelihood import pairs_of
from flowknife.problems import Problem


@dataclass(frozen=True)
class Odds:
    """What observations say about models.

    Attributes:
        names: of the models.
        probability: of each model given each observation, shape (k, n), with the prior of the comparison.
        log_evidence: log p(y | model), up to what all models share, in nats: differences are log Bayes factors.
    """

    names: tuple[str, ...]
    probability: Float[np.ndarray, "k n"]
    log_evidence: Float[np.ndarray, "k n"] = field(repr=False)

    def log_bayes_factor(self, model: str, against: str) -> Float[np.ndarray, " k"]:
        """Log p(y | model) - log p(y | against), in nats, one for each observation."""
        first, second = (self.names.index(name) for name in (model, against))
        return self.log_evidence[:, first] - self.log_evidence[:, second]


@dataclass(frozen=True)
class Comparison:
    """A classifier of data whose classes are simulators.

    Attributes:
        classifier: of observations; its `check` and `report` say whether its probabilities are calibrated, and its
            `score` whether an observation is of any of the models.
        names: of the models.
        prior: probability of each model.
    """

    classifier: Classifier
    names: tuple[str, ...]
    prior: tuple[float, ...]

    def odds(self, y: Any) -> Odds:
        """Probabilities and evidences of all models, for observations (k, m) or one (m,)."""
        rows = np.atleast_2d(np.asarray(y, np.float64))
        order = [list(self.classifier.classes).index(name) for name in self.names]
        found = np.log(np.maximum(np.asarray(self.classifier.predict_proba(rows), np.float64)[:, order], 1e-300))
        evidence = found - np.asarray(self.classifier.log_prior, np.float64)[order]
        joint = evidence + np.log(self.prior)
        probability = np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        return Odds(self.names, probability, evidence)

    def check(self) -> Any:
        """The checks of the classifier, such as the calibration of its probabilities."""
        return self.classifier.check()


def compare(
    simulators: Mapping[str, Any],
    config: ClassifyConfig | None = None,
    *,
    prior: Mapping[str, float | int] | None = None,
    num_simulations: int = 10_000,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> Comparison:
    """Compare simulators: the probability that each made an observation, without fitting any of their parameters.

    Parameters are drawn from each simulator's prior, data are simulated, and `classify` learns which simulator made
    them; its probabilities are calibrated with data that had no part in training.

    Args:
        simulators: by name, each a problem of `flowknife.problems`, a pair (simulator, prior), or an array of simulated
            data (n, m). Simulators have their noise themselves.
        config: settings; default `ClassifyConfig()`.
        prior: probability of each model; default: all alike.
        num_simulations: of each simulator.
        key: int, JAX key or None.
        show_progress: show progress bars.
        **settings: fields of `ClassifyConfig`; see `classify`.

    Raises:
        InputError: for fewer than two simulators, data of different lengths, or priors of other names.

    Example:
        >>> import flowknife as fk
        >>> import numpy as np
        >>> g = np.random.default_rng(0)
        >>> data = {"narrow": g.normal(size=(400, 1)), "wide": 3 * g.normal(size=(400, 1))}
        >>> found = fk.compare(data, layers=1, train={"steps": 20}, show_progress=False)
        >>> found.odds([[0.1], [5.0]]).probability.shape
        (2, 2)
    """
    if len(simulators) < 2:
        raise InputError(f"got {len(simulators)} simulator; expected at least two, by name")
    names = tuple(map(str, simulators))
    weights = dict.fromkeys(names, 1.0) if prior is None else {str(name): float(p) for name, p in prior.items()}
    if set(weights) != set(names) or min(weights.values()) <= 0:
        raise InputError(f"got prior={prior}; expected a positive probability for each of {', '.join(names)}")
    keys = keys_of(as_key(key), len(names) + 1)
    data = [_data(each, num_simulations, k) for each, k in zip(simulators.values(), keys[1:], strict=True)]
    lengths = {rows.shape[1] for rows in data}
    if len(lengths) > 1:
        raise InputError(f"got data of {' and '.join(map(str, sorted(lengths)))} numbers; expected as many from each")
    labels = np.repeat(names, [len(rows) for rows in data])
    fit_key = keys[0] if key is None or not isinstance(key, (int, np.integer)) else key
    fitted = classify(np.concatenate(data), labels, config, key=fit_key, show_progress=show_progress, **settings)
    total = sum(weights.values())
    return Comparison(fitted, names, tuple(weights[name] / total for name in names))


def _data(simulator, count, key):
    """Simulated data (n, m) of one simulator."""
    if isinstance(simulator, Problem):
        return pairs_of(simulator, None, None, count, key)[1]
    if isinstance(simulator, tuple) and len(simulator) == 2 and callable(simulator[0]):
        return pairs_of(*simulator, None, count, key)[1]
    rows = np.asarray(simulator, np.float64) if not callable(simulator) else np.zeros(0)
    if rows.ndim != 2:
        raise InputError(
            f"got {type(simulator).__name__} as a simulator; expected a problem, a pair (simulator, prior), or "
            "simulated data (n, m)"
        )
    return rows
