"""A recipe: a named configuration with a known cost and an expected result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Expected:
    """A measured result.

    Attributes:
        value: the measured number.
        unit: its unit, or the name of the measure.
        data: the test data, none of it used in training.
        minutes: training time of the measurement, on 2 CPU cores.
        beside: the result of another method.
    """

    value: float | int
    unit: str
    data: str
    minutes: float | int
    beside: str = ""

    def __str__(self) -> str:
        beside = f"; {self.beside}" if self.beside else ""
        return f"{self.value:g} {self.unit} on {self.data}, after {_time(self.minutes)} of training{beside}"


@dataclass(frozen=True)
class Recipe:
    """A named configuration of an application.

    Attributes:
        name: the argument of `--recipe`.
        application: density, images, classify or invert.
        about: its purpose, in a few words.
        data: the kind of DATA.
        example: DATA in the examples.
        settings: of the application, nested as in a settings file; all others are at their defaults.
        minutes: training time on 2 CPU cores.
        expected: its measured result; None if not measured.
    """

    name: str
    application: str
    about: str
    data: str
    example: str
    settings: Mapping[str, Any] = field(hash=False)
    minutes: float | int
    expected: Expected | None = None

    @property
    def config(self) -> Any:
        """The configuration, as in `fk.images(folder, recipe.config)`."""
        from flowknife._settings import validated
        from flowknife.apps import APPLICATIONS

        return validated(APPLICATIONS[self.application].settings, self.settings)

    @property
    def command(self) -> str:
        """The command line."""
        return self._to(f"runs/{self.name}")

    @property
    def smoke(self) -> str:
        """The command line for a few steps, to test that it runs on your data."""
        return f"{self._to('runs/try')} --set train.steps=20"

    @property
    def cost(self) -> str:
        """Training time on 2 CPU cores, in words."""
        return _time(self.minutes)

    @property
    def reaches(self) -> str:
        """The expected result in short form."""
        if self.expected is None:
            return "not measured"
        after = "" if self.expected.minutes == self.minutes else f" after {_time(self.expected.minutes)}"
        return f"{self.expected.value:g} {self.expected.unit}{after}"

    def _to(self, run):
        return f"flowknife fit {self.application} {self.example} --recipe {self.name} --out {run}"


def _time(minutes):
    if minutes < 2:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:g} min" if minutes < 120 else f"{minutes / 60:g} h"
