"""Applications 5 to 7, inverse problems: parameters on the left, data and a latent on the right."""

from flowknife.apps.invert._config import InvertConfig
from flowknife.apps.invert._fit import invert
from flowknife.apps.invert._result import Posterior
from flowknife.apps.invert._simulate import simulate

__all__ = ["InvertConfig", "Posterior", "invert", "simulate"]
