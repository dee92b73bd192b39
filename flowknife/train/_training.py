"""Settings of training."""

import time
from typing import Any, ClassVar, Literal

import pydantic

from flowknife._settings import Applies, Settings

_ENDS = ("epochs", "steps", "minutes")
_DEFAULTS = {"batch_size": 256, "learning_rate": 2e-3, "weight_decay": 0.0, "average": 0.998}


class Training(Settings):
    """Settings of training, which ends at whichever of `epochs`, `steps` and `minutes` is reached first.

    The learning rate warms up linearly, then follows `schedule` over the whole budget. A field that is None is open:
    each application chooses it from the data.
    """

    applies: ClassVar[Applies] = {"decay": ("schedule", ("exponential",))}

    epochs: float | None = pydantic.Field(None, gt=0, description="passes over the training rows")
    steps: int | None = pydantic.Field(None, ge=1, description="optimiser steps")
    minutes: float | None = pydantic.Field(None, gt=0, description="time budget of the whole fit in minutes")
    batch_size: int | None = pydantic.Field(None, ge=1, le=10_000_000, description="rows per step")
    learning_rate: float | None = pydantic.Field(None, gt=0, description="peak learning rate")
    optimiser: Literal["adam", "adamax", "nadam", "amsgrad"] = pydantic.Field(
        "adam", description="optimisation algorithm"
    )
    schedule: Literal["cosine", "exponential", "constant"] = pydantic.Field(
        "cosine", description="schedule of the learning rate after warm-up"
    )
    decay: float | None = pydantic.Field(
        None, gt=0, le=1, description="final / peak rate of the exponential schedule; default 0.01"
    )
    warmup: int = pydantic.Field(100, ge=0, description="steps of linear warm-up")
    clip: float = pydantic.Field(5.0, gt=0, description="largest global norm of the gradient")
    weight_decay: float | None = pydantic.Field(
        None, ge=0, description="decoupled weight decay, per unit of learning rate (AdamW)"
    )
    average: float | None = pydantic.Field(None, ge=0, lt=1, description="decay of the moving average of the weights")
    matmul: Literal["float32", "tensorfloat32", "bfloat16"] | None = pydantic.Field(
        None,
        description="precision of the matrix products of training; sums, weights and evaluations stay in float32; "
        "default: that of the device, float32 on a CPU and tensorfloat32 on most GPUs",
    )
    validation: float | None = pydantic.Field(
        None, ge=0, lt=1, description="share of the rows held out for early stopping and calibration; default 0.15"
    )
    evaluate_every: int | None = pydantic.Field(
        None,
        ge=1,
        description="steps between evaluations; default: 25 at first, then a quarter of the steps made, at most one "
        "pass over the rows (or 100)",
    )
    patience: int | None = pydantic.Field(
        None, ge=0, description="evaluations without improvement before stopping; 0: train to the end"
    )
    checkpoint_every: int | None = pydantic.Field(
        None, ge=1, description="steps between checkpoints; default: a minute, and never more than 1 % of the time"
    )

    def left(self, began: float, reserve: float = 0.0, share: float = 1.0) -> Any:
        """These settings with the remaining time of `minutes`, at least a tenth of it.

        Args:
            began: start of the fit, by `time.monotonic`.
            reserve: seconds needed after training.
            share: share of the remaining time, for one of several trainings.
        """
        if self.minutes is None:
            return self
        taken = (time.monotonic() - began + reserve) / 60
        return self.model_copy(update={"minutes": share * max(self.minutes - taken, self.minutes / 10)})

    def completed(self, **chosen: Any) -> Any:
        """These settings, with open fields set to `chosen`; an end of training is set only if none was given."""
        ended = any(getattr(self, end) is not None for end in _ENDS)
        return Settings.completed(self, **{k: v for k, v in chosen.items() if not (ended and k in _ENDS)})

    def with_defaults(self) -> Any:
        """These settings, with fields still open set to the defaults of `fit`; 100 epochs if no end is set."""
        decay = {"decay": 0.01} if self.schedule == "exponential" else {}
        return self.completed(epochs=100.0, **_DEFAULTS, **decay)
