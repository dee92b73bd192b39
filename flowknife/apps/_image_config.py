"""Settings of image runs."""

from typing import Literal

import pydantic

from flowknife.data import Augmentation
from flowknife.train import Training


class ImagesConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Settings of `images`."""

    seed: int = 0
    image_size: int | None = pydantic.Field(
        None, ge=4, description="side in pixels; default: the pictures', at most 64"
    )
    crop: float = pydantic.Field(1.0, gt=0, le=1, description="share of the shorter side that is kept, from the middle")
    bits: int = pydantic.Field(5, ge=1, le=8, description="bits per channel; 8 compares with papers, 5 learns faster")
    architecture: Literal["auto", "wavelet", "lattice", "glow", "realnvp", "jet"] = pydantic.Field(
        "auto", description="auto: lattice for pictures of which most is of one value (black, say), else wavelet"
    )
    dequantisation: Literal["auto", "uniform", "variational"] = pydantic.Field(
        "auto", description="noise within the bins: drawn evenly, or learned (auto: learned for wavelet)"
    )
    levels: int | None = pydantic.Field(None, ge=1, description="scales; default: by image size")
    steps_per_level: int = pydantic.Field(8, ge=1, description="steps of glow per level; couplings of jet")
    memory: Literal["standard", "reversible"] = pydantic.Field(
        "standard", description="glow and jet; reversible: activations are rebuilt, not kept, for a third more time"
    )
    width: int = pydantic.Field(128, ge=8, description="hidden channels")
    parallel: int = pydantic.Field(
        1, ge=1, description="levels of wavelet and lattice that are trained at the same time, in threads"
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="pictures with a p-value below are flagged")
    augment: Augmentation = Augmentation()
    train: Training = Training()
