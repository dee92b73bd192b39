"""Settings of image runs."""

from typing import Literal

import pydantic

from flowknife.data import Augmentation
from flowknife.errors import InputError
from flowknife.train import Training

_APPLIES = {
    "levels": ("wavelet", "lattice", "glow"),
    "steps_per_level": ("glow", "jet"),
    "scalar": ("glow",),
    "memory": ("glow", "jet"),
    "parallel": ("wavelet", "lattice"),
}
"""The architectures to which a setting applies, where not to all."""


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
    scalar: Literal["affine", "additive", "spline"] = pydantic.Field(
        "affine", description="glow: what its couplings do to single numbers"
    )
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

    def require_applicable(self) -> None:
        """Refuse what would have no effect.

        Raises:
            InputError: for a setting that the architecture does not have.
        """
        for name, those in _APPLIES.items():
            value = getattr(self, name)
            if self.architecture not in ("auto", *those) and value != type(self).model_fields[name].default:
                raise InputError(
                    f"got {name}={value} for architecture={self.architecture}; expected it with {' or '.join(those)} "
                    f"alone; try architecture={those[-1]}, or leave {name} out"
                )
