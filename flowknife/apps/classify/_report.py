"""The report of a classifier: confusion, calibration of probabilities, samples per class, outliers."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife import plots
from flowknife.data import load_images
from flowknife.data.encoding import Coded
from flowknife.diagnostics import auroc
from flowknife.errors import CalibrationWarning
from flowknife.report._figures import flagging_text, keep, training, trust, which
from flowknife.report._page import Section
from flowknife.report._run import write_page

if TYPE_CHECKING:
    from flowknife.apps.classify._result import Classifier


_LATENTS, _MARKED = 2000, 200

_DRAWN = {"images": 10, "rows": 300}  # of each class

_MOST_CLASSES = 20  # more are not drawn

_OBJECTIVE = "objective, a weighted sum of label and likelihood terms"


def report_classify(classifier: "Classifier", folder: str | Path, others: Any = None) -> Path:
    """Write figures and `report.html` of a classifier into `folder`; return the page's path.

    Args:
        classifier: the trained model.
        folder: where to write.
        others: items of unknown classes to compare with the held-out ones: rows, or images (a folder, an array).
    """
    if others is not None and classifier.of_images and not hasattr(others, "pixels"):
        height, width, channels = classifier.shape
        grey_or_rgb: Any = channels
        others = load_images(others, (height, width), channels=grey_or_rgb, white=classifier.white)
    shown, labels = classifier.examples
    held = shown if classifier.of_images else classifier.frame.from_model(shown)
    scores = _scored(classifier, held)
    anomalous = _outliers_from(held) if others is None else others
    sections = [
        *_decisions(classifier, folder),
        _samples(classifier, held, labels, folder),
        _latents(classifier, held, labels, anomalous, folder),
        _outliers(classifier, held, scores, anomalous, others is None, folder),
        trust(classifier),
        *training(classifier.history, folder, classifier.record.training.sentence, _OBJECTIVE),
    ]
    return write_page(classifier, folder, sections)


def _outliers_from(held):
    """Outliers made from held-out items: inverted images, or rows with each column shuffled."""
    if held.ndim == 4:
        return 255 - held
    generator = np.random.default_rng(0)
    return np.stack([generator.permutation(column) for column in held.T], axis=1)


def _items(classifier, items):
    """Encoded rows in the form for the classifier; images and items of the user are unchanged."""
    return Coded(items) if classifier.encoding is not None and isinstance(items, np.ndarray) else items


def _scored(classifier, items):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the report explains it itself
        return classifier.score(_items(classifier, items))


def _decisions(classifier, folder):
    if not np.any(classifier.held_out_labels >= 0):
        return []
    names = [str(name) for name in classifier.classes]
    sure = classifier.reliability()
    return [
        Section(
            "Decisions",
            "Held-out items by true and predicted class, and the reliability of the probabilities: of items predicted "
            f"with probability p, a share p should be right. {sure.verdict}",
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
    drawn = [classifier.sample_numbers(count, label=label, key=0) for label in classes]
    figures = [keep(_of_classes(drawn, names, held, classifier.columns), folder, "samples")]
    own = [held[labels == code][:count] for code in range(len(classes))]
    if all(map(len, own)):
        heading = f"{which(classifier.flagging)} items of each class."
        figures.append(keep(_of_classes(own, names, held, classifier.columns, heading), folder, "held_out"))
    return Section(
        "Samples of each class",
        "The same model in the other direction: given the label, random latents decode to new items.",
        figures,
    )


def figure_of_samples(classifier: "Classifier") -> Any:
    """Items drawn for some classes, a few of each."""
    shown, _ = classifier.examples
    held = shown if classifier.of_images else classifier.frame.from_model(shown)
    classes = classifier.classes[:10]
    count = 8 if classifier.of_images else 200
    drawn = [classifier.sample_numbers(count, label=label, key=0) for label in classes]
    return _of_classes(drawn, [str(name) for name in classes], held, classifier.columns)


def _of_classes(items, names, reference, columns, heading=None):
    """A figure of images of each class, of points along the principal axes of `reference`, or of single numbers."""
    if items[0].shape[1:] == (1,):
        items = [np.insert(rows, 1, place, axis=1) for place, rows in enumerate(items)]
        columns = (*columns, "class")
    wide = reference.ndim == 2 and reference.shape[1] > 2
    return plots.class_samples(
        items, names, heading, reference if wide else None, columns if len(columns) == 2 else None
    )


def _latents(classifier, held, labels, anomalous, folder):
    z, outliers = (classifier.encode(_items(classifier, part)) for part in (held[:_LATENTS], anomalous))
    outliers = outliers[:_MARKED]
    names = [str(name) for name in classifier.classes]
    if z.shape[1] == 1:
        figure = plots.latent_histogram(z, outliers)
    else:
        figure = plots.latent_classes(z, labels[:_LATENTS], names, outliers)
    return Section(
        "Latents",
        f"{which(classifier.flagging)} items at the right end, coloured by their true class; crosses are other items.",
        [keep(figure, folder, "latents")],
    )


def _outliers(classifier, held, scores, anomalous, synthetic, folder):
    others, alpha, figures = _scored(classifier, anomalous), classifier.config.alpha, []
    if classifier.flagging.rows:
        figures.append(keep(plots.anomaly_scores(scores["p_value"], others["p_value"], alpha), folder, "p_values"))
    if classifier.flagging.rows and classifier.of_images:
        figure = (
            plots.outliers(held, scores["p_value"], alpha=alpha)
            if synthetic
            else plots.outliers(anomalous.pixels, others["p_value"], list(others["path"]), alpha=alpha)
        )
        figures.append(keep(figure, folder, "outliers", "The most anomalous first."))
    kind = "inverted held-out images" if classifier.of_images else "held-out rows with each column shuffled"
    what = f"the others are {kind}, some of which may still look like a class" if synthetic else "the others were given"
    return Section(
        "Outliers",
        "The p-value tests whether an item belongs to any of the classes. "
        f"{flagging_text(classifier.flagging)} AUROC of the score, {len(others['score']):,} other items against "
        f"{len(scores['score']):,} {which(classifier.flagging).lower()} items: "
        f"{auroc(scores['score'], others['score']):.3f} ({what}).",
        figures,
    )
