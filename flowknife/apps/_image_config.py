"""Settings of image runs."""

from typing import Literal

import pydantic

from flowknife.train import Training


class Augmentation(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Changes of the training pictures, drawn anew for every batch; never applied to what is scored."""

    flip: bool | None = pydantic.Field(
        None, description="mirror half of the pictures; default: if the mean picture is symmetric"
    )


class ImagesConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Settings of `images`."""

    seed: int = 0
    image_size: int | None = pydantic.Field(
        None, ge=4, description="side in pixels; default: the pictures', at most 64"
    )
    bits: int = pydantic.Field(5, ge=1, le=8, description="bits per channel; 8 compares with papers, 5 learns faster")
    architecture: Literal["wavelet", "glow", "realnvp"] = "wavelet"
    levels: int | None = pydantic.Field(None, ge=1, description="scales; default: by image size")
    steps_per_level: int = pydantic.Field(8, ge=1, description="steps of glow per level")
    width: int = pydantic.Field(128, ge=8, description="hidden channels")
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="pictures with a p-value below are flagged")
    augment: Augmentation = Augmentation()
    train: Training = Training()
