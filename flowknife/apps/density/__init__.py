"""Application 1, density estimation: the rows of a table on the left, N(0, I) on the right."""

from flowknife.apps.density._config import DensityConfig
from flowknife.apps.density._fit import density
from flowknife.apps.density._result import Density

__all__ = ["Density", "DensityConfig", "density"]
