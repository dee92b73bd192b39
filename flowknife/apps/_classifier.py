"""What `classify` returns: a trained generative classifier."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp, softmax

from flowknife._progress import Report, progress, unreported
from flowknife._types import Key, as_key
from flowknife.apps._class_config import ClassifyConfig
from flowknife.apps._class_data import Names, as_codes, codes_of
from flowknife.apps._class_models import given_label, is_picture, look_at_pictures, look_at_rows
from flowknife.apps._class_training import fit_temperature
from flowknife.apps._image_batches import as_pictures, in_batches
from flowknife.apps._image_scores import with_complexity
from flowknife.data import Skipped, White, load_table, write_skipped
from flowknife.data._cells import array_of
from flowknife.diagnostics import (
    Check,
    Reliability,
    Typicality,
    accuracy,
    conformal_p_values,
    confusion,
    reliability,
    round_trip_error,
)
from flowknife.errors import InputError
from flowknife.inn import INN
from flowknife.storage import load_tree, read_history, read_run, write_run

_ROWS_AT_ONCE = 4096
_UPWARD = ("bits_per_dim", "complexity", "distance")  # the detector's first columns: the more, the stranger
_ARRAYS = ("log_prior", "reference", "reference_labels", "held_out", "held_out_labels")


@eqx.filter_jit
def _draw(model, key, label, temperature):
    return model.sample(key, temperature=temperature, **given_label(model, label))


@eqx.filter_jit
def _encode(model, x, key):
    return jnp.concatenate([z.reshape(len(x), -1) for z in model.encode(x, key=key).values()], axis=1)


@dataclass(frozen=True)
class Classifier:
    """A trained generative classifier.

    Attributes:
        model: the network, x <-> z (mixture) or x <-> y, z (label).
        classes: names of the classes, in the order of probabilities.
        log_prior: log p(class), shape (K,).
        temperature: of the calibrated probabilities.
        names: column names, none for pictures.
        origin: what is subtracted from each column first, in its units.
        reference: training items kept for figures.
        reference_labels: their classes by number, -1 for unknown.
        held_out: items that were not trained on.
        held_out_labels: their classes by number, -1 for unknown.
        detector: for pictures, the typicality test over levels.
        config: settings.
        history: columns of the training curve.
        skipped: files that could not be used, and why.
        facts: what is worth knowing about the run.
        white: of images, the pixel values that became 255.
    """

    model: INN = field(repr=False)
    classes: Names
    log_prior: np.ndarray = field(repr=False)
    temperature: float
    names: tuple[str, ...]
    origin: np.ndarray = field(repr=False)
    reference: np.ndarray = field(repr=False)
    reference_labels: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    held_out_labels: np.ndarray = field(repr=False)
    detector: Typicality | None = field(repr=False)
    config: ClassifyConfig
    history: dict[str, list[float]] = field(repr=False)
    skipped: tuple[Skipped, ...] = field(repr=False)
    facts: dict[str, Any]
    white: White = White()  # noqa: RUF009, a named tuple

    application = "classify"

    @property
    def pictures(self) -> bool:
        """Whether items are pictures; otherwise they are rows of a table."""
        return is_picture(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of pictures.

        Raises:
            AttributeError: for rows, which have `names`.
        """
        if not self.pictures:
            raise AttributeError("a classifier of rows has no shape; see names")
        height, width, channels = self.model.partition.left[0].shape
        return height, width, channels

    def predict(self, x: Any) -> np.ndarray:
        """The likeliest class of each item, shape (n,), as labels were given."""
        return self._labels(np.argmax(self._log_joint(x), axis=1))

    def codes(self, labels: Any) -> np.ndarray:
        """Places of labels among `classes`, shape (n,): -1 where unknown (None, NaN, ""), -2 for labels of no class."""
        return codes_of(labels, self.classes)

    def predict_proba(self, x: Any, calibrated: bool = True) -> np.ndarray:
        """Probability of every class, shape (n, K), in the order of `classes`.

        Args:
            x: items, as for `classify`.
            calibrated: apply the temperature that was fitted to held-out items; otherwise plain Bayes' rule.
        """
        return softmax(self._log_joint(x) / (self.temperature if calibrated else 1.0), axis=1)

    def log_prob(self, x: Any, label: Any = None) -> np.ndarray:
        """Log density of each item, in nats, shape (n,); of pictures log-probability, of `config.bits` bits.

        Args:
            x: items, as for `classify`.
            label: a class, or one for each item: log p(x | label). Without, log p(x), over all classes.
        """
        by_class = self._look(self._items(x)[0])[0]
        if label is None:
            return logsumexp(by_class + self.log_prior, axis=1)
        codes = np.broadcast_to(as_codes(label, self.classes), len(by_class))
        return by_class[np.arange(len(codes)), codes]

    def sample(self, n: int, label: Any = None, key: Key = None, temperature: Any = None) -> np.ndarray:
        """Draw `n` items, in the units of the data.

        Args:
            n: number of items.
            label: their class, or one for each; default: drawn by their frequency.
            key: int, JAX key or None.
            temperature: scale of the latents; default 1 for rows, 0.7 for pictures.
        """
        if n < 1:
            raise InputError(f"got n={n}; expected at least 1")
        label_key, key = jax.random.split(as_key(key))
        if label is None:
            codes = jax.random.categorical(label_key, jnp.asarray(self.log_prior), shape=(n,))
        else:
            codes = jnp.asarray(np.broadcast_to(as_codes(label, self.classes), n))
        temperature = temperature if temperature is not None else 0.7 if self.pictures else 1.0
        temperature = jax.tree.map(jnp.asarray, temperature)  # an argument of the compiled function, not part of it
        size = min(n, 16 if self.pictures else _ROWS_AT_ONCE)
        codes = jnp.resize(codes, (-(-n // size), size))  # batches of one size: one compiled program
        keys = jax.random.split(key, len(codes))
        drawn = [np.asarray(_draw(self.model, k, part, temperature)) for k, part in zip(keys, codes, strict=True)]
        rows = np.concatenate(drawn)[:n]
        return rows if self.pictures or not np.any(self.origin) else rows + self.origin

    def encode(self, x: Any) -> np.ndarray:
        """The right end of each item, shape (n, D): its latents, after the one-hot block where there is one."""
        parts = self._parts(self._items(x)[0])
        return np.concatenate([np.asarray(_encode(self.model, part, as_key(0)))[:count] for count, part in parts])

    def score(self, x: Any, show_progress: bool = False) -> dict[str, np.ndarray]:
        """Class and strangeness of each item.

        Args:
            x: items, as for `classify`.
            show_progress: show a progress bar.

        Returns:
            columns by name: row (or path); label, the likeliest class; probability, of that class; log_prob; score,
            larger is stranger (rows: -log p(x); pictures: two-sided, over all levels); p_value, conformal,
            whatever the class; flag, p_value < alpha. Of new items of the classes a share alpha is flagged.
        """
        items, names = self._items(x)
        with progress("scoring", show_progress) as report:
            look = self._look(items, report)
        joint = look[0] + self.log_prior
        strangeness = self._strangeness(items, look)
        p_value = conformal_p_values(strangeness, self._held_out_strangeness)
        return {
            ("path" if self.pictures else "row"): np.asarray(names),
            "label": self._labels(np.argmax(joint, axis=1)),
            "probability": softmax(joint / self.temperature, axis=1).max(axis=1),
            "log_prob": logsumexp(joint, axis=1),
            "score": strangeness,
            "p_value": p_value,
            "flag": p_value < self.config.alpha,
        }

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Of held-out items.

        `nll`, of p(x) in nats per item; `bits_per_dim` of pictures; where there are labels `accuracy`,
        `nll_given_label` (of p(x | label)), `cross_entropy` (of the calibrated probabilities, in nats),
        `expected_calibration_error`.
        """
        joint = self._held_out_look[0] + self.log_prior
        metrics = {"nll": float(-np.mean(logsumexp(joint, axis=1)))}
        if self.pictures:
            metrics["bits_per_dim"] = metrics["nll"] / float(np.prod(self.held_out.shape[1:]) * np.log(2))
        known = self.held_out_labels >= 0
        if known.any():
            labels = self.held_out_labels[known]
            own = np.arange(len(labels)), labels
            probability = softmax(joint[known] / self.temperature, axis=1)
            metrics |= {
                "accuracy": accuracy(labels, probability),
                "nll_given_label": float(-np.mean((joint[known] - self.log_prior)[own])),
                "cross_entropy": float(-np.mean(np.log(np.maximum(probability[own], 1e-300)))),
                "expected_calibration_error": self.reliability().error,
            }
        return metrics

    def confusion(self, x: Any = None, labels: Any = None) -> np.ndarray:
        """Counts by true class (row) and predicted class (column), of held-out items or of `x` with its `labels`."""
        probability, codes = self._judged(x, labels)
        return confusion(codes, np.argmax(probability, axis=1), len(self.classes))

    def reliability(self, x: Any = None, labels: Any = None) -> Reliability:
        """Confidence against accuracy, of held-out items or of `x` with its `labels`."""
        return reliability(*self._judged(x, labels))

    def check(self, x: Any = None, labels: Any = None) -> list[Check]:
        """Round trip, false alarms and calibration of held-out items, or of `x`, against what they should be.

        Args:
            x: items; default: those held out.
            labels: their classes, for the calibration of probabilities.
        """
        items = self.held_out if x is None else self._items(x)[0]
        strangeness = self._strangeness(items, self._held_out_look if x is None else self._look(items))
        alpha = self.config.alpha
        alarms = np.mean(conformal_p_values(strangeness, self._held_out_strangeness) < alpha)
        checks = [
            Check("round trip, in standard deviations", self._round_trip(items[:1000]), 1e-2),
            Check("share of items flagged", float(alarms), alpha + 4 * (alpha / len(items)) ** 0.5),
        ]
        labelled = np.any(self.held_out_labels >= 0) if x is None else labels is not None
        return [*checks, self.reliability(x, labels).check] if labelled else checks

    def save(self, folder: str | Path) -> Path:
        """Write a run directory; `flowknife.load` reads it."""
        record = {
            "application": self.application,
            "config": self.config.model_dump(exclude_none=True),
            "metrics": self.metrics,
            "data": {"names": list(self.names), "classes": list(self.classes), "temperature": self.temperature},
            "facts": self.facts,
        }
        # the origin needs double precision: text keeps it, whatever precision arrays are loaded in
        tree = {
            "model": self.model,
            "origin": tuple(float(value) for value in self.origin),
            "detector": self.detector and self.detector.to_tree(),
            **{name: np.asarray(getattr(self, name)) for name in _ARRAYS},
        }
        run = write_run(folder, record, tree, self.history)
        if self.pictures:
            write_skipped(run / "skipped.csv", self.skipped)
        return run

    @classmethod
    def load(cls, folder: str | Path) -> "Classifier":
        """Read a run directory that `save` wrote."""
        record, tree = read_run(folder), load_tree(Path(folder) / "model.safetensors")
        detector = tree["detector"] and Typicality.from_tree(tree["detector"])
        return cls(
            model=tree["model"],
            classes=tuple(record["data"]["classes"]),
            temperature=float(record["data"]["temperature"]),
            names=tuple(record["data"]["names"]),
            origin=np.asarray(tree["origin"], np.float64),
            detector=detector,
            config=ClassifyConfig.model_validate(record["config"]),
            history=read_history(folder),
            skipped=(),
            facts=record["facts"],
            white=White(**record["data"].get("white", {})),
            **{name: np.asarray(tree[name]) for name in _ARRAYS},
        )

    def report(self, folder: str | Path, others: Any = None) -> Path:
        """Write the figures and `report.html` into `folder`; return the page's path.

        Args:
            folder: the run directory.
            others: items of no class to show beside the held-out ones.
        """
        from flowknife.report import report_classify

        return report_classify(self, folder, others)

    # -- items as the model takes them ----------------------------------------------------------------------------

    def calibrated(self, items: np.ndarray, codes: np.ndarray, looked_at: np.ndarray) -> "Classifier":
        """With a temperature fitted to labelled items that were not trained on, and for pictures a detector.

        Args:
            items: rows or pictures, as the model takes them.
            codes: their classes by number, -1 for unknown.
            looked_at: training pictures that the detector is fitted to.
        """
        known = codes >= 0
        fitted = self
        if known.any():
            fitted = replace(self, temperature=fit_temperature(self._joint(items[known]), codes[known]))
        if not self.pictures:
            return fitted
        seen, held_out = (self._features(each, self._look(each)) for each in (looked_at, self.held_out))
        return replace(fitted, detector=Typicality.fit(seen, held_out, upward=dict.fromkeys(range(len(_UPWARD)), 1.0)))

    def _items(self, x) -> tuple[np.ndarray, Sequence[Any]]:
        """Items and their names."""
        if self.pictures:
            height, width, channels = self.shape
            data = as_pictures(x, (height, width), show_progress=False, channels=channels, white=self.white)
            if data.pixels.shape[1:] != self.shape:
                raise InputError(
                    f"got pictures of shape {data.pixels.shape[1:]}; expected {self.shape}, as in training"
                )
            return data.pixels, data.names
        values = load_table(x, columns=self.names, min_rows=1).values
        return (values - self.origin).astype(np.float32), range(len(values))

    def _parts(self, items) -> Iterator[tuple[int, np.ndarray]]:
        if self.pictures:
            return in_batches(items)
        # one size for each power of two, the last part filled up: few compiled programs serve all
        size = min(1 << max(len(items) - 1, 0).bit_length(), _ROWS_AT_ONCE)
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        return ((len(part), np.resize(part, (size, *part.shape[1:]))) for part in parts)

    def _look(self, items, report: Report = unreported) -> tuple[np.ndarray, np.ndarray]:
        """Log p(x | class), `(n, K)`, and the features of pictures, see `look_at_pictures`, `(n, 0)` for rows."""
        prior = jnp.asarray(self.log_prior)
        # the same noise for every batch: items differ by what they are, not by a draw
        looks, done = [], 0
        for count, part in self._parts(items):
            if self.pictures:
                seen = look_at_pictures(self.model, jnp.asarray(part), prior, as_key(0))
            else:
                seen = look_at_rows(self.model, jnp.asarray(part), as_key(0)), np.zeros((len(part), 0))
            looks.append([np.asarray(each, np.float64)[:count] for each in seen])
            done += count
            report(done / len(items), f"{done} of {len(items)}")
        by_class, features = (np.concatenate(parts) for parts in zip(*looks, strict=True))
        return by_class, features

    def _features(self, items, look):
        """What the detector is given of pictures: bits/dim, those beyond a PNG file, and what was seen of them."""
        by_class, features = look
        bits = -logsumexp(by_class + self.log_prior, axis=1) / np.log(2) / items[0].size
        return np.column_stack([bits, with_complexity(self.model, features, bits, items)])

    def _labels(self, places):
        """Classes by their places, as labels were given."""
        return array_of(self.classes)[places]

    def _joint(self, items):
        return self._look(items)[0] + self.log_prior

    def _log_joint(self, x):
        return self._joint(self._items(x)[0])

    @cached_property
    def _held_out_look(self):
        return self._look(self.held_out)

    def _strangeness(self, items, look):
        if self.detector is not None:
            return self.detector.score(self._features(items, look))
        return -logsumexp(look[0] + self.log_prior, axis=1)

    @cached_property
    def _held_out_strangeness(self):
        return self._strangeness(self.held_out, self._held_out_look)

    def _judged(self, x, labels):
        """Probabilities and classes by number of the items whose class is known."""
        if x is None:
            joint, codes = self._held_out_look[0] + self.log_prior, self.held_out_labels
        else:
            joint = self._log_joint(x)
            codes = np.broadcast_to(self.codes([labels] if np.ndim(labels) == 0 else labels), len(joint))
            if np.any(codes < -1):
                as_codes(labels, self.classes)
        known = codes >= 0
        if not known.any():
            raise InputError("got no held-out items with a label; expected some; try x and labels as arguments")
        return softmax(joint[known] / self.temperature, axis=1), codes[known]

    def _round_trip(self, items):
        left, _, batch = self.model._prepare(0, items, {})
        blocks = [left[block.name].reshape(*batch, -1) for block in self.model.partition.left]
        x = jnp.concatenate(blocks, axis=-1).reshape(*batch, *self.model.bijection.shape)
        return round_trip_error(self.model.bijection, x)
