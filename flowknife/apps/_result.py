"""Base class of the results of all applications: record, saving and loading, checks and reports."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, get_type_hints

import jax
import numpy as np

from flowknife._files import is_own, replacing
from flowknife._progress import note
from flowknife._record import Config, Record
from flowknife._settings import Settings
from flowknife._trees import accepts
from flowknife.data import Skipped, write_skipped
from flowknife.data.encoding import Encoding, to_frame
from flowknife.diagnostics import Check, Flagging, advised
from flowknife.errors import InputError, StorageError
from flowknife.export import Program, write_onnx, write_stablehlo
from flowknife.inn import INN
from flowknife.report import card, in_html, in_one_line
from flowknife.storage import read_history, read_model, read_run, write_run
from flowknife.train import MINIMUM_STEPS, missing_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowknife.explore import Live

_DATA = ("reference", "held_out", "impossible")  # attributes that are data


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(ABC, Generic[Config]):
    """A fitted model with its record.

    An application declares which of its attributes are saved in the model file in addition to the model.

    Attributes:
        model: the network.
        record: settings, data and training of the run.
        history: columns of the training curve.
        skipped: unusable files, with the reasons.
    """

    application: ClassVar[str]
    title: ClassVar[str]  # heading of the report
    settings: ClassVar[type[Settings]]
    kept: ClassVar[tuple[str, ...]]
    parts: ClassVar[Mapping[str, Any]] = {}  # classes of those saved attributes that have `to_tree` and `from_tree`
    later: ClassVar[Mapping[str, Any]] = {}  # values of saved attributes that runs of earlier versions lack

    model: INN = field(repr=False)
    record: Record[Config]
    history: dict[str, list[float]] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

    @property
    def config(self) -> Config:
        """The requested settings; open ones are None."""
        return self.record.config

    @property
    def used(self) -> Config:
        """The same settings, with the values that the fit chose for open ones."""
        return self.record.used

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns; none for images."""
        return self.record.data.names

    @property
    def given_names(self) -> tuple[str, ...]:
        """Names of the columns that are conditions; () for none."""
        return self.record.data.given_names

    @cached_property
    def encoding(self) -> Encoding | None:
        """How the columns of a table are encoded as numbers; None for purely numeric tables and for images."""
        data = self.record.data
        return Encoding(data.names, data.categories, data.dates, data.missing) or None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns; a column with missing values has a second one, which indicates them."""
        return self.encoding.columns if self.encoding else self.names

    def _as_table(self, values):
        """Rows of encoded columns in the form of the original table."""
        return to_frame(self.encoding.decode(values)) if self.encoding else values

    @property
    @abstractmethod
    def flagging(self) -> Flagging:
        """How items are flagged; if none can be flagged, its `note` gives the reason."""

    @cached_property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Metrics on held-out data, by name."""

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, recipe: str | None = None, demo: bool = False) -> Path:
        """Write a run directory; `flowknife.load` reads it.

        Args:
            folder: the run directory; created if it does not exist.
            recipe: name of the recipe that the settings come from.
            demo: whether a demo may replace the run.

        Raises:
            StorageError: the folder cannot be written, or holds files that flowknife did not write.
        """
        own = {"metrics": self.metrics, "recipe": recipe or self.record.recipe, "demo": demo or self.record.demo}
        record = self.record.model_copy(update=own)
        run = write_run(folder, record, {"model": self.model, **self._tree()}, self.history)
        if record.data.kind == "images":
            write_skipped(run / "skipped.csv", self.skipped)
        self._write_card(run, record)
        self._stay_in(run)
        return run

    def _write_card(self, run, record):
        path = run / "card.md"
        if path.exists() and not is_own(path):  # written by the user
            return
        own = replace(self, record=record)
        own.__dict__["metrics"] = self.metrics  # not computed again
        with replacing(path) as place:
            place.write_text(card(own), encoding="utf-8", errors="backslashreplace")

    @classmethod
    def load(cls, folder: str | Path) -> Any:
        """Read a run directory that `save` wrote.

        Raises:
            StorageError: there is none, or it is damaged, of another version or of another application.
        """
        record = read_run(folder, cls.settings)
        tree = read_model(folder, record)
        try:
            known = {**cls.later, **tree}
            values = {
                name: _restored(tree.get(name) if name in cls.parts else known[name], cls.parts.get(name))
                for name in cls.kept
            }
            cls._require_kinds({"model": tree["model"], **values})
            tree["model"].require_sound()
            history = read_history(folder, record)
            result = cls(model=tree["model"], record=record, history=history, **values, **cls._derived(record))
            fits = record.application == cls.application and result._fits()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(
                f"got {folder}, a run that is damaged or of another version ({reason}); expected one that this version "
                "of flowknife wrote; try fitting again"
            ) from None
        if not fits:
            raise StorageError(
                f"got {folder}, whose run.json and model file do not belong together; expected one run of "
                f"{cls.application}; try fitting again"
            )
        result._stay_in(Path(folder))
        return result

    @classmethod
    def _require_kinds(cls, values):
        """Refuse attributes of another type than is declared, and data that are not finite."""
        declared = get_type_hints(cls)
        for name, value in values.items():
            if not accepts(declared[name], value):
                raise TypeError(f"a {type(value).__name__} as {name}")
            shown = value.values() if isinstance(value, dict) else (value,)
            for array in shown if name in _DATA and value is not None else ():
                if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                    raise ValueError(f"{name} that are not finite numbers")

    @classmethod
    def _derived(cls, record: Record) -> dict[str, Any]:
        """Attributes that can be derived from the record alone."""
        return {}

    @abstractmethod
    def _fits(self) -> bool:
        """Whether the record and the arrays, which come from two files, belong together."""

    def _tree(self):
        """The attributes in `kept`, in the form for a model file."""
        values = {name: getattr(self, name) for name in self.kept}
        return values | {name: values[name].to_tree() for name in self.parts if values[name] is not None}

    def export(
        self, folder: str | Path, *, format: Literal["stablehlo", "onnx"] = "stablehlo", overwrite: bool = False
    ) -> Path:
        """Write `log_prob`, `sample` and `encode` for programs without flowknife; return the folder.

        StableHLO programs run with JAX through the `model.py` in the folder, and give bitwise equal numbers. The ONNX
        format needs jax2onnx in a separate environment, and has no `sample`. See `docs/howto/elsewhere.md`.

        Args:
            folder: a new folder, or with `overwrite` that of an earlier export.
            format: "stablehlo" or "onnx".
            overwrite: replace an earlier export.

        Raises:
            InputError: for a model that cannot be exported, or a package that is not installed.
            StorageError: the folder holds something else, or cannot be written.
        """
        if format not in ("stablehlo", "onnx"):
            raise InputError(f"got format={format!r}; expected 'stablehlo' or 'onnx'")
        self._require_one_model("an export")
        self._require_numbers("an export")
        programs, about = self._exported()
        about = {"application": self.application, "kind": self.record.data.kind, **about}
        write = write_stablehlo if format == "stablehlo" else write_onnx
        return write(folder, self.model, programs, about, overwrite=overwrite)

    @abstractmethod
    def _exported(self) -> tuple[dict[str, Program], dict[str, Any]]: ...

    @property
    def folder(self) -> Path | None:
        """The run directory from which the result was loaded, or to which it was last saved."""
        return self.__dict__.get("_folder")

    def _stay_in(self, folder):
        self.__dict__["_folder"] = folder

    # -- in short ---------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return in_one_line(self)

    def _repr_html_(self) -> str:
        """The summary that a notebook shows."""
        if "_html" not in self.__dict__:
            self.__dict__["_html"] = in_html(self)
        return self.__dict__["_html"]

    def figures(self) -> dict[str, "Figure"]:
        """Figures by name: the training curve "history", if there is one, and samples of the model."""
        from flowknife import plots

        curve = {"history": plots.history(self.history)} if self.history.get("step") else {}
        return {**curve, **self._figure()}

    @abstractmethod
    def _figure(self) -> dict[str, "Figure"]: ...

    # -- whether it can be trusted, and the report ----------------------------------------------------------------

    def check(self, data: Any = None, *, given: Any = None) -> list[Check]:
        """Check the model on held-out data or on `data`: a list of numbers, each with its limit.

        Every application checks the round trip through the network, the likelihood (or accuracy) against simple models,
        and the number of training steps. If no item can be flagged, that is a further failed check. The `note` of a
        failed check gives advice.

        Args:
            data: data of the same kind as in training, but not used in training: rows or images; for a classifier also
                (x, labels), or a table or folder with labels; for a posterior pairs (x, y). Default: the held-out data.
            given: conditions of `data`, for conditional densities and image models.

        Raises:
            InputError: without `data` if no data were held out; or for conditions if the model has none.
        """
        if data is None:
            self.flagging.require_held_out()
        return advised([*self._checks(data, given), Check.of_steps(missing_steps(self.history), MINIMUM_STEPS)])

    @abstractmethod
    def _checks(self, data, given, /) -> list[Check]: ...

    def report(self, folder: str | Path | None = None, *, others: Any = None, interactive: bool = False) -> Path:
        """Write the figures and `report.html`; return the page's path.

        Args:
            folder: where to write; default the run directory from which the result was loaded, or to which it was last
                saved.
            others: for images and classifiers, anomalous data to compare with the held-out data.
            interactive: write `explore.html` instead, a single page that contains the model and evaluates it in the
                browser. This works for densities, classifiers of rows and posteriors. For other models a note gives the
                reason, and the report is written.

        Raises:
            InputError: without a folder, for a result that was never saved; or for `others` if the application has
                none.
        """
        place = folder or self.folder
        if place is None:
            raise InputError("got a result that was never saved; expected a folder; try report('runs/mine')")
        if interactive:
            self._without(others=others)
            try:
                self._require_one_model("an interactive page")
                return self._explore(place)
            except InputError as reason:
                note(f"no interactive page: {reason}")
        return self._report(place, others)

    def _require_one_model(self, what: str) -> None:
        """Refuse an ensemble, where a single member would silently represent all of them."""
        if count := len(getattr(self, "members", ())):
            raise InputError(f"got an ensemble of {count + 1} models; {what} takes one; try a fit with ensemble=1")

    def _require_numbers(self, what: str, instead: str = "a fit to columns of numbers") -> None:
        """Refuse a model of a table with encoded columns (categories, dates, missing values)."""
        if self.encoding is not None:
            raise InputError(
                f"got a model of a table with categories, dates or missing values; {what} takes one of numbers; try "
                f"{instead}"
            )

    def _explore(self, folder) -> Path:
        """Write `explore.html`; refuse a model that the page cannot evaluate."""
        raise InputError("got a model of images; expected one of rows or of an inverse problem")

    def explore(
        self,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        opened: Callable[[str], None] | None = None,
        images: Any = None,
    ) -> None:
        """Serve an interactive page of this model, of images too, until Ctrl-C.

        The page calls the model in Python, whereas the page of `report(interactive=True)` contains the weights. It
        needs starlette and uvicorn, the extra `[explore]`.

        Args:
            host: an address of this machine; with any other than 127.0.0.1, other machines can reach the page, with the
                token in its address.
            port: 0 for any free port; default 8765, or any free port if it is taken.
            opened: called with the page's address; default: print it.
            images: for an image model, a folder, its address, or paths of image files: they are scored while the page
                is open, and shown by p-value.

        Raises:
            InputError: for an address that cannot be used, images that cannot, or without the packages.
        """
        from flowknife.explore import require_server, serve

        require_server()
        self._require_one_model("an interactive page")
        live = self._live(images)
        live.prepare()
        serve(live, host, port, opened or (lambda address: note(f"{self.title} at {address}, until Ctrl-C")))

    @abstractmethod
    def _live(self, images: Any = None) -> "Live":
        """The live page and the functions that it can call; `images` are scored, for an image model."""

    @abstractmethod
    def _report(self, folder, others) -> Path: ...

    def _without(self, **arguments):
        """Refuse arguments that do not apply to this application."""
        for name, value in arguments.items():
            if value is not None:
                raise InputError(f"got {name}=... for a result of {self.application}, which takes none; try without")


def _restored(value, part):
    """Convert an attribute from a model file: JAX arrays become NumPy arrays, models stay."""
    if part is not None and value is not None:
        return part.from_tree(value)
    if isinstance(value, dict):
        return {name: np.asarray(array) for name, array in value.items()}
    return np.asarray(value) if isinstance(value, jax.Array) else value
