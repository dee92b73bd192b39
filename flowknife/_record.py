"""The record of a run: the content of `run.json` in typed fields; `report` turns them into sentences."""

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
"""Version of the file format. Format 1 had other field names, format 2 a record in free text."""

MINIMUM_STEPS = 100
"""A model with fewer optimiser steps counts as untrained: the default learning rate warm-up takes as many."""

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
    Stopped.BEHIND: "another candidate was better after the same number of steps",
}


class _Part(pydantic.BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """Base of the parts of a record: unknown fields, and values of another type, are errors."""


class TrainingRecord(_Part):
    """How training went.

    Attributes:
        steps: optimiser steps made.
        seconds: wall-clock time.
        stopped: why training ended; None if its parts ended for different reasons.
        part: for training in parts (levels of images, candidates), the interrupted part and the number of parts.
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
        kind: kind of the items: rows of a table, images, or pairs of parameters and data.
        rows: number of items.
        source: the path of the data, or a short description.
        names: names of the columns or parameters; none for images.
        y_names: names of the data of an inverse problem.
        given_names: names of the conditions of a density.
        categories: the categories of each categorical column of a table.
        dates: the unit of each date column, days or seconds.
        missing: for each column with missing values, the number that replaces a missing one.
        fingerprint: a hash of the data, sixteen digits.
        left_out: number of unusable items: rows with missing values, unreadable files, failed simulations.
        reason: why the first simulation failed.
        classes: the labels, in the order of the probabilities; for an image model, those that condition the images.
        unlabelled: number of items whose label is unknown.
        label_column: the label column of the table.
        partition: for images, the partition that was used.
        white: for images, the pixel values that were mapped to 255.
        problem: name of the problem, if it is one of `flowknife.problems`.
        prior_estimated: whether the prior was estimated from the pairs.
        exact: whether the data had no noise, so that a little was added for the fit.
        own_likelihood: whether the user gave a likelihood, which is not saved.
        log_prior_mass: log of the share of the user's prior that is left after rounds for one observation, 0 for all.
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
    own_likelihood: bool = False
    log_prior_mass: float = pydantic.Field(0.0, le=0.0)

    @pydantic.field_serializer("white")
    def _by_name(self, white: White) -> dict[str, float]:
        return white._asdict()

    @pydantic.model_serializer(mode="wrap")
    def _what_applies(self, handler: Any) -> dict[str, Any]:
        """Leave out empty fields, such as the classes of a density."""
        filled = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        return {name: value for name, value in handler(self).items() if name in filled}


def package_versions() -> dict[str, str]:
    """The versions of flowknife, Python and the numerical packages."""
    return {"flowknife": __version__, "python": platform.python_version(), **_installed()}


@functools.cache
def _installed() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax", "numpy")}


class Record(_Part, Generic[Config]):
    """The record of a run.

    Attributes:
        format: version of the file format.
        application: name of the application.
        config: settings as requested; the others are open (None).
        used: the same settings, with the values that the fit chose for open ones.
        data: description of the training data.
        training: summary of training.
        files: SHA-256 checksums of the other files of the run, by name.
        metrics: metrics at the time of saving; None for a non-finite one.
        notes: remarks and warnings about the run, one sentence each.
        recipe: name of the recipe that the settings come from.
        demo: whether a demo wrote the run; another demo may then replace it.
        created: time at which the fit ended.
        versions: versions of flowknife, Python and the numerical packages.
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
        """Support pickling: a parametrised generic class has no importable name."""
        return _restored, (type(self.config), self.model_dump_json())

    def __repr__(self) -> str:
        of = f"{self.data.rows} {self.data.kind} of {self.data.source}"
        return f"Record({self.application}: {of}, {counted(self.training.steps, 'step')}, {self.created:%Y-%m-%d})"


def _restored(config: Any, text: str) -> Any:
    generic: Any = Record
    return generic[config].model_validate_json(text)


def described(source: Any) -> str:
    """Short description of a data source: the path of a file or folder, the type and shape of data in memory."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, tuple):
        return " and ".join(map(described, source))
    if inspect.isfunction(source):
        return f"function {source.__name__}"
    shape = getattr(source, "shape", None)
    return type(source).__name__ + (f" {tuple(shape)}" if isinstance(shape, tuple) else "")
