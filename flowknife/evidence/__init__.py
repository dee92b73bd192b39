"""Learned likelihoods p(y | x) from pairs, and comparison of several simulators."""

from flowknife.evidence._compare import Comparison, Odds, compare
from flowknife.evidence._likelihood import LearnedLikelihood, likelihood

__all__ = ["Comparison", "LearnedLikelihood", "Odds", "compare", "likelihood"]
