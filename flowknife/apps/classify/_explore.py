"""The interactive page of a classifier of rows."""

from pathlib import Path
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from flowknife.apps._tables import restored
from flowknife.apps.classify._models import padding_draws
from flowknife.data.encoding import Coded
from flowknife.errors import InputError
from flowknife.explore import Live, count_of, described_frame, live_page, rows_of, seed_of, thinned, write_page

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier

_ROWS = 1500  # shown


def explore_classify(classifier: "Classifier", folder: str | Path) -> Path:
    """Write `explore.html` of a classifier of rows into `folder`; return the page's path."""
    classifier._require_numbers("a page of one file", "explore() (command line: flowknife explore RUN)")
    pad = None
    if len(classifier.model.partition.left) > 1:
        block = classifier.model.partition.left[1]
        draws = np.asarray(padding_draws(classifier.model), np.float32)
        pad = {"size": block.size, "scale": block.law.scale, "draws": draws.ravel()}
    return write_page(classifier, folder, "classify", {**_parts(classifier), "pad": pad})


def _parts(classifier):
    """The content of the page."""
    items, labels = classifier.examples
    return {
        "names": list(classifier.columns),
        "frame": described_frame(classifier.frame),
        "rows": classifier.frame.from_model(items[:_ROWS]),
        "labels": np.asarray(labels[:_ROWS], int),
        "classes": [str(name) for name in classifier.classes],
        "log_prior": np.asarray(classifier.log_prior, np.float64),
        "temperature": float(classifier.temperature),
        "scores": thinned(classifier._held_out_anomaly),
    }


def live_rows(classifier: "Classifier") -> Live:
    """The live page of a classifier of rows: its content and the functions that it can call."""
    model, size = classifier.model, len(classifier.columns)
    latent = sum(block.size for block in model.partition.right)

    def values(x, n):
        rows = rows_of(x, n, size).astype(float)
        return rows if classifier.encoding is None else Coded(rows)

    def sample(n, seed=0, temperature=1.0, label=None):
        if label is not None and label not in range(len(classifier.classes)):
            raise InputError(f"got class number {label!r}; expected one below {len(classifier.classes)}")
        chosen = None if label is None else classifier.classes[label]
        drawn = classifier.sample_numbers(count_of(n), label=chosen, key=seed_of(seed), temperature=temperature)
        return drawn.astype(float)

    def encode(x, n):
        return classifier.encode(values(x, n))

    def decode(z, n):
        left = model.bijection.decode(jnp.asarray(rows_of(z, n, latent), jnp.float32))[0]
        rows = restored(np.asarray(left)[:, :size], classifier.mixed)
        return classifier.frame.from_model(rows).astype(float)

    def joint(x, n):
        return classifier._log_joint(values(x, n)) + classifier.frame.log_det

    def log_prob(x, n):
        return classifier.log_prob(values(x, n))

    def prepare():
        shown = _parts(classifier)["rows"]
        for rows in (shown[:1], shown, np.resize(shown, (5000, size))):  # the batch sizes that the page requests
            joint(rows, len(rows))
            encode(rows, len(rows))
        sample(1000 // len(classifier.classes) + 1, label=0)

    calls = {"sample": sample, "encode": encode, "decode": decode, "log_prob": log_prob, "joint": joint}
    ends = {"latent": latent, "carried": model.partition.right[0].size}
    return live_page(classifier, "classify", {**_parts(classifier), **ends}, calls, prepare=prepare)
