"""Settings of image runs."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings
from flowknife.data import Augmentation
from flowknife.train import Training


class ImagesConfig(Settings):
    """Settings of `images`; settings that are None are chosen from the images."""

    applies: ClassVar[Applies] = {
        "levels": ("architecture", ("wavelet", "lattice", "glow")),
        "steps_per_level": ("architecture", ("glow", "jet")),
        "scalar": ("architecture", ("glow",)),
        "memory": ("architecture", ("glow", "jet")),
        "parallel": ("architecture", ("wavelet", "lattice")),
    }
    chosen: ClassVar[Mapping[str, str]] = {
        "train.minutes": "15, unless another end of training is set",
        "train.batch_size": "by the size of a level",
        "train.learning_rate": "0.005; 0.001 for architectures whose levels train together",
        "train.patience": "8",
        "train.evaluate_every": "by the number of held-out images, at least 60",
        "train.weight_decay": "1 for up to 2,000 images, sqrt(2000 / images) for more; 0 with learned noise or where "
        "levels train together",
        "train.average": "0.995",
    }

    seed: int = pydantic.Field(0, description="seed of the random numbers")
    image_size: int | None = pydantic.Field(None, ge=4, description="side in pixels; default: the images', at most 64")
    crop: float = pydantic.Field(1.0, gt=0, le=1, description="share of the shorter side to keep, centred")
    bits: int = pydantic.Field(5, ge=1, le=8, description="bits per channel; papers use 8, 5 learns faster")
    architecture: Literal["wavelet", "lattice", "glow", "realnvp", "jet"] | None = pydantic.Field(
        None,
        description="stack of bijections; default: lattice if most pixels have one value (such as black), else wavelet",
    )
    dequantisation: Literal["uniform", "variational"] | None = pydantic.Field(
        None, description="dequantisation noise: uniform, or learned (variational); default: learned for wavelet"
    )
    levels: int | None = pydantic.Field(
        None, ge=1, description="scales, each with a latent block; default: by image size"
    )
    steps_per_level: int | None = pydantic.Field(
        None, ge=1, le=1000, description="steps of glow per level, or couplings of jet; default 8"
    )
    scalar: Literal["affine", "additive", "spline"] | None = pydantic.Field(
        None, description="map that the couplings of glow apply to each number; default affine"
    )
    memory: Literal["standard", "reversible"] | None = pydantic.Field(
        None,
        description="reversible: rebuild the activations of glow and jet in the backward pass, for a third more time; "
        "default standard",
    )
    width: int = pydantic.Field(128, ge=8, le=16_384, description="hidden channels of each network")
    parallel: int | None = pydantic.Field(
        None, ge=1, description="levels of wavelet and lattice to train at the same time, in threads; default 1"
    )
    alpha: float = pydantic.Field(0.05, gt=0, lt=1, description="images with a p-value below it are flagged")
    augment: Augmentation = pydantic.Field(
        Augmentation(), description="changes of the training images, see `Augmentation`"
    )
    train: Training = pydantic.Field(Training(), description="how to train, see `Training`")

    def used(self, architecture: str, image_size: int, flip: bool) -> "ImagesConfig":
        """These settings, with open fields set by the images and the architecture."""
        defaults = {"steps_per_level": 8, "scalar": "affine", "memory": "standard", "parallel": 1}
        own = {name: value for name, value in defaults.items() if architecture in self.applies[name][1]}
        # a lattice preserves the bins exactly; a rotation mixes them, and needs nearly normal noise
        dequantisation = "variational" if architecture == "wavelet" else "uniform"
        return self.model_copy(update={"augment": self.augment.completed(flip=flip)}).completed(
            architecture=architecture, image_size=image_size, dequantisation=dequantisation, **own
        )
