"""Split-conformal calibration: p-values, flags, and the smallest possible p-value."""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from flowknife._split import SHARE, fewest_calibration_rows
from flowknife._types import Key, as_generator
from flowknife.diagnostics._check import Check
from flowknife.errors import CalibrationWarning, InputError

_SIMULATED = 1000  # simulated sets of normal items, to calibrate a bound on false discoveries


def conformal_p_values(scores: Float[np.ndarray, " n"], held_out: Float[np.ndarray, " m"]) -> Float[np.ndarray, " n"]:
    """Split-conformal p-values: the share of held-out normal scores at least as extreme.

        p = (1 + #{held-out >= score}) / (1 + m)

    If a new item comes from the same distribution as the held-out ones, P(p <= a) <= a for every a, whatever the score
    (Vovk et al. 2005; Bates et al. 2023, arXiv 2104.08279). No p-value is below 1 / (1 + m).

    Args:
        scores: larger is more anomalous; NaN counts as largest.
        held_out: scores of m normal items used neither for training nor for early stopping.
    """
    ordered = np.sort(np.asarray(held_out, float))
    scores = np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf)
    at_least = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return (1 + at_least) / (1 + len(ordered))


class Flagging(NamedTuple):
    """The rule for flagging items: p < alpha, with p-values from `rows` calibration rows.

    At most a share alpha of new rows of the same distribution is flagged, in expectation.

    Attributes:
        rows: number of calibration rows; without any there are no p-values.
        alpha: the false-alarm rate.
        unit: plural noun for a row.
    """

    rows: int
    alpha: float
    unit: str = "rows"

    @property
    def smallest(self) -> float:
        """The smallest possible p-value."""
        return 1 / (self.rows + 1)

    @property
    def note(self) -> str:
        """The reason why nothing can be flagged, with advice; empty if items can be flagged."""
        unit, needed = self.unit, fewest_calibration_rows(self.alpha)
        if not self.rows:
            return (
                f"there are no p-values, since no {unit} were held out to calibrate them; "
                f"try train.validation={SHARE}, or more {unit}"
            )
        if self.rows >= needed:
            return ""
        return (
            f"no p-value is below {self.smallest:.2g} with {self.rows} calibration {unit}, so that nothing can be "
            f"flagged at alpha={self.alpha:g}, which takes {needed}; try more {unit}, a larger train.validation, or a "
            "larger alpha"
        )

    def checks_of(self, p_value: Float[np.ndarray, " n"] | None = None) -> list[Check]:
        """The check of the share of flagged new rows, from their p-values; or a failed check if nothing can be flagged.

        The `note` of the failed check gives advice.
        """
        if self.note:
            missing = fewest_calibration_rows(self.alpha) - self.rows
            name = f"calibration {self.unit} missing for a p-value below {self.alpha:g}"
            return [Check(name, float(missing), 0.0, self.note)]
        if p_value is None:
            return []
        # both the counted and the calibration rows contribute to the variance of the rate
        limit = self.alpha + 4 * (self.alpha / len(p_value) + self.alpha / self.rows) ** 0.5
        return [Check(f"share of {self.unit} flagged", float(np.mean(p_value < self.alpha)), limit)]

    def warn(self, stacklevel: int = 3) -> None:
        """Warn with the `note`, if there is one, at the line that called `score` or the fit."""
        if self.note:
            warnings.warn(self.note, CalibrationWarning, stacklevel=stacklevel)

    def require_held_out(self) -> None:
        """Refuse to check a run on its training rows.

        Raises:
            InputError: without calibration rows.
        """
        if not self.rows:
            raise InputError(
                f"got a run without held-out {self.unit}; expected {self.unit} that it was not trained on; try to "
                f"check it with some, or train.validation={SHARE}"
            )

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics by name; if no rows were held out, names begin with `training_`."""
        return metrics if self.rows else {f"training_{name}": value for name, value in metrics.items()}


def weighted_conformal_p_values(
    scores: Float[np.ndarray, " n"],
    held_out: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " n"],
    held_out_weights: Float[np.ndarray, " m"],
) -> Float[np.ndarray, " n"]:
    """Conformal p-values of new items whose distribution has shifted, by the density ratio w(x) = p_new(x) / p_old(x).

        p = (w(x) + sum of w over held-out items with a score >= that of x) / (w(x) + sum of w over held-out items)

    (Tibshirani et al. 2019, arXiv 1904.06019.) With equal weights these are `conformal_p_values`. If normal new items
    have the density w p_old, P(p <= a) <= a, whatever the score; with estimated weights this holds approximately.

    Args:
        scores: scores of new items; larger is more anomalous, NaN counts as largest.
        held_out: scores of m normal items that were not used in training.
        weights: weights w of the new items, not negative.
        held_out_weights: weights w of the held-out items.
    """
    above, total = _weight_above(scores, held_out, held_out_weights)
    own = np.asarray(weights, float)
    return np.minimum((own + above) / np.maximum(own + total, 1e-300), 1.0)


def _weight_above(scores, held_out, weights):
    """The weight of the held-out items with a score of at least each of `scores`, and the weight of all of them."""
    order = np.argsort(held_out, kind="stable")
    mass = np.append(np.cumsum(np.asarray(weights, float)[order][::-1])[::-1], 0.0)
    scores = np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf)
    return mass[np.searchsorted(np.asarray(held_out, float)[order], scores, side="left")], mass[0]


def weighted_discoveries(
    scores: Float[np.ndarray, " n"],
    held_out: Float[np.ndarray, " m"],
    weights: Float[np.ndarray, " n"],
    held_out_weights: Float[np.ndarray, " m"],
    level: float | int = 0.1,
    key: Key = 0,
) -> Bool[np.ndarray, " n"]:
    """Anomalous items under distribution shift, with a false discovery rate of at most `level`.

    Weighted p-values depend on each other, and the Benjamini-Hochberg procedure alone is not proven to be valid for
    them. So a number of rejections is computed for each item, with that item counted as rejected and as a further
    calibration item for the others. An item is a candidate if its p-value is small enough for its number. With one
    random u in (0, 1) for all items, the candidates whose number is at most r / u remain, for the largest r with at
    least r of them (weighted conformalised selection, Jin & Candès 2023, arXiv 2307.09291, algorithm 1, homogeneous
    pruning). With the true weights, the false discovery rate is at most `level`.

    Args:
        scores: scores of new items, see `weighted_conformal_p_values`.
        held_out: scores of held-out items.
        weights: weights of the new items.
        held_out_weights: weights of the held-out items.
        level: false discovery rate.
        key: key of u.
    """
    if not 0 < level < 1:
        raise InputError(f"got level={level}; expected a rate between 0 and 1; try 0.1")
    scores = np.nan_to_num(np.asarray(scores, float), nan=np.inf, posinf=np.inf)
    own, n = np.asarray(weights, float), len(scores)
    p = weighted_conformal_p_values(scores, held_out, own, held_out_weights)
    above, total = _weight_above(scores, held_out, held_out_weights)
    size = np.zeros(n, int)
    thresholds = level * np.arange(1, n + 1) / n
    for j in np.flatnonzero(p <= level):
        # p-values of the other items, with item j as a further held-out item
        beside = (above + own[j] * (scores[j] >= scores)) / (total + own[j])
        beside[j] = 0.0
        passed = np.flatnonzero(np.sort(beside) <= thresholds)
        size[j] = passed[-1] + 1 if len(passed) else 0
    candidates = (p <= level * size / n) & (size > 0)
    # without u, 26 candidates whose numbers are all 27 would all be dropped
    number = size * as_generator(key).random()
    ordered, r = np.sort(number[candidates]), np.arange(n + 1)
    enough = np.flatnonzero(np.searchsorted(ordered, r, side="right") >= r)
    return candidates & (number <= enough[-1])


def false_discovery_bound(
    p_values: Float[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"],
    rows: int,
    confidence: float = 0.9,
    key: Key = 0,
) -> float:
    """An upper bound on the share of normal items among chosen items, valid for any selection rule.

    For normal items the number of p-values up to k / (m + 1) is beta-binomial, whatever the score. Simulation gives
    bounds c_k of these numbers that hold for all k simultaneously with probability `confidence`. Then at most min over
    k of c_k + #{chosen with p > k / (m + 1)} of the chosen items are normal (Blanchard, Neuvial & Roquain 2020, arXiv
    1703.02307; for conformal p-values Gazin, Blanchard & Roquain 2024, arXiv 2310.18108).

    Args:
        p_values: split-conformal p-values of all tested items.
        chosen: which items were chosen as anomalous.
        rows: number m of calibration items.
        confidence: probability with which the bound holds.
        key: key of the simulation.

    Raises:
        InputError: without calibration items, or for a confidence out of range.
    """
    from scipy.stats import betabinom

    if rows < 1 or not 0 < confidence < 1:
        raise InputError(
            f"got {rows} calibration rows and confidence={confidence}; expected at least one, and a number in (0, 1)"
        )
    p, chosen = np.asarray(p_values, float), np.asarray(chosen, bool)
    if not chosen.any():
        return 0.0
    n = len(p)
    ranks = np.unique(np.geomspace(1, rows, min(rows, 60)).astype(int))
    generator = as_generator(key)
    # P(N_k >= c) for every count c and rank k
    mass = betabinom.pmf(np.arange(n + 1)[:, None], n, ranks, rows + 1 - ranks)
    tail = np.cumsum(mass[::-1], axis=0)[::-1]
    smallest = np.empty(_SIMULATED)
    for i in range(_SIMULATED):
        # the share of normal items beyond the k-th largest calibration score
        share = np.sort(generator.random(rows))[ranks - 1]
        counts = np.searchsorted(np.sort(generator.random(n)), share)
        smallest[i] = tail[counts, np.arange(len(ranks))].min()
    level = np.quantile(smallest, 1 - confidence, method="lower")
    bounds = np.array([np.flatnonzero(column >= level)[-1] for column in tail.T])  # the largest plausible count
    outside = np.sum(p[chosen] > (ranks / (rows + 1))[:, None] * (1 + 1e-12), axis=1)
    return float(min(np.min(bounds + outside), chosen.sum()) / chosen.sum())
