"""What to do about a check that failed: one sentence for each kind."""

from collections.abc import Iterable
from dataclasses import replace

from flowknife.diagnostics._check import Check

_ADVICE = {
    "round trip": "numbers change on the way to the latent and back; try a smaller train.learning_rate",
    "distance of the latents": "the density does not follow the rows; try more train.steps or train.minutes",
    "held-out nll": "the model is worse than a simple one; try more train.steps, or for few rows more "
    "train.weight_decay",
    "held-out": "the model is worse than a simple one; try more train.steps, or more rows",
    "simulation-based calibration": "posteriors are too narrow, too wide or shifted, see calibration['ranks'].verdict; "
    "try more num_simulations if too narrow, more train.steps if too wide; region and intervals hold all the same",
    "coverage of central intervals": "see calibration['coverage'].verdict; try more num_simulations if too narrow, "
    "more train.steps if too wide; intervals(y) holds all the same",
    "TARP": "posteriors are not calibrated jointly; try more train.steps; region(y) holds all the same",
    "highest-density coverage": "regions of highest density hold too few or too many truths; use region(y), which is "
    "calibrated",
    "calibrated 90 % regions": "the promise is broken, so these pairs are not like the calibration pairs; try pairs of "
    "the same prior and simulator",
    "width of the posterior": "the data hardly narrow this parameter down; try more train.steps, an embedding for "
    "series, sets and images, or other data",
    "width against the exact": "the posterior is too wide or too narrow beside the exact one; try more "
    "num_simulations, more train.steps, an embedding, focus(y), or sample(refine=True)",
    "means against the exact": "posterior means are shifted; try more num_simulations, more train.steps, an embedding, "
    "focus(y), or sample(refine=True)",
    "disagreement": "fits from other seeds give other answers; try more num_simulations or a larger ensemble",
    "training steps": "the model is hardly trained; try more train.steps or train.minutes",
    "share of": "rows are not like the calibration rows, or there are too few of them; try more rows",
    "expected calibration error": "probabilities are too sure or too unsure; try more labelled items to calibrate with",
}

_OTHERWISE = "try a longer training, or more data"


def advised(checks: Iterable[Check]) -> list[Check]:
    """The same checks; one that failed without a note has one on what to do next."""
    return [check if check.passed or check.note else replace(check, note=advice_for(check.name)) for check in checks]


def advice_for(name: str) -> str:
    """What to do where the check of this name failed."""
    return next((text for start, text in _ADVICE.items() if name.startswith(start)), _OTHERWISE)
