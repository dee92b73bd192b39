"""The result of training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flowknife._record import MINIMUM_STEPS, Stopped, TrainingRecord
from flowknife.inn import INN


@dataclass(frozen=True)
class FitResult:
    """The result of training.

    Attributes:
        model: the best averaged weights.
        loss: held-out objective of `model` (the training objective, without held-out rows).
        step: the step at which `model` was kept.
        steps: steps made.
        seconds: wall-clock time.
        stopped: why training ended: "budget", "patience", "stream" (no more batches), "non-finite", "interrupted" or
            "behind" (a rival).
        history: columns step, seconds, train, validation, one row per evaluation.
        fault: the place of a non-finite number, with advice; "" if all were finite.
        dropped: number of steps that were skipped because of a non-finite number.
    """

    model: INN = field(repr=False)
    loss: float
    step: int
    steps: int
    seconds: float
    stopped: Stopped
    history: dict[str, list[float]] = field(repr=False)
    fault: str = ""
    dropped: int = 0

    @property
    def record(self) -> TrainingRecord:
        """The summary for the record of a run."""
        return TrainingRecord(steps=self.steps, seconds=round(self.seconds, 1), stopped=self.stopped)

    @property
    def message(self) -> str:
        """Why training ended, as a sentence."""
        if self.stopped is Stopped.NON_FINITE:
            return f"{self.fault}; the weights of step {self.step} were kept"
        left_out = f"; {self.dropped} steps were left out, the first {self.fault}" if self.dropped else ""
        return self.record.sentence + left_out

    @property
    def missing_steps(self) -> int:
        """Steps short of `MINIMUM_STEPS`; if positive, the model counts as untrained."""
        return missing_steps(self.history)


def missing_steps(history: Mapping[str, Sequence[float]]) -> int:
    """Steps short of `MINIMUM_STEPS`, for the stage of training (a level of images) with the fewest steps.

    Args:
        history: columns of the training curve, with a column "level" if there were several stages.
    """
    steps = history.get("step", [])
    last = dict(zip(history.get("level", [0.0] * len(steps)), steps, strict=True))
    return max(0, *(MINIMUM_STEPS - int(step) for step in last.values())) if last else 0
