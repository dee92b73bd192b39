"""Fit a generative classifier: one density per class, of images or of the rows of a table."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame, heavy_tails
from flowknife._interrupts import PARTIAL, finish
from flowknife._progress import note
from flowknife._settings import asked, require_applicable
from flowknife._split import split, split_sizes
from flowknife._types import Key, as_key, as_seed
from flowknife.apps.classify._config import ITEMS, ClassifyConfig, Moves
from flowknife.apps.classify._models import image_model, table_model
from flowknife.apps.classify._result import Classifier
from flowknife.apps.classify._training import log_prior_of, train_images, train_table
from flowknife.bijections import Affine
from flowknife.data import White, fingerprint, load_table
from flowknife.data.images import as_images, default_size, grey_facts
from flowknife.data.labels import is_image_source, label_codes, labels_of
from flowknife.diagnostics import Flagging, kept_rows
from flowknife.errors import InputError

_KEPT_ROWS = 5000  # training rows kept with the run, for figures

_KEPT_IMAGES = 400

_LOOKED_AT = 2000  # training images that the detector is fitted to

# With a beta of 0.5 images are classified as well as with 4, and drawn better.
_OF_ROWS = {"beta": 4.0, "width": 64, "scalar": "spline"}

_OF_IMAGES = {"beta": 0.5, "width": 256, "scalar": "affine", "bits": 5, "augment": Moves()}
"""What the settings are that were left open."""


def classify(
    x: Any,
    labels: Any = None,
    config: ClassifyConfig | None = None,
    *,
    key: Key = None,
    show_progress: bool = True,
    **settings: Any,
) -> "Classifier":
    """Learn one density per class, and with it to classify, to draw, and to tell what is of no class.

        p(class | x) = p(x | class) p(class) / sum_k p(x | k) p(k)

    Rows and images with an unknown label (-1, None, NaN or "") are used too: of them p(x) is learnt.

    Args:
        x: rows, an array (n, d), DataFrame or table file; or images, a uint8 array (n, H, W) or (n, H, W, 1 or 3);
            or a folder of images with one subfolder per class.
        labels: n whole numbers or strings; the name of a DataFrame's column; None for a folder.
        config: settings; default `ClassifyConfig()`.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        **settings: fields of `ClassifyConfig`, merged over those in `config`; `train` and `augment` may be dicts.

    Returns:
        the trained classifier with its held-out calibration.

    Raises:
        InputError: for items or labels that cannot be used, or settings that do not apply to them.
        Interrupted: by Ctrl-C during training; its `result` is the classifier with the best weights so far.

    Warns:
        CalibrationWarning: without calibration items, or with too few to flag anything.

    Example:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["ring"].sample(400, key=0)
        >>> labels = fk.data.ring_labels(x)
        >>> model = fk.classify(x, labels, layers=2, train={"steps": 20}, show_progress=False)
        >>> model.predict(x[:3]).shape, model.sample(5, label=7, key=0).shape
        ((3,), (5, 2))
    """
    config = asked(ClassifyConfig, config, settings, as_seed(key))
    of_images = is_image_source(x)
    require_applicable(config, ITEMS, {"items": "images" if of_images else "rows"})
    if of_images:
        used = config.completed(image_size=config.image_size or default_size(x), **_OF_IMAGES)
        data = as_images(x, used.image_size, show_progress)
        labels = labels_of(data, labels)
        items, names, frame, skipped = data.pixels, (), Frame((), ()), data.skipped
        facts = {"images": len(data), "skipped files": len(skipped), "fingerprint": fingerprint(data)}
        facts |= grey_facts(data, used.bits)
        white = data.white
    else:
        white = White()
        used = config.completed(**_OF_ROWS)
        if isinstance(labels, str) and labels in getattr(x, "columns", ()):
            x, labels = x.drop(columns=[labels]), x[labels]
        table = load_table(x)
        names, skipped, frame = table.names, (), Frame.of(table.values)
        tails = heavy_tails(table.values, names)
        note(tails, show_progress)
        items = frame.to_model(table.values)
        facts = {"rows": len(items), **({"heavy tails": tails} if tails else {})}

    classes, codes = label_codes(labels, len(items), config.classes)
    model_key, fit_key, split_key = jax.random.split(as_key(config.seed if key is None else key), 3)
    training = config.train
    spare = len(items) - len(np.unique(codes))
    sizes = split_sizes(len(items), training.validation, config.alpha, spare=spare)
    train, stopping, held = split(len(items), sizes, split_key, groups=codes)
    if of_images and not len(held) and training.validation != 0:
        raise InputError(f"got {len(items)} images; expected some to hold out; try more, or train.validation=0")
    log_prior = _log_prior(codes[train], len(classes))
    if of_images:
        model, teach = _image_model(items[train], used, len(classes), model_key), train_images
        own = {"augmentation": used.augment}
    else:
        used = used.completed(smoothing=_smoothing(items[train]))
        model, teach = _table_model(items[train], used, len(classes), model_key), train_table
        own = {"smoothing": used.smoothing}
    trained = teach(
        model,
        (items[train], codes[train]),
        (items[stopping], codes[stopping]) if len(stopping) else None,
        training,
        beta=used.beta,
        log_prior=log_prior,
        key=fit_key,
        show_progress=show_progress,
        **own,
    )
    model, told = trained.model, {"seconds": round(trained.seconds, 1), **trained.facts}
    kept = train[:_KEPT_IMAGES] if of_images else train[kept_rows(items[train], _KEPT_ROWS)]
    classifier = Classifier(
        model=model,
        classes=classes,
        log_prior=np.asarray(log_prior_of(model, jnp.asarray(log_prior))),
        temperature=1.0,
        names=names,
        frame=frame,
        reference=items[kept],
        reference_labels=codes[kept],
        held_out=items[held],
        held_out_labels=codes[held],
        detector=None,
        config=config,
        used=used.model_copy(update={"train": trained.training}),
        history=trained.history,
        skipped=skipped,
        facts={
            **({PARTIAL: trained.partial} if trained.partial else {}),
            **facts,
            "without label": int(np.sum(codes < 0)),
            **told,
            **Flagging(len(held), config.alpha, "items").facts(),
        },
        white=white,
    )
    return finish(
        lambda: classifier.calibrated(items[stopping], codes[stopping], items[train][:_LOOKED_AT]),
        interrupted=bool(trained.partial),
    )


def _smoothing(rows):
    """The more columns, the more of what one tells about the others is chance."""
    return float(min(min(0.1, 3.6 / len(rows) ** 0.5) * (max(rows.shape[1], 2) / 2) ** 0.5, 0.3))


def _log_prior(codes, classes):
    # half an item for a class that was not seen
    counts = np.maximum(np.bincount(codes[codes >= 0], minlength=classes), 0.5)
    return np.log(counts / counts.sum()).astype(np.float32)


def _table_model(rows, config, classes, key):
    sizes = _sizes(config)
    make = eqx.filter_jit(lambda unit, k: table_model(unit, config.law, classes, key=k, **sizes))
    unit = Affine.standardise(rows)
    # a column that is nearly always the same would be blown up by its standard deviation
    scale = jnp.maximum(unit.scale.value, np.ptp(rows, axis=0) / 4)
    return make(Affine(unit.loc.value, scale), key)


def _image_model(pixels, config, classes, key):
    fixed = pixels.shape[1:], config.bits, config.law, classes
    # compiled as a whole: the many small draws of initial weights would take longer one by one
    make = eqx.filter_jit(lambda k: image_model(*fixed, mixing="permute", key=k, **_sizes(config)))
    return make(key)


def _sizes(config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("layers", "depth", "width", "scalar")}
