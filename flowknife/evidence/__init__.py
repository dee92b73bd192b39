"""What data say about parameters and about simulators: p(y | x) learnt from pairs, and the odds of several models."""

from flowknife.evidence._compare import Comparison, Odds, compare
from flowknife.evidence._likelihood import LearnedLikelihood, likelihood

__all__ = ["Comparison", "LearnedLikelihood", "Odds", "compare", "likelihood"]
