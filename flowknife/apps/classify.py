"""Applications 3 and 4, generative classification: one density per class, of pictures or of the rows of a table.

The same model says which class an item is of, draws new items of a class, and tells what is of none of the classes.
"""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowknife._settings import validated
from flowknife._types import Key, as_key
from flowknife.apps._class_config import ClassifyConfig
from flowknife.apps._class_data import is_picture_source, label_codes, read_pictures, split
from flowknife.apps._class_models import picture_model, table_model
from flowknife.apps._class_training import log_prior_of, train_pictures, train_table
from flowknife.apps._classifier import Classifier
from flowknife.apps._image_batches import grey_facts
from flowknife.apps.images import default_size
from flowknife.bijections import Affine
from flowknife.data import White, fingerprint, load_table
from flowknife.errors import InputError

_KEPT_ROWS = 5000  # training rows kept with the run, for figures
_KEPT_PICTURES = 400
_LOOKED_AT = 2000  # training pictures that the detector is fitted to
# What a setting is that was left open. With a beta of 0.5 pictures are classified as well as with 4, and drawn better.
_ROWS = {"beta": 4.0, "width": 64, "scalar": "spline"}
_PICTURES = {"beta": 0.5, "width": 256, "scalar": "affine"}
_OF_PICTURES = ("image_size", "bits", "augment")
_OF_TABLES = ("smoothing",)


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

    Rows and pictures with an unknown label (-1, None, NaN or "") are used too: of them p(x) is learnt.

    Args:
        x: rows, an array (n, d), DataFrame or table file; or pictures, a uint8 array (n, H, W) or (n, H, W, 1 or 3);
            or a folder of pictures with one subfolder per class.
        labels: n whole numbers or strings; the name of a DataFrame's column; None for a folder.
        config: settings; default `ClassifyConfig()`.
        key: int, JAX key or None; None means `config.seed`.
        show_progress: show progress bars.
        **settings: fields of `ClassifyConfig` that replace those in `config`; `train` may be a dict.

    Returns:
        the trained classifier with its held-out calibration.

    Raises:
        InputError: for items or labels that cannot be used, or settings that do not apply to them.

    Example:
        >>> import flowknife as fk
        >>> x = fk.data.TOYS["ring"].sample(400, key=0)
        >>> labels = fk.data.ring_labels(x)
        >>> model = fk.classify(x, labels, layers=2, train={"steps": 20}, show_progress=False)
        >>> model.predict(x[:3]).shape, model.sample(5, label=7, key=0).shape
        ((3,), (5, 2))
    """
    base = {} if config is None else config.model_dump(exclude_unset=True)
    config = validated(ClassifyConfig, {**base, **settings})
    if is_picture_source(x):
        _refuse(config, _OF_TABLES, "pictures")
        config = _completed(config, image_size=config.image_size or default_size(x), **_PICTURES)
        data, labels = read_pictures(x, labels, config.image_size, show_progress)
        items, names, origin, skipped = data.pixels, (), np.zeros(0), data.skipped
        facts = {"pictures": len(data), "skipped files": len(skipped), "fingerprint": fingerprint(data)}
        facts |= grey_facts(data, config.bits)
        white = data.white
        make, teach = _picture_model, partial(train_pictures, augmentation=config.augment)
    else:
        _refuse(config, _OF_PICTURES, "a table")
        white = White()
        config = _completed(config, **_ROWS)
        if isinstance(labels, str) and labels in getattr(x, "columns", ()):
            x, labels = x.drop(columns=[labels]), x[labels]
        table = load_table(x)
        values, names, skipped = np.asarray(table.values), table.names, ()
        # far from zero, single precision would lose the variation: such columns are centred before it is used
        origin = values.mean(axis=0) if values.dtype == np.float64 else np.zeros(values.shape[1])
        items, facts = (values - origin).astype(np.float32), {"rows": len(values)}
        make, teach = _table_model, partial(train_table, smoothing=config.smoothing)

    classes, codes = label_codes(labels, len(items), config.classes)
    model_key, fit_key, split_key = jax.random.split(as_key(config.seed if key is None else key), 3)
    share = config.train.validation if "validation" in config.train.model_fields_set else 0.15
    train, stopping, held = split(codes, share, split_key)
    if make is _picture_model and min(len(stopping), len(held)) < 2:
        raise InputError(f"got {len(items)} pictures; expected some to hold out; try more, or train.validation=0.5")
    log_prior = _log_prior(codes[train], len(classes))
    model, history, training, told = teach(
        make(items[train], config, len(classes), model_key),
        (items[train], codes[train]),
        (items[stopping], codes[stopping]) if len(stopping) else None,
        config.train,
        beta=config.beta,
        log_prior=log_prior,
        key=fit_key,
        show_progress=show_progress,
    )
    kept = train[: _KEPT_PICTURES if make is _picture_model else _KEPT_ROWS]
    held = held if len(held) else kept
    classifier = Classifier(
        model=model,
        classes=classes,
        log_prior=np.asarray(log_prior_of(model, jnp.asarray(log_prior))),
        temperature=1.0,
        names=names,
        origin=origin,
        reference=items[kept],
        reference_labels=codes[kept],
        held_out=items[held],
        held_out_labels=codes[held],
        detector=None,
        config=config.model_copy(update={"train": training}),
        history=history,
        skipped=skipped,
        facts={**facts, "without label": int(np.sum(codes < 0)), **told},
        white=white,
    )
    return classifier.calibrated(items[stopping], codes[stopping], items[train][:_LOOKED_AT])


def _completed(config, **defaults):
    """With these where the configuration says nothing."""
    return config.model_copy(update={name: value for name, value in defaults.items() if getattr(config, name) is None})


def _refuse(config, names, what):
    for name in names:
        if name in config.model_fields_set:
            raise InputError(f"got the setting {name!r} for {what}; expected settings that apply; try without it")


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


def _picture_model(pixels, config, classes, key):
    fixed = pixels.shape[1:], config.bits, config.law, classes
    # compiled as a whole: the many small draws of initial weights would take longer one by one
    make = eqx.filter_jit(lambda k: picture_model(*fixed, mixing="permute", key=k, **_sizes(config)))
    return make(key)


def _sizes(config) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("layers", "depth", "width", "scalar")}
