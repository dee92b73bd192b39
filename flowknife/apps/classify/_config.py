"""Settings of generative classification."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings
from flowknife.apps._tables import Categories, Dates
from flowknife.data import Augmentation
from flowknife.data.augmentation import Rotation, Shear, Shift, Zoom
from flowknife.train import Training


class Moves(Augmentation):
    """Augmentation that preserves the class; without mirroring, since a mirrored b is a d."""

    flip: bool | None = pydantic.Field(False, description="mirror half of the images")
    zoom: Zoom = 0.1
    shear: Shear = 0.2
    rotation: Rotation = 10.0
    shift: Shift = 0.08


ITEMS: Applies = {
    "smoothing": ("items", ("rows",)),
    "categories": ("items", ("rows",)),
    "dates": ("items", ("rows",)),
    "missing": ("items", ("rows",)),
    "image_size": ("items", ("images",)),
    "bits": ("items", ("images",)),
    "augment": ("items", ("images",)),
}
"""Settings that apply only to rows or only to images."""


class ClassifyConfig(Settings):
    """Settings of `classify`; settings that are None are chosen from the data (rows or images)."""

    chosen: ClassVar[Mapping[str, str]] = {
        "train.minutes": "8 for images, unless another end of training is set",
        "train.steps": "20 sqrt(rows), from 500 to 6,000; 5,000 for images; unless another end of training is set",
        "train.batch_size": "512 rows; 16 to 128 images, by their size",
        "train.learning_rate": "0.004 sqrt(2 / columns), at least 0.0005; 0.001 for images",
        "train.patience": "10; 40 for images",
        "train.evaluate_every": "100 for images; for rows 25 at first, then a quarter of the steps made",
        "train.weight_decay": "0; 0.3 for images",
        "train.average": "0.998; 0.995 for images",
    }

    seed: int = pydantic.Field(0, description="seed of the random numbers")
    law: Literal["mixture", "label"] = pydantic.Field(
        "mixture", description="law of the class: mixture, one Gaussian per class, or label, a one-hot block"
    )
    beta: float | None = pydantic.Field(
        None,
        ge=0,
        description="weight of the labels; 1/dimensions is the plain likelihood; default 4 for rows, 0.5 for images",
    )
    classes: int | None = pydantic.Field(
        None,
        ge=2,
        description="number of classes, if labels are 0, 1, ... and some do not occur; default: those that occur",
    )
    layers: int = pydantic.Field(6, ge=1, le=10_000, description="couplings")
    width: int | None = pydantic.Field(
        None,
        ge=4,
        le=16_384,
        description="hidden units of each coupling's network; default 64 for rows, 256 for images",
    )
    depth: int = pydantic.Field(2, ge=1, le=1000, description="hidden layers of each coupling's network")
    scalar: Literal["spline", "affine", "additive"] | None = pydantic.Field(
        None, description="map that the couplings apply to each number; default spline for rows, affine for images"
    )
    smoothing: float | None = pydantic.Field(
        None,
        ge=0,
        description="noise on the training rows, in standard deviations; default: by the numbers of rows and columns",
    )
    categories: Categories = None
    dates: Dates = None
    missing: Literal["refuse", "model"] | None = pydantic.Field(
        None, description="what to do with missing values of rows; default refuse"
    )
    image_size: int | None = pydantic.Field(None, ge=4, description="side in pixels; default: the images', at most 64")
    bits: int | None = pydantic.Field(None, ge=1, le=8, description="bits per channel; default 5")
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="items with a p-value below it are flagged")
    augment: Moves | None = pydantic.Field(None, description="changes of the training images, see `Moves`")
    train: Training = pydantic.Field(Training(), description="how to train, see `Training`")
