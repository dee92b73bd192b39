"""The interactive page of a classifier of rows: labelled rows, scores that calibrate, and the prior of the classes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowknife.apps.classify._models import padding_draws
from flowknife.explore import described_frame, thinned, write_page

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier

_ROWS = 1500  # shown


def explore_classify(classifier: "Classifier", folder: str | Path) -> Path:
    """Write `explore.html` of a classifier of rows into `folder`; return the page's path."""
    items, labels = classifier.examples
    pad = None
    if len(classifier.model.partition.left) > 1:
        block = classifier.model.partition.left[1]
        draws = np.asarray(padding_draws(classifier.model), np.float32)
        pad = {"size": block.size, "scale": block.law.scale, "draws": draws.ravel()}
    return write_page(
        classifier,
        folder,
        "classify",
        {
            "frame": described_frame(classifier.frame),
            "rows": classifier.frame.from_model(items[:_ROWS]),
            "labels": np.asarray(labels[:_ROWS], int),
            "classes": [str(name) for name in classifier.classes],
            "log_prior": np.asarray(classifier.log_prior, np.float64),
            "temperature": float(classifier.temperature),
            "pad": pad,
            "scores": thinned(classifier._held_out_anomaly),
        },
    )
