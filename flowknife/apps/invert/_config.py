"""Settings of `invert`."""

from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings
from flowknife.train import Training

TASK: Applies = {
    "num_simulations": ("data", ("simulator",)),
    "scale": ("model", ("partitioned without noise",)),
    "features": ("model", ("conditional", "partitioned with noise")),
}
"""Settings whose effect depends on what is inverted: where the data come from, and which model the noise asks for."""


class InvertConfig(Settings):
    """Settings of `invert`; those that are None are chosen from the data."""

    applies: ClassVar[Applies] = {"independence": ("form", ("partitioned",))}

    seed: int = 0
    form: Literal["conditional", "partitioned"] = "conditional"
    num_simulations: int | None = pydantic.Field(
        None, ge=8, description="simulations, if there are no pairs yet; default 10,000"
    )
    noise: float | tuple[float, ...] | None = pydantic.Field(
        None,
        description="standard deviation of Gaussian noise to add to simulated data, in their units; default: none, or "
        "a hundredth of the data's own if a simulator is exact (conditional)",
    )
    scale: float | None = pydantic.Field(
        None,
        gt=0,
        description="width of the law of data without noise (partitioned), in standard deviations; default 0.02",
    )
    layers: int = pydantic.Field(8, ge=1, description="couplings")
    width: int = pydantic.Field(64, ge=1, description="hidden units of each network")
    depth: int = pydantic.Field(2, ge=1, description="residual blocks of each network")
    features: int | None = pydantic.Field(
        None, ge=0, description="learned features of an observation, beside its numbers as they are; default 64"
    )
    matching: float = pydantic.Field(
        0.0, ge=0, description="weight of MMD terms on (y, z) and on x, beside the likelihood"
    )
    independence: float | None = pydantic.Field(
        None, ge=0, description="weight of the independence of z and y, beside the likelihood (partitioned); default 0"
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="observations with a p-value below are flagged")
    train: Training = Training()
