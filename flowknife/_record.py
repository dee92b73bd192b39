"""The record of a run: what `run.json` says, in typed fields. Whoever shows it turns them into words; see `report`."""

import functools
import importlib.metadata
import inspect
import os
import platform
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Generic, Literal, TypeVar

import pydantic

from flowknife import __version__
from flowknife.data import White
from flowknife.errors import counted

FORMAT = 3
"""Of model files and run directories. Format 1 had other names of fields, format 2 a record in free text."""

MINIMUM_STEPS = 100
"""Optimiser steps below which nothing counts as trained: the default warm-up of the learning rate takes as many."""

Config = TypeVar("Config")


class Stopped(StrEnum):
    """Why training ended."""

    BUDGET = "budget"
    PATIENCE = "patience"
    STREAM = "stream"
    NON_FINITE = "non-finite"
    INTERRUPTED = "interrupted"
    BEHIND = "behind"

    @property
    def sentence(self) -> str:
        """The reason in words."""
        return _SENTENCES[self]


_SENTENCES = {
    Stopped.BUDGET: "the training budget (steps, epochs or minutes) was used up",
    Stopped.PATIENCE: "no improvement in as many evaluations as train.patience allows",
    Stopped.STREAM: "the stream of batches ended",
    Stopped.NON_FINITE: "training met a number that is not finite",
    Stopped.INTERRUPTED: "training was interrupted",
    Stopped.BEHIND: "another candidate was better after as many steps",
}


class _Part(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Base of the parts of a record: unknown fields, and values of another type, are errors."""


class TrainingRecord(_Part):
    """How training went.

    Attributes:
        steps: optimiser steps made.
        seconds: wall-clock time.
        stopped: why training ended; None where its parts ended for different reasons.
        part: of a training in parts (levels of images, candidates), the one that was interrupted, and their number.
    """

    steps: int = pydantic.Field(ge=0)
    seconds: float = pydantic.Field(ge=0)
    stopped: Stopped | None = None
    part: tuple[int, int] | None = None

    @property
    def partial(self) -> bool:
        """Whether training was interrupted."""
        return self.stopped is Stopped.INTERRUPTED

    @property
    def sentence(self) -> str:
        """Why training ended, and whether it was long enough."""
        if self.partial:
            where = f"in part {self.part[0]} of {self.part[1]}" if self.part else f"at step {self.steps}"
            return f"{Stopped.INTERRUPTED.sentence} {where}"
        reason = self.stopped.sentence if self.stopped else "every part was trained to its end"
        if self.steps >= MINIMUM_STEPS or self.stopped is Stopped.NON_FINITE:
            return reason
        return (
            f"{reason} after {counted(self.steps, 'step')}, but training takes at least {MINIMUM_STEPS}: this model "
            "is not trained; try more train.steps or train.minutes"
        )


class DataRecord(_Part):
    """What a model was fitted to.

    Attributes:
        kind: what an item is: a row of a table, an image, or a pair of parameters and data.
        rows: number of items.
        source: the path of the data, or a few words.
        names: of the columns, or of the parameters; none for images.
        y_names: of the data of an inverse problem.
        given_names: of the conditions of a density.
        categories: of a table with categories, the dictionary of each such column.
        dates: of columns of dates, the unit, days or seconds.
        missing: of columns with missing values, what stands in place of a missing number.
        fingerprint: sixteen digits that change with any value.
        left_out: items that could not be used: rows with missing values, files, failed simulations.
        reason: why the first simulation failed.
        classes: the labels, in the order of probabilities; of an image model, what the images are given.
        unlabelled: items whose label is unknown.
        label_column: the column of the table that held the labels.
        partition: of images, the partition that was used.
        white: of images, the pixel values that became 255.
        problem: the name of the problem, if it is one of `flowknife.problems`.
        prior_estimated: the prior was estimated from the pairs.
        exact: the data had no noise, and a little was added for the fit alone.
    """

    kind: Literal["rows", "images", "pairs"]
    rows: int = pydantic.Field(ge=0)
    source: str = ""
    names: tuple[str, ...] = ()
    y_names: tuple[str, ...] = ()
    given_names: tuple[str, ...] = ()
    categories: dict[str, tuple[bool | int | float | str, ...]] = {}
    dates: dict[str, Literal["D", "s"]] = {}
    missing: dict[str, float] = {}
    fingerprint: str = ""
    left_out: int = pydantic.Field(0, ge=0)
    reason: str = ""
    classes: tuple[bool | int | float | str, ...] = ()
    unlabelled: int = pydantic.Field(0, ge=0)
    label_column: str | None = None
    partition: Literal["train", "validation", "test"] | None = None
    white: White = White()
    problem: str | None = None
    prior_estimated: bool = False
    exact: bool = False

    @pydantic.field_serializer("white")
    def _by_name(self, white: White) -> dict[str, float]:
        return white._asdict()

    @pydantic.model_serializer(mode="wrap")
    def _what_applies(self, handler: Any) -> dict[str, Any]:
        """Without the fields that say nothing, such as the classes of a density."""
        filled = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        return {name: value for name, value in handler(self).items() if name in filled}


def package_versions() -> dict[str, str]:
    """The versions of flowknife, Python and the packages that compute."""
    return {"flowknife": __version__, "python": platform.python_version(), **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax", "numpy")}


class Record(_Part, Generic[Config]):
    """The record of a run.

    Attributes:
        format: of the run directory.
        application: that made it.
        config: settings as they were asked, open where nothing was said.
        used: the same settings, with what the fit chose where they were open.
        data: what the model was fitted to.
        training: how training went.
        files: SHA-256 of the other files of the run, by name.
        metrics: what was measured when the run was saved; None for a number that is not finite.
        notes: sentences on what is worth knowing.
        recipe: the name of the recipe that the settings come from.
        demo: whether a demo made the run, so that another one may replace it.
        created: when the fit ended.
        versions: of flowknife, Python and the packages that compute.
    """

    format: int = FORMAT
    application: str
    config: Config
    used: Config
    data: DataRecord
    training: TrainingRecord
    files: dict[str, str] = {}
    metrics: dict[str, float | None] = {}
    notes: tuple[str, ...] = ()
    recipe: str | None = None
    demo: bool = False
    created: pydantic.AwareDatetime = pydantic.Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    versions: dict[str, str] = pydantic.Field(default_factory=package_versions)

    def __reduce__(self) -> Any:
        """A class with a parameter has no name by which a pickle could find it."""
        return _restored, (type(self.config), self.model_dump_json())

    def __repr__(self) -> str:
        of = f"{self.data.rows} {self.data.kind} of {self.data.source}"
        return f"Record({self.application}: {of}, {counted(self.training.steps, 'step')}, {self.created:%Y-%m-%d})"


def _restored(config: Any, text: str) -> Any:
    generic: Any = Record
    return generic[config].model_validate_json(text)


def described(source: Any) -> str:
    """What data are called in a record: the path of a file or folder; of what is in memory its type and shape."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, tuple):
        return " and ".join(map(described, source))
    if inspect.isfunction(source):
        return f"function {source.__name__}"
    shape = getattr(source, "shape", None)
    return type(source).__name__ + (f" {tuple(shape)}" if isinstance(shape, tuple) else "")
