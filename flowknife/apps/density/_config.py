"""Settings of `density`."""

from typing import Literal

import pydantic

from flowknife._settings import Settings
from flowknife.train import Training


class DensityConfig(Settings):
    """Settings of `density`; those that are None are chosen from the data."""

    seed: int = 0
    layers: int = pydantic.Field(8, ge=1, description="couplings")
    width: int = pydantic.Field(64, ge=1, description="hidden units of each coupling's network")
    depth: int = pydantic.Field(2, ge=1, description="hidden layers of each coupling's network")
    scalar: Literal["spline", "affine", "additive"] = "spline"
    mixing: Literal["lu", "orthogonal", "permute"] = "lu"
    smoothing: float | None = pydantic.Field(
        None,
        ge=0,
        description="noise on the training rows, in standard deviations; default 3.6/sqrt(rows), at most 0.1",
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="rows with a p-value below are flagged")
    train: Training = Training()
