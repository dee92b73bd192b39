"""Advice on failed checks, one sentence for each kind."""

from collections.abc import Iterable
from dataclasses import replace

from flowknife.diagnostics._check import Check

_ADVICE = {
    "round trip": "the inverse is inaccurate; try a smaller train.learning_rate",
    "distance of the latents": "the density does not fit the rows; try more train.steps or train.minutes",
    "held-out nll": "the model is worse than a simple one; try more train.steps or, for few rows, more "
    "train.weight_decay",
    "held-out": "the model is worse than a simple one; try more train.steps, or more rows",
    "simulation-based calibration": "posteriors are too narrow, too wide or shifted, see calibration['ranks'].verdict; "
    "try more num_simulations if too narrow, more train.steps if too wide; region and intervals remain valid",
    "coverage of central intervals": "see calibration['coverage'].verdict; try more num_simulations if too narrow, "
    "more train.steps if too wide; intervals(y) remains valid",
    "TARP": "posteriors are not calibrated jointly; try more train.steps; region(y) remains valid",
    "highest-density coverage": "highest-density regions have the wrong coverage; use region(y), which is calibrated",
    "calibrated 90 % regions": "these pairs do not have the distribution of the calibration pairs; try pairs from "
    "the same prior and simulator",
    "width of the posterior": "the data hardly constrain this parameter; try more train.steps, an embedding for "
    "series, sets and images, or other data",
    "width against the exact": "the posterior is wider or narrower than the exact one; try more "
    "num_simulations, more train.steps, an embedding, focus(y), or sample(refine=True)",
    "means against the exact": "posterior means are shifted; try more num_simulations, more train.steps, an embedding, "
    "focus(y), or sample(refine=True)",
    "disagreement": "fits from other seeds give other results; try more num_simulations or a larger ensemble",
    "training steps": "the model is hardly trained; try more train.steps or train.minutes",
    "share of": "rows differ from the calibration rows, or are too few; try more rows",
    "expected calibration error": "probabilities are too high or too low; try more labelled items to calibrate with",
}

_OTHERWISE = "try a longer training, or more data"


def advised(checks: Iterable[Check]) -> list[Check]:
    """The same checks, with advice added to failed ones without a note."""
    return [check if check.passed or check.note else replace(check, note=advice_for(check.name)) for check in checks]


def advice_for(name: str) -> str:
    """Advice on a failed check of this name."""
    return next((text for start, text in _ADVICE.items() if name.startswith(start)), _OTHERWISE)
