"""Fit a generative classifier: one density per class, of images or of the rows of a table."""

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame, heavy_tails
from flowknife._interrupts import finish
from flowknife._progress import note
from flowknife._record import DataRecord, Record, described
from flowknife._settings import asked, require_applicable
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_key, as_seed, built, keys_of
from flowknife.apps._tables import (
    continuous,
    described_columns,
    discrete_columns,
    encoding_of,
    filled,
    mixed_of,
    models_more,
    of_numbers,
)
from flowknife.apps._track import tracked
from flowknife.apps.classify._config import ITEMS, ClassifyConfig, Moves
from flowknife.apps.classify._models import image_model, table_model
from flowknife.apps.classify._result import Classifier
from flowknife.apps.classify._training import log_prior_of, train_images, train_table
from flowknife.bijections import Affine
from flowknife.data import Table, fingerprint, load_table
from flowknife.data._pairs import LABEL, is_table, read_labelled
from flowknife.data.encoding import Encoding
from flowknife.data.images import as_images, default_size, grey_levels_note
from flowknife.data.labels import is_image_source, label_codes, labels_of, minus_one_note
from flowknife.diagnostics import Flagging, kept_rows
from flowknife.errors import InputError
from flowknife.tracking import Track
from flowknife.train import Checkpoints, about_fit

_KEPT_ROWS = 5000  # training rows kept with the run, for figures

_KEPT_IMAGES = 400

_LOOKED_AT = 2000  # training images to which the detector is fitted

# With beta 0.5, images are classified as well as with 4, and samples are better.
_OF_ROWS = {"beta": 4.0, "width": 64, "scalar": "spline", "missing": "refuse"}

_OF_IMAGES = {"beta": 0.5, "width": 256, "scalar": "affine", "bits": 5, "augment": Moves()}
"""Values of open settings."""


@tracked
def classify(
    x: Any,
    labels: Any = None,
    config: ClassifyConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    key: Key = None,
    drop_invalid: bool = False,
    show_progress: bool = True,
    checkpoints: str | os.PathLike[str] | None = None,
    resume: bool = False,
    track: Track = None,  # in effect by `tracked`
    **settings: Any,
) -> "Classifier":
    """Fit one density per class: a classifier that also draws samples and detects items of unknown classes.

        p(class | x) = p(x | class) p(class) / sum_k p(x | k) p(k)

    Rows and images with an unknown label (None, NaN or "") also train the model, through p(x). The label -1 is a class.

    Text, booleans, dates and missing values in rows are refused, unless the settings `categories`, `dates` and
    `missing` include them in the model, as in `density`. Samples then have them too, and are returned as a DataFrame.

    Args:
        x: rows, an array (n, d), DataFrame or table file; or images, a uint8 array (n, H, W) or (n, H, W, 1 or 3);
            or a folder of images with one subfolder per class.
        labels: n integers or strings; or the name of the label column of a DataFrame or table file, default "label".
            None for a folder, and for an .npz file with the arrays x and labels.
        config: settings; default `ClassifyConfig()`.
        names: names for the columns of an array, or the columns of a table to use; default all.
        key: int, JAX key or None; None means `config.seed`.
        drop_invalid: drop rows with missing or infinite numbers instead of refusing them.
        show_progress: show progress bars.
        checkpoints: a folder for checkpoints: a new one or, with `resume`, that of the same fit.
        resume: continue from the checkpoints, if there are any.
        track: tracker of the fit, "tensorboard:DIR", "mlflow:URI" or a `tracking.Tracker`; or a list of trackers.
        **settings: fields of `ClassifyConfig`, merged over those in `config`; `train` and `augment` may be dicts.

    Returns:
        the trained classifier with its held-out calibration.

    Raises:
        InputError: for items or labels that cannot be used, or settings that do not apply to them.
        StorageError: `checkpoints` belongs to another fit, or to this one while `resume` is False.
        Interrupted: on Ctrl-C during training; its `result` is the classifier with the best weights so far.

    Warns:
        CalibrationWarning: without calibration items, or with too few to flag anything.

    Examples:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["ring"].sample(400, key=0)
        >>> labels = fk.data.ring_labels(x)
        >>> model = fk.classify(x, labels, layers=2, train={"steps": 20}, show_progress=False)
        >>> model.predict(x[:3]).shape, model.sample(5, label=7, key=0).shape
        ((3,), (5, 2))
    """
    began = time.monotonic()
    config = asked(ClassifyConfig, config, settings, as_seed(key))
    of_images = is_image_source(x)
    require_applicable(config, ITEMS, {"items": "images" if of_images else "rows"})
    if of_images and names is not None:
        raise InputError("got names for images; expected a table; try without names")
    if of_images:
        used = config.completed(image_size=config.image_size or default_size(x), **_OF_IMAGES)
        data, encoding = as_images(x, used.image_size, show_progress), None
        labels = labels_of(data, labels)
        items, frame, skipped = data.pixels, Frame((), ()), data.skipped
        known = DataRecord(
            kind="images",
            rows=len(items),
            fingerprint=fingerprint(data),
            left_out=len(skipped),
            white=data.white,
            source=described(x),
        )
        note_of_data = grey_levels_note(data, used.bits)
    else:
        used = config.completed(**_OF_ROWS)
        table, labels, column, encoding = _read_rows(x, labels, names, used, drop_invalid)
        skipped, frame = (), Frame.of(table.values).plain_at(discrete_columns(encoding))
        note_of_data = heavy_tails(*continuous(table, encoding))
        note(note_of_data, show_progress)
        items = frame.to_model(table.values)
        known = DataRecord(
            kind="rows",
            rows=len(items),
            names=encoding.names if encoding else table.names,
            **described_columns(encoding),
            fingerprint=fingerprint(table.values),
            left_out=table.dropped,
            label_column=column,
            source=described(x),
        )

    classes, codes = label_codes(labels, len(items), config.classes)
    note(minus_one_note(classes), show_progress)
    key = as_key(config.seed if key is None else key)
    own_data = {"data": known.fingerprint, "names": known.names, "labels": fingerprint(codes)}
    about = about_fit("classify", config, **own_data, class_names=list(map(str, classes)))
    kept = Checkpoints(checkpoints, about, resume=resume, began=began, show=show_progress)
    model_key, fit_key, split_key = keys_of(key, 3)
    training = config.train
    spare = len(items) - len(np.unique(codes))
    sizes = split_sizes(len(items), training.validation, config.alpha, spare=spare)
    train, stopping, held = split(len(items), sizes, split_key, groups=codes)
    if of_images and not len(held) and training.validation != 0:
        raise InputError(f"got {len(items)} images; expected some to hold out; try more, or train.validation=0")
    log_prior = _log_prior(codes[train], len(classes))
    mixed, own = None, {}
    if of_images:
        model, teach = _image_model(items[train], used, len(classes), model_key), train_images
        own["augmentation"] = used.augment
    else:
        used = used.completed(smoothing=_smoothing(items[train]))
        mixed = mixed_of(items[train], frame, encoding)
        model, teach = _table_model(filled(items[train], mixed), used, len(classes), model_key), train_table
        own |= {"smoothing": used.smoothing, "mixed": mixed}
    trained = teach(
        model,
        (items[train], codes[train]),
        (items[stopping], codes[stopping]) if len(stopping) else None,
        training,
        beta=used.beta,
        log_prior=log_prior,
        key=fit_key,
        show_progress=show_progress,
        checkpoints=kept,
        **own,
    )
    Flagging(len(held), config.alpha, "items").warn()
    model = trained.model
    shown = train[:_KEPT_IMAGES] if of_images else train[kept_rows(items[train], _KEPT_ROWS)]
    classifier = Classifier(
        model=model,
        log_prior=np.asarray(log_prior_of(model, jnp.asarray(log_prior))),
        temperature=1.0,
        frame=frame,
        reference=items[shown],
        reference_labels=codes[shown],
        held_out=items[held],
        held_out_labels=codes[held],
        detector=None,
        mixed=mixed,
        history=trained.history,
        skipped=skipped,
        record=Record[ClassifyConfig](
            application="classify",
            config=config,
            used=used.model_copy(update={"train": trained.training}),
            data=known.model_copy(update={"classes": classes, "unlabelled": int(np.sum(codes < 0))}),
            training=trained.record,
            notes=(note_of_data,) if note_of_data else (),
        ),
    )
    return finish(
        lambda: classifier.calibrated(items[stopping], codes[stopping], items[train][:_LOOKED_AT]),
        interrupted=trained.record.partial,
    )


def _read_rows(
    x: Any, labels: Any, names: Sequence[str] | None, config: ClassifyConfig, drop_invalid: bool
) -> tuple[Table, Any, str | None, Encoding | None]:
    """The rows of a table, their labels, the name of the label column, and the encoding of the other columns."""
    encode = partial(encoding_of, config=config) if models_more(config) else None
    if is_table(x) and (labels is None or isinstance(labels, str)):
        read = partial(read_labelled, x, labels or LABEL, names, drop_invalid=drop_invalid, encode=encode)
        with nullcontext() if encode else of_numbers(x, names, drop_invalid, beside=(labels or LABEL,)):
            return read()
    encoding = encode and encode(x, names)
    if encoding is None:
        with of_numbers(x, names, drop_invalid):
            table = load_table(x, columns=names, drop_invalid=drop_invalid)
    else:
        table = encoding.read(x, drop_invalid=drop_invalid, min_rows=2, at_random=True)
    if table.dropped_rows and hasattr(labels, "__len__") and len(labels) == len(table.values) + table.dropped:
        labels = np.delete(np.asarray(labels, object), table.dropped_rows)
    return table, labels, None, encoding


def _smoothing(rows):
    """Noise on the training rows; it grows with the number of columns, since more of their correlations are chance."""
    return float(min(min(0.1, 3.6 / len(rows) ** 0.5) * (max(rows.shape[1], 2) / 2) ** 0.5, 0.3))


def _log_prior(codes, classes):
    # an unseen class counts as half an item
    counts = np.maximum(np.bincount(codes[codes >= 0], minlength=classes), 0.5)
    return np.log(counts / counts.sum()).astype(np.float32)


def _table_model(rows, config, classes, key):
    unit = Affine.standardise(rows)
    # division by its standard deviation would inflate a nearly constant column
    scale = jnp.maximum(unit.scale.value, np.ptp(rows, axis=0) / 4)
    return built(table_model, Affine(unit.loc.value, scale), config.law, classes, key=key, **_sizes(config))


def _image_model(pixels, config, classes, key):
    fixed = pixels.shape[1:], config.bits, config.law, classes
    return built(image_model, *fixed, mixing="permute", key=key, **_sizes(config))


def _sizes(config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("layers", "depth", "width", "scalar")}
