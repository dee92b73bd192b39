"""Settings of `density`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Settings
from flowknife.apps._tables import Categories, Dates
from flowknife.train import Training


class DensityConfig(Settings):
    """Settings of `density`; settings that are None are chosen from the data."""

    chosen: ClassVar[Mapping[str, str]] = {
        "mixing": "lu; permute for more than 200 columns",
        "train.steps": "20 sqrt(rows), from 300 to 6,000, unless another end of training is set",
        "train.batch_size": "512; fewer for more than 100 columns",
        "train.learning_rate": "0.004",
        "train.patience": "8",
        "train.weight_decay": "600 columns / rows, from 0.5 to 20, or 0; given conditions, 1 up to 50,000 rows",
        "train.average": "0.998",
    }

    seed: int = pydantic.Field(0, description="seed of the random numbers")
    layers: int = pydantic.Field(8, ge=1, le=10_000, description="couplings")
    width: int = pydantic.Field(64, ge=1, le=16_384, description="hidden units of each coupling's network")
    depth: int = pydantic.Field(2, ge=1, le=1000, description="hidden layers of each coupling's network")
    scalar: Literal["spline", "affine", "additive"] = pydantic.Field(
        "spline", description="map that the couplings apply to each number"
    )
    mixing: Literal["lu", "orthogonal", "permute"] | None = pydantic.Field(
        None, description="linear map between the couplings"
    )
    smoothing: float | None = pydantic.Field(
        None,
        ge=0,
        description="noise on the training rows, in standard deviations; default 3.6/sqrt(rows), at most 0.1",
    )
    categories: Categories = None
    dates: Dates = None
    missing: Literal["refuse", "model"] = pydantic.Field("refuse", description="what to do with missing values")
    ensemble: int = pydantic.Field(
        1, ge=1, le=100, description="fits from different seeds that are averaged; each takes as long as one"
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="rows with a p-value below it are flagged")
    train: Training = pydantic.Field(Training(), description="how to train, see `Training`")
