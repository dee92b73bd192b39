"""What the results of all applications share: their record, how they are saved and loaded, checked and reported."""

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

_DATA = ("reference", "held_out")  # attributes that are data


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(ABC, Generic[Config]):
    """A fitted model with its record.

    An application declares which of its attributes are kept in the model file, beside the model.

    Attributes:
        model: the network.
        record: settings, data and training of the run.
        history: columns of the training curve.
        skipped: files that could not be used, and why.
    """

    application: ClassVar[str]
    title: ClassVar[str]  # what the model is called on its report
    settings: ClassVar[type[Settings]]
    kept: ClassVar[tuple[str, ...]]
    parts: ClassVar[Mapping[str, Any]] = {}  # of these attributes, the classes of those with `to_tree` and `from_tree`
    later: ClassVar[
        Mapping[str, Any]
    ] = {}  # of these attributes, what runs have that were written before there were any

    model: INN = field(repr=False)
    record: Record[Config]
    history: dict[str, list[float]] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

    @property
    def config(self) -> Config:
        """Settings as they were asked."""
        return self.record.config

    @property
    def used(self) -> Config:
        """The same settings, with what the fit chose where they were open."""
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
        """How columns of a table become numbers; None for numbers alone, and for images."""
        data = self.record.data
        return Encoding(data.names, data.categories, data.dates, data.missing) or None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns as numbers; a column with gaps has a second one, which marks them."""
        return self.encoding.columns if self.encoding else self.names

    def _as_table(self, values):
        """Rows of numbers, in `columns`, as the table has them."""
        return to_frame(self.encoding.decode(values)) if self.encoding else values

    @property
    @abstractmethod
    def flagging(self) -> Flagging:
        """How items are flagged; its `note` says why nothing can be, where that is so."""

    @cached_property
    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What was measured on held-out data, by name."""

    # -- files ----------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, recipe: str | None = None, demo: bool = False) -> Path:
        """Write a run directory; `flowknife.load` reads it.

        Args:
            folder: the run directory; made if there is none.
            recipe: the name of the recipe that the settings come from.
            demo: the run may be replaced by a demo.

        Raises:
            StorageError: nothing can be written there, or it holds files that are not flowknife's.
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
        if path.exists() and not is_own(path):  # a card of the user's
            return
        own = replace(self, record=record)
        own.__dict__["metrics"] = self.metrics  # not measured again
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
            for array in shown if name in _DATA else ():
                if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
                    raise ValueError(f"{name} that are not finite numbers")

    @classmethod
    def _derived(cls, record: Record) -> dict[str, Any]:
        """Attributes that follow from the record alone."""
        return {}

    @abstractmethod
    def _fits(self) -> bool:
        """Whether the record and the arrays, which are in two files, belong together."""

    def _tree(self):
        """The attributes in `kept`, as a model file takes them."""
        values = {name: getattr(self, name) for name in self.kept}
        return values | {name: values[name].to_tree() for name in self.parts if values[name] is not None}

    def export(
        self, folder: str | Path, *, format: Literal["stablehlo", "onnx"] = "stablehlo", overwrite: bool = False
    ) -> Path:
        """Write `log_prob`, `sample` and `encode` for programs without flowknife; return the folder.

        As StableHLO they run with JAX, by the `model.py` of the folder, and give the same numbers to the last bit. ONNX
        needs jax2onnx, in an environment of its own, and has no `sample`. See `docs/howto/elsewhere.md`.

        Args:
            folder: a new one, or with `overwrite` that of an earlier export.
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
        """The run directory that this was loaded from, or saved to last."""
        return self.__dict__.get("_folder")

    def _stay_in(self, folder):
        self.__dict__["_folder"] = folder

    # -- in short ---------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return in_one_line(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        if "_html" not in self.__dict__:
            self.__dict__["_html"] = in_html(self)
        return self.__dict__["_html"]

    def figures(self) -> dict[str, "Figure"]:
        """Two figures, by name: "history", the curve of training, if there is one, and what the model draws."""
        from flowknife import plots

        curve = {"history": plots.history(self.history)} if self.history.get("step") else {}
        return {**curve, **self._figure()}

    @abstractmethod
    def _figure(self) -> dict[str, "Figure"]: ...

    # -- whether it can be trusted, and the report ----------------------------------------------------------------

    def check(self, data: Any = None, *, given: Any = None) -> list[Check]:
        """Whether the model can be trusted: each number with its limit, over held-out data or over `data`.

        Always among them: a round trip through the network, the likelihood (or what it is for) against that of simple
        models, and the steps of training. Where nothing can be flagged, one more check fails. The `note` of a check
        that failed says what to do.

        Args:
            data: as in training, none of it trained on: rows or images; of a classifier also (x, labels), or a table or
                folder with labels; of a posterior pairs (x, y). Default: what was held out.
            given: conditions of `data`, of a density or of images that have some.

        Raises:
            InputError: without `data` and without held-out data; or for conditions where there are none.
        """
        if data is None:
            self.flagging.require_held_out()
        return advised([*self._checks(data, given), Check.of_steps(missing_steps(self.history), MINIMUM_STEPS)])

    @abstractmethod
    def _checks(self, data, given, /) -> list[Check]: ...

    def report(self, folder: str | Path | None = None, *, others: Any = None, interactive: bool = False) -> Path:
        """Write the figures and `report.html`; return the page's path.

        Args:
            folder: where; default the run directory that this was loaded from, or saved to last.
            others: of images and classifiers, data of other things to show beside the held-out ones.
            interactive: write `explore.html` instead, one page with the model in it, which the browser evaluates:
                densities, classifiers of rows, posteriors. Of any other model a note says why not, and the report is
                written.

        Raises:
            InputError: without a folder, for a result that was never saved; or for `others` where they have no place.
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
        """Refuse an ensemble, of which one member would stand for all without a word."""
        if count := len(getattr(self, "members", ())):
            raise InputError(f"got an ensemble of {count + 1} models; {what} takes one; try a fit with ensemble=1")

    def _require_numbers(self, what: str, instead: str = "a fit to columns of numbers") -> None:
        """Refuse a model of a table of more than numbers, whose columns are coded by flowknife."""
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

        The page asks the model in Python, as `report(interactive=True)` asks the weights in its file. It needs
        starlette and uvicorn, the extra `[explore]`.

        Args:
            host: an address of this machine; beyond 127.0.0.1 others can reach it, with the token that is in the
                page's address.
            port: 0 for any that is free; default 8765, or any where that one is taken.
            opened: called with the page's address; default: it is printed.
            images: of a model of images, a folder, its address, or paths of image files: they are scored while the
                page is open, and shown by p-value.

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
        """The live page, and what it may ask; `images` to judge, of a model of images."""

    @abstractmethod
    def _report(self, folder, others) -> Path: ...

    def _without(self, **arguments):
        """Refuse arguments that mean nothing for this application."""
        for name, value in arguments.items():
            if value is not None:
                raise InputError(f"got {name}=... for a result of {self.application}, which takes none; try without")


def _restored(value, part):
    """An attribute as a model file has it: arrays of JAX become NumPy's, models stay."""
    if part is not None and value is not None:
        return part.from_tree(value)
    if isinstance(value, dict):
        return {name: np.asarray(array) for name, array in value.items()}
    return np.asarray(value) if isinstance(value, jax.Array) else value
