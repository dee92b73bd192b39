"""Exported programs of a classifier."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from flowknife._batches import IMAGES_AT_ONCE, ROWS_AT_ONCE
from flowknife._types import as_key
from flowknife.apps.classify._models import given_label, look_at_images, look_at_rows
from flowknife.export import KEY, TEMPERATURE, Input, Program, frame_of, key_of

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier

_DRAWN_AT_ONCE = 16  # images


def exported(classifier: "Classifier") -> tuple[dict[str, Program], dict[str, Any]]:
    """The programs of a classifier, and the arguments to run them; `log_prob` is the log density of each class."""
    of_images = classifier.of_images
    prior = np.asarray(classifier.log_prior)
    if of_images:
        item, most, drawn = Input("images", classifier.shape, "uint8"), IMAGES_AT_ONCE, _DRAWN_AT_ONCE
    else:
        item, most, drawn = Input("x", (classifier.frame.dim,)), ROWS_AT_ONCE, ROWS_AT_ONCE

    def log_prob(model, x):
        if of_images:
            return look_at_images(model, x, jnp.asarray(prior), as_key(0))[0]
        return look_at_rows(model, x, as_key(0))

    def encode(model, x):
        return jnp.concatenate([z.reshape(x.shape[0], -1) for z in model.encode(x, key=as_key(0)).values()], axis=1)

    def sample(model, words, temperature, codes):
        return model.sample(key_of(words), temperature=temperature, **given_label(model, codes))

    programs = {
        "log_prob": Program(log_prob, (item,), most),
        "encode": Program(encode, (item,), most),
        "sample": Program(sample, (KEY, TEMPERATURE, Input("codes", (), "int32")), drawn),
    }
    about = {
        "names": classifier.names,
        "classes": classifier.classes,
        "log_prior": prior.tolist(),
        "temperature": float(classifier.temperature),
        "log_det": classifier.frame.log_det,
        "frames": {} if of_images else {"x": frame_of(classifier.frame)},
        "sample_temperature": 0.7 if of_images else 1.0,
    }
    return programs, about
