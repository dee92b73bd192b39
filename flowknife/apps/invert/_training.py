"""The trainings of one fit: candidates, continued on emulated pairs, and the members of an ensemble."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from operator import attrgetter
from typing import Any

import jax
import numpy as np

from flowknife._interrupts import until_interrupted
from flowknife._progress import note
from flowknife._record import Stopped, TrainingRecord
from flowknife._threads import in_threads
from flowknife._types import keys_of
from flowknife.apps.invert._config import InvertConfig
from flowknife.apps.invert._emulator import emulated, emulator_settings, further_settings, overfitted
from flowknife.apps.invert._gaps import masked
from flowknife.errors import InputError, Interrupted, TrainingError
from flowknife.inn import INN
from flowknife.objectives import Objective
from flowknife.priors import Prior
from flowknife.train import Checkpoints, FitResult, Training, fit

_FEW = 50_000  # pairs; beyond this, weight decay does not help
_loss = attrgetter("loss")


@dataclass(frozen=True)
class Trained:
    """What the trainings of a fit resulted in.

    Attributes:
        result: the training that was kept, or its continuation.
        settings: the settings of the candidate that was kept.
        emulate: whether the continuation on emulated pairs was kept.
        members: the other models of an ensemble.
        record: how training went.
        interrupted: whether it was interrupted.
    """

    result: FitResult
    settings: Training
    emulate: bool
    members: tuple[INN, ...]
    record: TrainingRecord
    interrupted: bool


@dataclass(frozen=True)
class Trainings:
    """What the trainings of a fit have in common.

    Attributes:
        config: the settings, completed for the data.
        pairs: training pairs {"x", "y"}, in the units of the model.
        stopping: held-out pairs for early stopping; None without.
        start: `key -> model`, a model with fitted closed-form layers.
        objective: the objective.
        prior: prior of x in the units of the model.
        no_emulator: why an emulator cannot help; "" if it can.
        kept: checkpoints of the fit.
        key: JAX key.
        show_progress: show progress bars.
    """

    config: InvertConfig
    pairs: Mapping[str, Any]
    stopping: Mapping[str, Any] | None
    start: Callable[[jax.Array], INN]
    objective: Objective
    prior: Prior
    no_emulator: str
    kept: Checkpoints
    key: jax.Array
    show_progress: bool

    @cached_property
    def candidates(self) -> list[Training]:
        """Training settings by the number of pairs; among several candidates, held-out pairs choose.

        With few pairs and many parameters, strong weight decay towards the linear-Gaussian start helps; for posteriors
        with fine structure it hurts. There is only one candidate if steps, epochs or weight decay are set, or if no
        pairs are held out.
        """
        training, rows = self.config.train, len(self.pairs["x"])
        few, asked_for = rows <= _FEW, (training.weight_decay, training.steps, training.epochs)
        # half the steps at twice the rate reach the same held-out density: two moons, gaussian_linear
        steps = int(np.clip((20 if few else 40) * rows**0.5, 500, 20_000))
        training = training.completed(
            steps=steps, batch_size=256, learning_rate=4e-3 if few else 1e-3, patience=15
        ).with_defaults()
        if not few or any(value is not None for value in asked_for):
            return [training]
        pulls = (1.0,) if training.validation == 0 else (0.0, 1.0, 5.0)
        return [training.model_copy(update={"weight_decay": pull}) for pull in pulls]

    @cached_property
    def emulating(self) -> bool:
        """Whether an emulator may be trained: if it was asked for, or if the length of training is open for few pairs.

        Raises:
            InputError: it was asked for where it cannot help.
        """
        if self.config.emulate and self.no_emulator:
            raise InputError(
                f"got emulate=True with {self.no_emulator}; expected pairs of a noisy simulator, in memory, and their "
                "prior; try leaving emulate out"
            )
        is_open = len(self.candidates) > 1 and self.config.train.minutes is None
        return not self.no_emulator and (is_open if self.config.emulate is None else self.config.emulate)

    def run(self, model_key: jax.Array) -> Trained:
        """Train candidates, continue the best one, then train the other members of an ensemble.

        Args:
            model_key: key of the initial weights of the candidates.

        Raises:
            KeyboardInterrupt: an interruption before the first step.
        """
        emulating, model = self.emulating, self.start(model_key)
        results, interrupted = self._candidates_trained(model)
        reached = {i: result for i, result in enumerate(results) if result is not None and result.steps}
        if not reached:
            raise KeyboardInterrupt
        best = min(reached, key=lambda i: reached[i].loss)
        result, settings = reached[best], self.candidates[best]
        done, stages, emulate = max(reached) + 1, len(self.candidates) + emulating, False
        if emulating and not interrupted and (self.config.emulate or overfitted(result.history)):
            more, interrupted = self._continued(result.model, settings)
            done = stages
            if more is not None and more.loss < result.loss:
                result, emulate = more, True
        members = []
        for i in range(1, 1 if interrupted else self.config.ensemble):
            member, interrupted = until_interrupted(partial(self._member, i, settings, emulate))
            members += [member.model] if member is not None and member.steps else []
            if interrupted:
                break
        record = result.record
        if interrupted and stages > 1:
            record = record.model_copy(update={"stopped": Stopped.INTERRUPTED, "part": (done, stages)})
        return Trained(result, settings, emulate, tuple(members), record, interrupted)

    def _train(self, model, settings, key, share, which, part, *, rival=None, pairs=None) -> FitResult:
        settings = settings.left(self.kept.began, share=share)
        return fit(
            model,
            self.pairs if pairs is None else pairs,
            settings.model_copy(update={"validation": 0.0}),  # pairs are held out already
            objective=self.objective,
            held_out=self.stopping,
            key=key,
            label=f"posterior{which}",
            show_progress=self.show_progress,
            throw=True,
            rival=rival,
            checkpoints=self.kept.part(part),
        )

    def _candidates_trained(self, model) -> tuple[list[FitResult | None], bool]:
        count, others = len(self.candidates), self.config.ensemble - 1
        trained: list[FitResult] = []

        def train(i, settings):
            # share of the remaining time, since earlier candidates may not have used theirs
            share = 1 / (count - i + 2 * self.emulating + (1 + self.emulating) * others)
            which = f", {i + 1} of {count}: weight decay {settings.weight_decay:g}" if count > 1 else ""
            rival = min(trained, key=_loss, default=None)
            trained.append(self._train(model, settings, self.key, share, which, f"candidate-{i + 1}", rival=rival))
            return trained[-1]

        calls = [partial(train, i, settings) for i, settings in enumerate(self.candidates)]
        return until_interrupted(partial(in_threads, calls, threads=1))

    def _continued(self, model, settings) -> tuple[FitResult | None, bool]:
        """The continuation on emulated pairs, None if it failed, and whether it was interrupted."""
        share, key = 1 / (2 * self.config.ensemble - 1), jax.random.fold_in(self.key, self.config.ensemble)

        try:
            return until_interrupted(partial(self._train_more, model, settings, key, share, "", "emulated"))
        except TrainingError as error:
            note(f"emulated pairs were not used: {error}", self.show_progress)
            return None, False

    @cached_property
    def _emulated(self) -> dict[str, np.ndarray]:
        """Emulated pairs, in the units of the model."""
        x, y, gaps = self.pairs["x"], self.pairs["y"], self.config.embedding is not None
        y = y[:, : y.shape[1] // 2] if gaps else y  # no number is missing
        key, sizes = jax.random.fold_in(self.key, 0), {"width": self.config.width, "depth": self.config.depth}
        found = emulated(x, y, self.prior, key=key, train=self._emulator_trained, **sizes)
        return found | {"y": masked(found["y"])} if gaps else found

    def _emulator_trained(self, models, pairs, key) -> INN:
        """The best emulator after training; together they take half of the time of one member."""
        trained: list[FitResult] = []
        try:
            for i, model in enumerate(models):
                share = 1 / (2 * len(models) * self.config.ensemble - i)
                settings = emulator_settings(self.candidates[0].left(self.kept.began, share=share))
                result = fit(
                    model,
                    pairs,
                    settings,
                    key=key,
                    label=f"emulator, {i + 1} of {len(models)}",
                    show_progress=self.show_progress,
                    throw=True,
                    rival=min(trained, key=_loss, default=None),
                    checkpoints=self.kept.part(f"emulator-{i + 1}"),
                )
                trained.append(result)
        except Interrupted:  # its result is no posterior
            raise Interrupted(None) from None
        return min(trained, key=_loss).model

    def _train_more(self, model, settings, key, share, which, part):
        """Continue with emulated pairs; the model so far is the first candidate for the best weights."""
        which = f"{which}, emulated pairs"
        return self._train(model, further_settings(settings), key, share, which, part, pairs=self._emulated)

    def _member(self, i, settings, emulate):
        """One more model of an ensemble, from another seed."""
        count = self.config.ensemble
        model_key, key = keys_of(jax.random.fold_in(self.key, i), 2)
        share, which, part = 1 / (count - i), f", {i + 1} of an ensemble of {count}", f"member-{i + 1}"
        first = share / 2 if emulate else share
        member = self._train(self.start(model_key), settings, key, first, which, part)
        if not emulate:
            return member
        return self._train_more(member.model, settings, key, share / (2 - share), which, f"{part}-emulated")
