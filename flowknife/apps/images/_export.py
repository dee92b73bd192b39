"""Exported programs of an image model."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._batches import IMAGES_AT_ONCE
from flowknife._types import as_key
from flowknife.anomaly._features import features_of_levels
from flowknife.apps.images._latents import DRAWN_AT_ONCE, draw_batch
from flowknife.export import KEY, ROWS, TEMPERATURE, Input, Program, key_of
from flowknife.multiscale import decode_batch, encode_batch

if TYPE_CHECKING:
    from flowknife.apps.images._result import Images


def exported(model: "Images") -> tuple[dict[str, Program], dict[str, Any]]:
    """The programs of an image model, and the arguments to run them; images are uint8 (n, H, W, C)."""
    levels, classes = model.levels, len(model.classes)
    image, z = Input("images", model.shape, "uint8"), Input("z", (int(np.prod(model.shape)),))
    conditions = [Input("class", (classes,))] if classes else []

    def known(given):
        return {"y": given[0]} if conditions else {}

    def sample(own, words, temperature, rows):
        given = known([rows])
        return draw_batch(own, key_of(words), rows.shape[0], dict.fromkeys(levels, temperature), given)

    programs = {
        "log_prob": Program(
            lambda own, x, *given: features_of_levels(own, x, as_key(0), known(given)),
            (image, *conditions),
            IMAGES_AT_ONCE,
        ),
        "encode": Program(
            lambda own, x, *given: encode_batch(own, x, known(given)), (image, *conditions), IMAGES_AT_ONCE
        ),
        "decode": Program(lambda own, z, *given: decode_batch(own, z, known(given)), (z, *conditions), IMAGES_AT_ONCE),
        "sample": Program(sample, (KEY, TEMPERATURE, *(conditions or [ROWS])), DRAWN_AT_ONCE),
    }
    sizes = [columns.stop - columns.start for columns in levels.values()]
    about = {"shape": model.shape, "level_sizes": sizes, "classes": model.classes, "given_classes": classes}
    return programs, {**about, "sample_temperature": 0.7, "frames": {}}
