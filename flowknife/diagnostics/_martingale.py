"""Change detection in a stream: a test martingale against exchangeability, from sequential conformal p-values."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from flowknife._types import Key, as_generator
from flowknife.diagnostics._check import Check
from flowknife.errors import InputError

_JUMPS = (1e-3, 1e-2, 1e-1)  # jump rates of the bettor, averaged
_POWERS = (0.35, 0.7, 0.9)  # exponents of the bets on small p-values and on large ones


@dataclass(frozen=True)
class Monitoring:
    """The comparison of a stream of rows with calibration rows.

    Attributes:
        p_values: p-value of each row among the calibration rows and earlier rows; uniform and independent without a
            change.
        log_wealth: natural log of the capital of a bettor who starts with 1, after each row.
        alpha: the probability of a false alarm, over a stream of any length.
        alarm: index of the first row at which the capital is 1 / alpha or more; None without an alarm.
        change: index of the most likely start of the change, if there is an alarm.
    """

    p_values: Float[np.ndarray, " n"] = field(repr=False)
    log_wealth: Float[np.ndarray, " n"] = field(repr=False)
    alpha: float
    alarm: int | None
    change: int | None

    @property
    def verdict(self) -> str:
        """A summary in one sentence."""
        if self.alarm is None:
            return f"No change found in {len(self.p_values):,} rows (false alarms: at most {self.alpha:g})."
        return (
            f"Alarm at row {self.alarm + 1:,} of {len(self.p_values):,}; the rows began to differ at about row "
            f"{(self.change or 0) + 1:,} (false alarms: at most {self.alpha:g})."
        )

    @property
    def check(self) -> Check:
        """The check that there was no alarm."""
        peak = float(np.max(self.log_wealth, initial=0.0)) / np.log(10)
        return Check("log10 of the largest capital of a bet against the stream", peak, float(-np.log10(self.alpha)))


def monitored(
    scores: Float[np.ndarray, " n"],
    held_out: Float[np.ndarray, " m"],
    alpha: float = 0.01,
    key: Key = None,
) -> Monitoring:
    """Watch a stream of anomaly scores: a conformal test martingale.

    Each row has a p-value among the calibration rows and all earlier rows, with ties broken at random. If all rows are
    exchangeable, these p-values are independent and uniform (Vovk et al. 2005, theorem 8.2). A bettor stakes its
    capital on small, large or uniform p-values with densities r p^(r - 1), and switches between these bets at a small
    rate (simple jumper, Vovk et al. 2021, arXiv 2102.10439). The capital is a martingale, so the probability that it
    ever reaches 1 / alpha is at most alpha (Ville 1939), for any score.

    Args:
        scores: scores of the rows, in order; larger is more anomalous.
        held_out: scores of calibration rows.
        alpha: the probability of a false alarm.
        key: breaks ties.

    Raises:
        InputError: for an alpha out of range.
    """
    if not 0 < alpha < 1:
        raise InputError(f"got alpha={alpha}; expected a probability between 0 and 1; try 0.01")
    p = _online_p_values(np.asarray(scores, float), np.asarray(held_out, float), as_generator(key))
    bets = np.stack([np.ones_like(p), *(_bet(q, r) for q in (p, 1 - p) for r in _POWERS)], axis=1)
    wealth = np.logaddexp.reduce([_jumper(bets, rate) for rate in _JUMPS], axis=0) - np.log(len(_JUMPS))
    crossed = np.flatnonzero(wealth >= -np.log(alpha))
    if not len(crossed):
        return Monitoring(p, wealth, float(alpha), None, None)
    alarm = int(crossed[0])
    return Monitoring(p, wealth, float(alpha), alarm, _begin(np.log(bets[: alarm + 1])))


def _online_p_values(scores, held_out, generator):
    """Smoothed conformal p-values, each among all earlier rows."""
    seen = np.sort(np.nan_to_num(held_out, nan=np.inf)).tolist()
    from bisect import bisect_left, bisect_right, insort

    p = np.empty(len(scores))
    for i, score in enumerate(np.nan_to_num(scores, nan=np.inf).tolist()):
        low, high = bisect_left(seen, score), bisect_right(seen, score)
        p[i] = (len(seen) - high + generator.random() * (high - low + 1)) / (len(seen) + 1)
        insort(seen, score)
    return p


def _bet(p, power):
    return power * np.maximum(p, 1e-12) ** (power - 1)


def _jumper(bets, rate):
    """Log capital of a bettor that divides its capital among all bets and redistributes a share `rate` at each row."""
    share = np.full(bets.shape[1], 1 / bets.shape[1])
    log_total, found = 0.0, np.empty(len(bets))
    for i, bet in enumerate(bets):
        share = ((1 - rate) * share + rate / len(share)) * bet
        total = share.sum()
        share, log_total = share / total, log_total + np.log(total)
        found[i] = log_total
    return found


def _begin(log_bets):
    """The starting row for which a single bet would have won most until the end."""
    gains = np.cumsum(log_bets[::-1], axis=0)[::-1]
    return int(np.unravel_index(np.argmax(gains), gains.shape)[0])
