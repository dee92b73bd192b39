"""Nominal and empirical coverage of regions, before and after calibration, and sharpness of posteriors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from flowknife.diagnostics._check import Check
from flowknife.diagnostics._regions import conformal_quantile
from flowknife.errors import InputError

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_JUDGED = 0.9  # the level whose coverage is checked
_WIDEST = 1.1  # largest expected posterior width, in prior widths
_SHARP = 1.15, 0.15  # ratio to the exact width, and shift of the mean in exact standard deviations


@dataclass(frozen=True)
class Reached:
    """Nominal and empirical coverage of regions on `count` held-out items.

    Attributes:
        levels: nominal levels, shape (k,).
        before: coverage of the model's highest-density regions, shape (k,).
        after: coverage of conformal regions, by kind of region, shape (k,); each half of the items is tested with
            regions that the other half calibrates.
        count: number of items.
    """

    levels: Float[np.ndarray, " k"] = field(repr=False)
    before: Float[np.ndarray, " k"] = field(repr=False)
    after: Mapping[str, Float[np.ndarray, " k"]] = field(repr=False)
    count: int

    @property
    def verdict(self) -> str:
        """A summary in one sentence."""
        place = int(np.argmin(np.abs(self.levels - _JUDGED)))
        after = ", ".join(f"{reached[place]:.1%} {kind}" for kind, reached in self.after.items())
        return (
            f"Regions of level {self.levels[place]:.0%} contain {self.before[place]:.1%} of {self.count:,} true values "
            f"before calibration, and after it {after}."
        )

    @property
    def check(self) -> Check:
        """The check that calibrated 90 % regions have 90 % coverage, up to sampling noise."""
        place = int(np.argmin(np.abs(self.levels - _JUDGED)))
        level, before = self.levels[place], self.before[place]
        off = {kind: abs(reached[place] - level) for kind, reached in self.after.items()}
        worst = max(off, key=off.__getitem__)
        # both the tested and the calibration items contribute to the variance
        limit = 4 * (2 * level * (1 - level) / self.count) ** 0.5 + 2 / self.count
        reached = f"{before:.1%} before, {self.after[worst][place]:.1%} after"
        return Check(f"calibrated {100 * level:.0f} % regions ({reached}), off by", float(off[worst]), limit)


def reached_coverage(
    mass: Float[np.ndarray, " n"],
    scores: Mapping[str, Float[np.ndarray, " n"]],
    levels: Sequence[float] = LEVELS,
) -> Reached:
    """Coverage before and after calibration.

    Args:
        mass: mass of the smallest highest-density region that contains the true value, for each item.
        scores: conformity scores by kind of region, one for each item; larger is more unusual.
        levels: nominal levels.

    Raises:
        InputError: for fewer than two items.
    """
    count, level = len(mass), np.asarray(levels, float)
    if count < 2:
        raise InputError(f"got {count} items; expected at least 2 to calibrate and to judge")
    halves = np.arange(count) % 2 == 0

    def after(score):
        inside = np.zeros((len(level), count), bool)
        for half in (halves, ~halves):
            bounds = np.array([conformal_quantile(score[~half], a) for a in level])
            inside[:, half] = score[half] <= bounds[:, None]
        return inside.mean(axis=1)

    before = np.mean(mass <= level[:, None], axis=1)
    return Reached(level, before, {kind: after(np.asarray(score)) for kind, score in scores.items()}, count)


@dataclass(frozen=True)
class Sharpness:
    """Sharpness of posteriors: their widths relative to the prior and to exact posteriors.

    Attributes:
        names: names of the parameters.
        truth: true parameters, shape (n, d).
        mean: posterior means, shape (n, d).
        spread: posterior standard deviations, shape (n, d).
        prior_spread: standard deviations of the prior, shape (d,).
        exact_ratio: ratio of the width to the exact width, for observations with a known exact posterior, shape (k, d).
        exact_shift: distance of the means in exact standard deviations, for the same observations, shape (k, d).
        k_hat: Pareto shape of the importance weights of each weighted observation, shape (m,).
    """

    names: tuple[str, ...]
    truth: Float[np.ndarray, "n d"] = field(repr=False)
    mean: Float[np.ndarray, "n d"] = field(repr=False)
    spread: Float[np.ndarray, "n d"] = field(repr=False)
    prior_spread: Float[np.ndarray, " d"] = field(repr=False)
    exact_ratio: Float[np.ndarray, "k d"] = field(repr=False)
    exact_shift: Float[np.ndarray, "k d"] = field(repr=False)
    k_hat: Float[np.ndarray, " m"] = field(repr=False)

    @property
    def contraction(self) -> Float[np.ndarray, " d"]:
        """1 - E var(x | y) / var(x) of each parameter: 0 for uninformative data, 1 for data that determine it."""
        return 1 - np.mean(self.spread**2, axis=0) / self.prior_spread**2

    @property
    def width(self) -> Float[np.ndarray, " d"]:
        """The expected posterior width of each parameter, in prior widths."""
        return self.spread.mean(axis=0) / self.prior_spread

    @property
    def verdict(self) -> str:
        """A summary in one sentence."""
        widest = int(np.argmax(self.width))
        words = f"Expected posterior width: {self.width.min():.2g} to {self.width.max():.2g} of the prior's"
        words += f" (widest: {self.names[widest]})" if len(self.names) > 1 else ""
        if len(self.k_hat):
            trusted = len(self.exact_ratio)
            words += f"; weights are reliable for {trusted} of {len(self.k_hat)} observations"
        if len(self.exact_ratio):
            ratio = np.median(self.exact_ratio, axis=0)
            words += f", where widths are {ratio.min():.2f} to {ratio.max():.2f} of the exact ones"
        return f"{words}."

    @property
    def checks(self) -> list[Check]:
        """The checks that posteriors are no wider than the prior, and have the width and mean of the exact ones."""
        worst = int(np.argmax(self.width))
        name = f"width of the posterior in prior widths (widest: {self.names[worst]})"
        found = [Check(name, float(self.width[worst]), _WIDEST)]
        if len(self.exact_ratio):
            ratio = np.median(self.exact_ratio, axis=0)
            factor = np.maximum(ratio, 1 / np.maximum(ratio, 1e-9))
            worst = int(np.argmax(factor))
            name = f"width against the exact posterior, a factor of (worst: {self.names[worst]}, {ratio[worst]:.2f})"
            shift = np.median(self.exact_shift, axis=0)
            other = f"means against the exact posterior, in its widths (worst: {self.names[int(np.argmax(shift))]})"
            found += [Check(name, float(factor[worst]), _SHARP[0]), Check(other, float(shift.max()), _SHARP[1])]
        return found
