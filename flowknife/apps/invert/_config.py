"""Settings of `invert`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings
from flowknife.train import Training

TASK: Applies = {
    "num_simulations": ("data", ("simulator",)),
    "scale": ("model", ("partitioned without noise",)),
    "features": ("model", ("conditional", "partitioned with noise")),
}
"""Settings whose effect depends on the source of the data, and on the model that follows from the noise."""


class InvertConfig(Settings):
    """Settings of `invert`; settings that are None are chosen from the data."""

    applies: ClassVar[Applies] = {
        "independence": ("form", ("partitioned",)),
        "embedding": ("form", ("conditional",)),
        "emulate": ("form", ("conditional",)),
    }
    chosen: ClassVar[Mapping[str, str]] = {
        "train.steps": "20 sqrt(pairs), at least 500; 40 sqrt(pairs) for more than 50,000 pairs, at most 20,000; "
        "unless another end of training is set",
        "train.batch_size": "256",
        "train.learning_rate": "0.004 for few pairs, 0.001 for many",
        "train.patience": "15",
        "train.weight_decay": "0 for many pairs; for few, the best of 0, 1 and 5 on held-out pairs",
        "train.average": "0.998",
    }

    seed: int = pydantic.Field(0, description="seed of the random numbers")
    form: Literal["conditional", "partitioned"] = pydantic.Field(
        "conditional", description="where the data enter: as a condition of every coupling, or as a block on the right"
    )
    num_simulations: int | None = pydantic.Field(
        None, ge=8, description="number of simulations, if a simulator is given; default 10,000"
    )
    noise: float | tuple[float, ...] | None = pydantic.Field(
        None,
        description="standard deviation of Gaussian noise to add to simulated data, in their units; default: none, or "
        "1 % of the local spread of the data if they have no noise (conditional)",
    )
    scale: float | None = pydantic.Field(
        None,
        gt=0,
        description="width of the law of noise-free data (partitioned), in standard deviations; default 0.02",
    )
    layers: int = pydantic.Field(8, ge=1, le=10_000, description="couplings")
    width: int = pydantic.Field(64, ge=1, le=16_384, description="hidden units of each network")
    depth: int = pydantic.Field(2, ge=1, le=1000, description="residual blocks of each network")
    features: int | None = pydantic.Field(
        None, ge=0, description="learned features of an observation, in addition to its numbers; default 64"
    )
    embedding: Literal["numbers", "set", "series", "image"] | None = pydantic.Field(
        None,
        description="kind of observation, which a network summarises and where NaN means a missing number: "
        "numbers, set (in any order), series (regular steps) or image; default: numbers, none of them missing",
    )
    observation: tuple[int, ...] | None = pydantic.Field(
        None,
        description="shape of an observation with an embedding: (elements,) or (elements, numbers of each), (steps,) "
        "or (steps, channels), (height, width) or (height, width, channels); default: that of the pairs",
    )
    ensemble: int = pydantic.Field(
        1, ge=1, le=100, description="fits from different seeds that are averaged; each takes as long as one"
    )
    emulate: bool | None = pydantic.Field(
        None,
        description="continue training with pairs of an emulator, for simulators with noise of their own; default: if "
        "there are few pairs, no end of training is set, and held-out pairs confirm that it helps",
    )
    matching: float = pydantic.Field(
        0.0, ge=0, description="weight of MMD terms on (y, z) and on x, added to the likelihood"
    )
    independence: float | None = pydantic.Field(
        None,
        ge=0,
        description="weight of the independence of z and y, added to the likelihood (partitioned); default 0",
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="observations with a p-value below it are flagged")
    train: Training = pydantic.Field(Training(), description="how to train, see `Training`")
