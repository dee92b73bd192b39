"""The result of `flowknife.classify`: a trained generative classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Shaped
from scipy.special import logsumexp, softmax

from flowknife._batches import IMAGES_AT_ONCE, ROWS_AT_ONCE, bucket, map_batches
from flowknife._frame import Frame
from flowknife._mixed import Mixed
from flowknife._progress import Report, progress, unreported
from flowknife._settings import Settings
from flowknife._types import Key, as_count, as_key, sizes_agree
from flowknife.anomaly._scores import complexity
from flowknife.apps._result import Result
from flowknife.apps._tables import filled, restored
from flowknife.apps.classify._config import ClassifyConfig
from flowknife.apps.classify._models import given_label, is_image, look_at_images, look_at_mixed, look_at_rows
from flowknife.apps.classify._training import fit_temperature
from flowknife.data import White, load_table
from flowknife.data._cells import array_of
from flowknife.data._pairs import LABEL, is_table
from flowknife.data.encoding import Coded
from flowknife.data.images import as_images
from flowknife.data.labels import Names, as_codes, codes_of
from flowknife.diagnostics import (
    Check,
    Flagging,
    Reliability,
    Scores,
    Typicality,
    accuracy,
    class_losses,
    conformal_p_values,
    confusion,
    cross_entropies,
    reference_check,
    reliability,
    round_trip_error,
    scored,
)
from flowknife.diagnostics._flows import there_and_back
from flowknife.errors import InputError
from flowknife.laws import as_temperature, require_finite_draws

_DRAWN_AT_ONCE = 16  # images

_AS_GOOD = 0.01  # allowed excess of the error rate over simple classifiers

_ONE_SIDED = ("bits_per_dim", "complexity", "distance")  # the detector's first columns: larger is more anomalous


@eqx.filter_jit
def _draw(model, key, label, temperature):
    return model.sample(key, temperature=temperature, **given_label(model, label))


@eqx.filter_jit
def _encode(model, x, key):
    return jnp.concatenate([z.reshape(len(x), -1) for z in model.encode(x, key=key).values()], axis=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Classifier(Result[ClassifyConfig]):
    """A trained generative classifier.

    Attributes:
        model: the network, x <-> z (mixture) or x <-> y, z (label).
        log_prior: log p(class), shape (K,).
        temperature: temperature of the calibrated probabilities.
        frame: origin and scale of each column, in its units; for images without columns.
        reference: training items kept for figures, in the units of the model.
        reference_labels: their class numbers, -1 for unknown.
        held_out: calibration items, in the units of the model, used neither for training nor for early stopping; none
            with `train.validation=0`.
        held_out_labels: their class numbers, -1 for unknown.
        detector: for images, the typicality test over levels.
        mixed: the discrete columns of rows; None if there are none.

    For a table with categories, dates or missing values, `sample` returns a DataFrame with such columns, and p(x) is
    the probability of the discrete columns times the density of the continuous ones; see `docs/tables.md`. A row with a
    category that did not occur in training is impossible in every class. Its class probabilities are the class
    frequencies.
    """

    application: ClassVar[str] = "classify"
    title: ClassVar[str] = "classifier"
    settings: ClassVar[type[Settings]] = ClassifyConfig
    parts: ClassVar[Mapping[str, Any]] = {"detector": Typicality, "mixed": Mixed}
    kept: ClassVar[tuple[str, ...]] = (
        *parts,
        *("log_prior", "temperature", "frame", "reference", "reference_labels", "held_out", "held_out_labels"),
    )

    log_prior: np.ndarray = field(repr=False)
    temperature: float
    frame: Frame = field(repr=False)
    reference: np.ndarray = field(repr=False)
    reference_labels: np.ndarray = field(repr=False)
    held_out: np.ndarray = field(repr=False)
    held_out_labels: np.ndarray = field(repr=False)
    detector: Typicality | None = field(repr=False)
    mixed: Mixed | None = field(default=None, repr=False)

    @property
    def classes(self) -> Names:
        """The class labels, in the order of the probabilities."""
        return self.record.data.classes

    @property
    def white(self) -> White:
        """For images, the pixel values that were mapped to 255."""
        return self.record.data.white

    @property
    def of_images(self) -> bool:
        """Whether items are images; otherwise they are rows of a table."""
        return is_image(self.model)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of images.

        Raises:
            AttributeError: for a classifier of rows, which has `names` instead.
        """
        if not self.of_images:
            raise AttributeError("a classifier of rows has no shape; see names")
        height, width, channels = self.model.partition.left[0].shape
        return height, width, channels

    def predict(self, x: Any) -> Shaped[np.ndarray, " n"]:
        """The label of the most probable class of each item, shape (n,)."""
        return self._labels(np.argmax(self._probability(self._log_joint(x)), axis=1))

    def codes(self, labels: Any) -> Int[np.ndarray, " n"]:
        """Class numbers of labels, shape (n,): -1 for unknown (None, NaN, ""), -2 for labels not in `classes`."""
        return codes_of(labels, self.classes)

    def predict_proba(self, x: Any, calibrated: bool = True) -> Float[np.ndarray, "n k"]:
        """Probability of every class, shape (n, K), in the order of `classes`.

        Args:
            x: items, as for `classify`.
            calibrated: apply the temperature that was fitted to held-out items; otherwise plain Bayes' rule.

        If all densities of an item underflow, as for rows of 1e30, its probabilities are the class priors.
        """
        return self._probability(self._log_joint(x), None if calibrated else 1.0)

    def log_prob(self, x: Any, label: Any = None) -> Float[np.ndarray, " n"]:
        """Log density of each item, in nats, shape (n,); for images the log-probability at `config.bits` bits.

        Args:
            x: items, as for `classify`.
            label: a class, or one for each item, for log p(x | label); default log p(x), summed over all classes.
        """
        by_class = self._look(self._items(x)[0])[0] + self.frame.log_det
        if label is None:
            return logsumexp(by_class + self.log_prior, axis=1)
        codes = np.broadcast_to(as_codes(label, self.classes), len(by_class))
        return by_class[np.arange(len(codes)), codes]

    def sample(self, n: int, *, label: Any = None, key: Key = None, temperature: Any = None) -> Any:
        """Draw `n` items, in the units of the data; a DataFrame if the table has non-numeric columns.

        Args:
            n: number of items.
            label: the class of all items, or one for each; default: drawn with the class frequencies.
            key: int, JAX key or None.
            temperature: scale of the latents; default 1 for rows, 0.7 for images.
        """
        return self._as_table(self.sample_numbers(n, label=label, key=key, temperature=temperature))

    def sample_numbers(
        self, n: int, *, label: Any = None, key: Key = None, temperature: Any = None
    ) -> Shaped[np.ndarray, "n ..."]:
        """Like `sample`, but as numbers in `columns`: categories as their index, dates as days."""
        n = as_count(n, "item")
        if temperature is None:
            temperature = 0.7 if self.of_images else 1.0
        label_key, key = jax.random.split(as_key(key))
        if label is None:
            codes = jax.random.categorical(label_key, jnp.asarray(self.log_prior), shape=(n,))
        else:
            codes = jnp.asarray(np.broadcast_to(as_codes(label, self.classes), n))
        temperature = as_temperature(temperature)
        scale = jax.tree.map(jnp.asarray, temperature)  # an argument of the compiled function, not part of it
        size = bucket(n, _DRAWN_AT_ONCE if self.of_images else ROWS_AT_ONCE)
        codes = jnp.resize(codes, (-(-n // size), size))  # batches of one size: one compiled program
        keys = jax.random.split(key, len(codes))
        drawn = [np.asarray(_draw(self.model, k, part, scale)) for k, part in zip(keys, codes, strict=True)]
        rows = np.concatenate(drawn)[:n]
        if self.of_images:
            return rows
        return require_finite_draws(self.frame.from_model(restored(rows, self.mixed)), temperature)

    def encode(self, x: Any) -> Float[np.ndarray, "n d"]:
        """The right end of each item, shape (n, D): its latents, preceded by the one-hot block if there is one."""
        items = filled(self._items(x)[0], self.mixed)
        return map_batches(lambda part: [_encode(self.model, part, as_key(0))], items, self._most)[0]

    def score(self, x: Any, show_progress: bool = False) -> Scores:
        """Class and anomaly score of each item.

        Args:
            x: items, as for `classify`.
            show_progress: show a progress bar.

        Returns:
            in addition to the columns of every job (see `Scores`): label, the likeliest class; probability, that of
            this class; log_prob. The score of rows is -log p(x); that of images is two-sided, over all levels. Its
            p-value tests whether an item belongs to any class. Without calibration items there are no p-values, and a
            `CalibrationWarning` gives the reason; see `flagging`.
        """
        items, names = self._items(x)
        with progress("scoring", show_progress) as report:
            look = self._look(items, report)
        joint = look[0] + self.log_prior
        anomaly = self._anomaly(items, look)
        probability = self._probability(joint)
        columns = {
            ("path" if self.of_images else "row"): np.asarray(names),
            "label": self._labels(np.argmax(probability, axis=1)),
            "probability": probability.max(axis=1),
            "log_prob": logsumexp(joint, axis=1) + self.frame.log_det,
            "score": anomaly,
        }
        return scored(columns, self.flagging, self._p_values(anomaly))

    @property
    def flagging(self) -> Flagging:
        """How items are flagged; its `note` says why nothing can be, where that is so."""
        return Flagging(len(self.held_out), self.config.alpha, "items")

    @property
    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Example items and their class numbers: held-out items, or training items if none were held out."""
        if self.flagging.rows:
            return self.held_out, self.held_out_labels
        return self.reference, self.reference_labels

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Metrics on held-out items.

        `nll` of p(x) in nats per item; `bits_per_dim` for images; with labels also `accuracy`, `nll_given_label` (of
        p(x | label)), `cross_entropy` (of the calibrated probabilities, in nats) and `expected_calibration_error`. If
        no items were held out, the metrics are those of training items and their names begin with `training_`. The
        calibration error is then unknown and left out.
        """
        items, labels = self.examples
        look = self._held_out_look if self.flagging.rows else self._look(items)
        joint = look[0] + self.log_prior
        metrics = {"nll": float(-np.mean(logsumexp(joint, axis=1))) - self.frame.log_det}
        if self.of_images:
            metrics["bits_per_dim"] = metrics["nll"] / float(np.prod(items.shape[1:]) * np.log(2))
        known = labels >= 0
        if known.any():
            labels = labels[known]
            own = np.arange(len(labels)), labels
            probability = self._probability(joint[known])
            metrics |= {
                "accuracy": accuracy(labels, probability),
                "nll_given_label": float(-np.mean((joint[known] - self.log_prior)[own])) - self.frame.log_det,
                "cross_entropy": float(-np.mean(np.log(np.maximum(probability[own], 1e-300)))),
            }
            if self.flagging.rows:
                metrics["expected_calibration_error"] = self.reliability().error
        return self.flagging.named(metrics)

    def confusion(self, x: Any = None, labels: Any = None) -> Int[np.ndarray, "k k"]:
        """Counts by true class (row) and predicted class (column), of held-out items or of `x` with its `labels`."""
        probability, codes = self._judged(x, labels)
        return confusion(codes, np.argmax(probability, axis=1), len(self.classes))

    def reliability(self, x: Any = None, labels: Any = None) -> Reliability:
        """Confidence against accuracy, of held-out items or of `x` with its `labels`."""
        return reliability(*self._judged(x, labels))

    def _checks(self, data, given, /):
        """The round trip and false alarms; with labels also calibration, errors and cross-entropy."""
        self._without(given=given)
        x, labels = self._labelled(data)
        items = self.held_out if x is None else self._items(x)[0]
        anomaly = self._anomaly(items, self._held_out_look if x is None else self._look(items))
        checks = [self._round_trip(items, x), *self.flagging.checks_of(self._p_values(anomaly))]
        labelled = np.any(self.held_out_labels >= 0) if x is None else labels is not None
        return [*checks, self.reliability(x, labels).check, *self._references(items, x, labels)] if labelled else checks

    def _labelled(self, data):
        """Items and their labels; None without labels."""
        if isinstance(data, tuple) and len(data) == 2:
            return data
        if data is not None and self.of_images:
            images = self._images(data)
            return images, images.folders if any(images.folders) else None
        if not is_table(data):
            return data, None
        label = self.record.data.label_column or LABEL
        keep = () if label in self.names else (label,)
        if self.encoding is not None:
            table = self.encoding.read(data, keep=keep)
            return Coded(table.values), table.kept.get(label)
        table = load_table(data, columns=self.names, keep=keep, min_rows=1)
        return table.values, table.kept.get(label)

    def _references(self, items, x, labels) -> list[Check]:
        """Comparison of the class probabilities with those of simple classifiers."""
        seen = self.reference_labels >= 0
        if x is None:
            joint, codes = self._held_out_look[0] + self.log_prior, self.held_out_labels
        else:
            joint = self._joint(items)
            codes = self._known_codes(labels, len(items))
        known = codes >= 0
        if not (seen.any() and known.any()):
            return []
        parts = (filled(part, self.mixed) for part in (items[known], self.reference[seen]))
        rows, train = (part.reshape(len(part), -1).astype(float) for part in parts)
        simple = class_losses(train, self.reference_labels[seen], rows, codes[known], len(self.classes))
        entropy, errors = cross_entropies(joint[known] / self.temperature, codes[known])
        frequencies = {"class frequencies": simple["class frequencies"][0]}
        return [
            reference_check("cross entropy in nats", entropy, frequencies, 0.0),
            reference_check("share of errors", errors, {name: each[1] for name, each in simple.items()}, _AS_GOOD),
        ]

    def _fits(self):
        shape = self.model.partition.left[0].shape
        axes = " ".join("hwc"[: len(shape)]) if len(shape) > 1 else "d"
        if self.mixed is not None and (self.of_images or not self.mixed.fits(self.frame.dim)):
            return False
        return len(self.columns) == len(self.frame.origin) and sizes_agree(
            ("k", self.log_prior),
            (f"m {axes}", self.reference),
            ("m", self.reference_labels),
            (f"n {axes}", self.held_out),
            ("n", self.held_out_labels),
            **dict(zip(axes.split(), shape, strict=True)),
            k=len(self.classes),
        )

    def _figure(self):
        from flowknife.apps.classify._report import figure_of_samples

        return {"samples": figure_of_samples(self)}

    def _exported(self):
        from flowknife.apps.classify._export import exported

        return exported(self)

    def _report(self, folder, others):
        from flowknife.apps.classify._report import report_classify

        return report_classify(self, folder, others)

    def _explore(self, folder):
        from flowknife.apps.classify._explore import explore_classify

        return super()._explore(folder) if self.of_images else explore_classify(self, folder)

    def _live(self, images=None):
        from flowknife.apps.classify._explore import live_rows
        from flowknife.apps.classify._explore_images import live_images

        if self.of_images:
            return live_images(self, images)
        self._without(images=images)
        return live_rows(self)

    # -- items in the units of the model --------------------------------------------------------------------------

    def calibrated(self, items: np.ndarray, codes: np.ndarray, looked_at: np.ndarray) -> "Classifier":
        """A copy with the temperature fitted to labelled held-out items and, for images, a detector.

        Args:
            items: rows or images, in the units of the model.
            codes: their class numbers, -1 for unknown.
            looked_at: training images to which the detector is fitted.
        """
        known = codes >= 0
        fitted = self
        if known.any():
            fitted = replace(self, temperature=fit_temperature(self._joint(items[known]), codes[known]))
        if not self.of_images:
            return fitted
        seen = self._features(looked_at, self._look(looked_at))
        held_out = self._features(self.held_out, self._held_out_look) if self.flagging.rows else seen[:0]
        return replace(
            fitted, detector=Typicality.fit(seen, held_out, upward=dict.fromkeys(range(len(_ONE_SIDED)), 1.0))
        )

    def _items(self, x) -> tuple[np.ndarray, Sequence[Any]]:
        """Items and their names."""
        if self.of_images:
            data = self._images(x)
            return data.pixels, data.names
        if isinstance(x, Coded):
            values = x.values
        elif self.encoding is not None:
            values = self.encoding.read(x).values
        else:
            values = load_table(x, columns=self.names, min_rows=1).values
        return self.frame.to_model(values), range(len(values))

    def _images(self, x):
        height, width, channels = self.shape
        data = as_images(x, (height, width), show_progress=False, channels=channels, white=self.white)
        if data.pixels.shape[1:] != self.shape:
            raise InputError(f"got images of shape {data.pixels.shape[1:]}; expected {self.shape}, as in training")
        return data

    @property
    def _most(self):
        """Items in a batch, at most."""
        return IMAGES_AT_ONCE if self.of_images else ROWS_AT_ONCE

    def _look(self, items, report: Report = unreported) -> tuple[np.ndarray, np.ndarray]:
        """Log p(x | class), `(n, K)`, and the features of images, see `look_at_images`, `(n, 0)` for rows."""
        prior, mixed = jnp.asarray(self.log_prior), self.mixed
        points = None if mixed is None else jnp.asarray(mixed.points())

        def program(part):
            # the same noise for every batch, so that scores do not differ by random draws
            if self.of_images:
                return look_at_images(self.model, jnp.asarray(part), prior, as_key(0))
            rows = jnp.asarray(part)
            if mixed is None or points is None:
                found = look_at_rows(self.model, rows, as_key(0))
            else:
                found = look_at_mixed(self.model, mixed, points, rows, as_key(0))
            return found, np.zeros((len(part), 0))

        by_class, features = map_batches(program, items, self._most, report)
        by_class = by_class.astype(np.float64)
        if mixed is not None:
            by_class += mixed.gap_units(items, self.frame.scale_kept)[:, None]
            by_class[~mixed.known(items)] = -np.inf
        return by_class, features.astype(np.float64)

    def _features(self, items, look):
        """Features of images for the detector: bits/dim, their excess over a PNG file, and the level features."""
        by_class, features = look
        bits = -logsumexp(by_class + self.log_prior, axis=1) / np.log(2) / items[0].size
        return np.column_stack([bits, complexity(items, bits, self.model.partition.left[0].law.bits), features])

    def _labels(self, places):
        """Labels of class numbers."""
        return array_of(self.classes)[places]

    def _joint(self, items):
        return self._look(items)[0] + self.log_prior

    def _log_joint(self, x):
        return self._joint(self._items(x)[0])

    def _probability(self, joint, temperature=None):
        """Class probabilities; the class priors for items whose densities all underflow."""
        known = np.isfinite(joint).any(axis=1, keepdims=True)
        scaled = joint / (self.temperature if temperature is None else temperature)
        return softmax(np.where(known, scaled, self.log_prior), axis=1)

    @cached_property
    def _held_out_look(self):
        return self._look(self.held_out)

    def _anomaly(self, items, look):
        if self.detector is not None:
            return self.detector.score(self._features(items, look))
        return -logsumexp(look[0] + self.log_prior, axis=1) - self.frame.log_det

    @cached_property
    def _held_out_anomaly(self):
        return self._anomaly(self.held_out, self._held_out_look) if self.flagging.rows else np.zeros(0)

    def _p_values(self, anomaly):
        return conformal_p_values(anomaly, self._held_out_anomaly)

    def _judged(self, x, labels):
        """Probabilities and class numbers of the items whose class is known."""
        if x is None:
            self.flagging.require_held_out()
            joint, codes = self._held_out_look[0] + self.log_prior, self.held_out_labels
        else:
            joint = self._log_joint(x)
            codes = self._known_codes(labels, len(joint))
        known = codes >= 0
        if not known.any():
            raise InputError("got no held-out items with a label; expected some; try x and labels as arguments")
        return self._probability(joint[known]), codes[known]

    def _known_codes(self, labels, count):
        """Class numbers of `count` labels, -1 if unknown; refuses labels that are not in `classes`."""
        codes = np.broadcast_to(self.codes([labels] if np.ndim(labels) == 0 else labels), count)
        if np.any(codes < -1):
            as_codes(labels, self.classes)
        return codes

    def _round_trip(self, items, x) -> Check:
        """The worst round trip of held-out and training rows; for images that of some images together."""
        if self.of_images:
            error = round_trip_error(self.model.bijection, self._left(items[:1000]))
            return Check("round trip, in standard deviations", error, 1e-2)
        rows = filled(items if x is not None else np.concatenate([items, self.reference]), self.mixed)
        (back,) = map_batches(lambda part: [there_and_back(self.model.bijection, self._left(part))], rows, self._most)
        back = self.frame.from_model(back[:, : len(self.columns)])
        reference = self.frame.from_model(filled(self.reference, self.mixed))
        return Check.of_round_trip(self.frame.from_model(rows), back, self.columns, reference)

    def _left(self, items):
        """The left end of items, as one array."""
        return self.model.left_end(items, key=0).array
