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
        stopped: why it ended: "budget", "patience", "stream" (no more batches), "non-finite", "interrupted" or "behind"
            (a rival).
        history: columns step, seconds, train, validation, one row per evaluation.
        fault: where a number was not finite, and what to try; "" where all were.
        dropped: steps that were left out, since a number was not finite.
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
        """What a run keeps of it."""
        return TrainingRecord(steps=self.steps, seconds=round(self.seconds, 1), stopped=self.stopped)

    @property
    def message(self) -> str:
        """Why it ended, as a sentence."""
        if self.stopped is Stopped.NON_FINITE:
            return f"{self.fault}; the weights of step {self.step} were kept"
        left_out = f"; {self.dropped} steps were left out, the first {self.fault}" if self.dropped else ""
        return self.record.sentence + left_out

    @property
    def missing_steps(self) -> int:
        """Steps that are missing of `MINIMUM_STEPS`; with any, the model does not count as trained."""
        return missing_steps(self.history)


def missing_steps(history: Mapping[str, Sequence[float]]) -> int:
    """Steps that are missing of `MINIMUM_STEPS`, of the stage of training (a level of images) with the fewest.

    Args:
        history: columns of the training curve, with a column "level" where there were several stages.
    """
    steps = history.get("step", [])
    last = dict(zip(history.get("level", [0.0] * len(steps)), steps, strict=True))
    return max(0, *(MINIMUM_STEPS - int(step) for step in last.values())) if last else 0
