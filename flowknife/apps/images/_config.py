"""Settings of image runs."""

from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings
from flowknife.data import Augmentation
from flowknife.train import Training


class ImagesConfig(Settings):
    """Settings of `images`; those that are None are chosen from the images."""

    applies: ClassVar[Applies] = {
        "levels": ("architecture", ("wavelet", "lattice", "glow")),
        "steps_per_level": ("architecture", ("glow", "jet")),
        "scalar": ("architecture", ("glow",)),
        "memory": ("architecture", ("glow", "jet")),
        "parallel": ("architecture", ("wavelet", "lattice")),
    }

    seed: int = 0
    image_size: int | None = pydantic.Field(None, ge=4, description="side in pixels; default: the images', at most 64")
    crop: float = pydantic.Field(1.0, gt=0, le=1, description="share of the shorter side that is kept, from the middle")
    bits: int = pydantic.Field(5, ge=1, le=8, description="bits per channel; 8 compares with papers, 5 learns faster")
    architecture: Literal["wavelet", "lattice", "glow", "realnvp", "jet"] | None = pydantic.Field(
        None, description="default: lattice for images of which most is of one value (black, say), else wavelet"
    )
    dequantisation: Literal["uniform", "variational"] | None = pydantic.Field(
        None, description="noise within the bins: uniform, or learned (variational); default: learned for wavelet"
    )
    levels: int | None = pydantic.Field(None, ge=1, description="scales; default: by image size")
    steps_per_level: int | None = pydantic.Field(
        None, ge=1, description="steps of glow per level, or couplings of jet; default 8"
    )
    scalar: Literal["affine", "additive", "spline"] | None = pydantic.Field(
        None, description="glow: what its couplings do to single numbers; default affine"
    )
    memory: Literal["standard", "reversible"] | None = pydantic.Field(
        None,
        description="glow and jet; reversible: activations are rebuilt, not kept, for a third more time; default "
        "standard",
    )
    width: int = pydantic.Field(128, ge=8, description="hidden channels")
    parallel: int | None = pydantic.Field(
        None, ge=1, description="levels of wavelet and lattice that are trained at the same time, in threads; default 1"
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="images with a p-value below are flagged")
    augment: Augmentation = Augmentation()
    train: Training = Training()

    def used(self, architecture: str, image_size: int, flip: bool) -> "ImagesConfig":
        """These settings, with what the images decide and the defaults of the architecture where a field is open."""
        defaults = {"steps_per_level": 8, "scalar": "affine", "memory": "standard", "parallel": 1}
        own = {name: value for name, value in defaults.items() if architecture in self.applies[name][1]}
        # a lattice keeps to the bins exactly; a rotation turns them, and needs noise that is nearly normal
        dequantisation = "variational" if architecture == "wavelet" else "uniform"
        return self.model_copy(update={"augment": self.augment.completed(flip=flip)}).completed(
            architecture=architecture, image_size=image_size, dequantisation=dequantisation, **own
        )
