"""The report of a classifier: confusion, calibration of probabilities, samples per class, outliers."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife import plots
from flowknife.data import load_images
from flowknife.diagnostics import auroc
from flowknife.errors import CalibrationWarning
from flowknife.report._figures import flagging_text, keep, training, trust, which, write_page
from flowknife.report._page import Section

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier


_LATENTS, _MARKED = 2000, 200

_DRAWN = {"images": 10, "rows": 300}  # of each class

_MOST_CLASSES = 20  # more are not drawn

_OBJECTIVE = "objective, which weighs labels and likelihood"


def report_classify(classifier: "Classifier", folder: str | Path, others: Any = None) -> Path:
    """Write figures and `report.html` of a classifier into `folder`; return the page's path.

    Args:
        classifier: the trained model.
        folder: where to write.
        others: items of no class, shown beside the held-out ones: rows, or images (a folder, an array).
    """
    if others is not None and classifier.of_images and not hasattr(others, "pixels"):
        height, width, channels = classifier.shape
        grey_or_rgb: Any = channels
        others = load_images(others, (height, width), channels=grey_or_rgb, white=classifier.white)
    shown, labels = classifier.examples
    held = shown if classifier.of_images else classifier.frame.from_model(shown)
    scores = _scored(classifier, held)
    anomalous = _spoilt(held) if others is None else others
    sections = [
        *_decisions(classifier, folder),
        _samples(classifier, held, labels, folder),
        _latents(classifier, held, labels, anomalous, folder),
        _outliers(classifier, held, scores, anomalous, others is None, folder),
        trust(classifier),
        *training(classifier.history, folder, classifier.record.training.sentence, _OBJECTIVE),
    ]
    return write_page(classifier, folder, "Classification", sections)


def _spoilt(held):
    """What is of no class, made of what is: images as negatives, rows with columns that belong to different rows."""
    if held.ndim == 4:
        return 255 - held
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(column) for column in held.T], axis=1)


def _scored(classifier, items):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the report says it in its own words
        return classifier.score(items)


def _decisions(classifier, folder):
    if not np.any(classifier.held_out_labels >= 0):
        return []
    names = [str(name) for name in classifier.classes]
    sure = classifier.reliability()
    return [
        Section(
            "Decisions",
            "Held-out items by their true class and the class they were taken for; and whether items that are called "
            f"likely with probability p are right in a share p of cases. {sure.verdict}",
            [
                keep(plots.confusion(classifier.confusion(), names), folder, "confusion"),
                keep(plots.reliability(sure), folder, "reliability"),
            ],
        )
    ]


def _samples(classifier, held, labels, folder):
    count = _DRAWN["images" if classifier.of_images else "rows"]
    classes = classifier.classes[:_MOST_CLASSES]
    names = [str(name) for name in classes]
    drawn = [classifier.sample(count, label=label, key=0) for label in classes]
    figures = [keep(_of_classes(drawn, names), folder, "samples")]
    own = [held[labels == code][:count] for code in range(len(classes))]
    if all(map(len, own)):
        heading = f"{which(classifier.flagging)} items of each class."
        figures.append(keep(_of_classes(own, names, heading), folder, "held_out"))
    return Section(
        "What a class looks like",
        "The same model read backwards: with the label set and the latent drawn, it makes new items of that class.",
        figures,
    )


def _of_classes(items, names, heading=None):
    """Images or points of each class; single numbers are drawn over their class."""
    if items[0].shape[1:] == (1,):
        items = [np.insert(rows, 1, place, axis=1) for place, rows in enumerate(items)]
    return plots.class_samples(items, names, heading)


def _latents(classifier, held, labels, anomalous, folder):
    z, outliers = classifier.encode(held[:_LATENTS]), classifier.encode(anomalous)[:_MARKED]
    names = [str(name) for name in classifier.classes]
    if z.shape[1] == 1:
        figure = plots.latent_histogram(z, outliers)
    else:
        figure = plots.latent_classes(z, labels[:_LATENTS], names, outliers)
    return Section(
        "Latents",
        f"{which(classifier.flagging)} items at the right end, coloured by their true class; crosses are items of no "
        "class.",
        [keep(figure, folder, "latents")],
    )


def _outliers(classifier, held, scores, anomalous, spoilt, folder):
    others, alpha, figures = _scored(classifier, anomalous), classifier.config.alpha, []
    if classifier.flagging.rows:
        figures.append(keep(plots.anomaly_scores(scores["p_value"], others["p_value"], alpha), folder, "p_values"))
    if classifier.flagging.rows and classifier.of_images:
        figure = (
            plots.outliers(held, scores["p_value"], alpha=alpha)
            if spoilt
            else plots.outliers(anomalous.pixels, others["p_value"], list(others["path"]), alpha=alpha)
        )
        figures.append(keep(figure, folder, "outliers", "The most anomalous first."))
    kind = "negatives of images" if classifier.of_images else "rows whose columns come from different rows"
    what = f"Here the others are {kind}, some of which may still look like a class." if spoilt else ""
    return Section(
        "What is of no class",
        "The p-value asks whether an item is of any of the classes at all. "
        f"{flagging_text(classifier.flagging)} {what} The score tells them from {which(classifier.flagging).lower()} "
        f"items with an area under the ROC curve of {auroc(scores['score'], others['score']):.3f}.",
        figures,
    )
