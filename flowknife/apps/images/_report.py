"""The report of an image model: data and samples, the latents, anomalies."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife import plots
from flowknife.apps.images._report_latents import (
    anomaly_maps,
    clusters,
    given_of,
    level_temperatures,
    nearest_training,
    of_each_class,
    through_latent,
)
from flowknife.data import load_images
from flowknife.data._cells import array_of
from flowknife.diagnostics import auroc, conformal_p_values, principal_plane
from flowknife.errors import CalibrationWarning
from flowknife.report._figures import flagging_text, keep, training, trust, which
from flowknife.report._page import Section
from flowknife.report._run import write_page

if TYPE_CHECKING:
    from flowknife.apps.images._result import Images


_MARKED = 10

_CLOUD = 400

_OBJECTIVE = "negative log-likelihood (nats per latent)"

_TEMPERATURES = (0.4, 0.6, 0.7, 0.8, 0.9, 1.0)


def report_images(model: "Images", folder: str | Path, others: Any = None) -> Path:
    """Write figures and `report.html` of an image model into `folder`; return the page's path.

    Args:
        model: the trained model.
        folder: where to write.
        others: anomalous images (a folder, an array, or an `ImageSet`) to compare with the held-out ones.
    """
    real, classes = model.examples, model.example_classes
    some = None if classes is None else np.resize(classes, 32)  # classes in proportion to their frequency
    simulated = model.sample(32, key=0, given=some)
    z_real, z_simulated = model.latents(real, classes), model.latents(simulated, some)
    other = None if others is None else _other(model, others)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # the report explains it itself
        scores = model.score(real, given=classes) if other is None else model.score(other)
        reference = model.detector.held_out if model.flagging.rows else model.score(real, given=classes)["score"]
    kept = which(model.flagging).lower()
    sections = [
        _images(model, real, simulated, folder),
        _anomalies(model, real, other, scores, folder),
        _latents(model, real, simulated, other, z_real, z_simulated, folder),
        through_latent(model, folder),
        trust(model),
        *training(model.history, folder, f"Each level keeps the weights of its best {kept} objective.", _OBJECTIVE),
    ]
    more = {}
    if other is not None:
        name = f"AUROC of the anomaly score, {len(other):,} other images against {len(reference):,} {kept} images"
        more[f"{name} (1 is perfect, 0.5 is chance)"] = auroc(reference, scores["score"])
    return write_page(model, folder, sections, more)


def _other(model, others):
    height, width, channels = model.shape
    if hasattr(others, "pixels"):
        return others
    return load_images(others, (height, width), channels=channels, crop=model.config.crop, white=model.white)


def _images(model, real, simulated, folder):
    shown, classes = real[:16], None if model.example_classes is None else model.example_classes[:16]
    regenerated = model.decode(model.encode(shown, classes), classes)
    first = plots.real_regenerated_simulated(shown, regenerated, simulated[:16])
    rows = [(t, model.sample(10, key=1, temperature=t, given=given_of(model))) for t in _TEMPERATURES]
    return Section(
        "Images",
        "Real images, the same images encoded and decoded, and new images drawn at temperature 0.7. A low temperature "
        "gives typical images, a high one more variation.",
        [
            keep(first, folder, "images", f"{model.config.bits} bits per channel."),
            keep(plots.temperatures(rows), folder, "temperatures", "The same latents at several temperatures."),
            *of_each_class(model, folder),
            *level_temperatures(model, folder),
            *nearest_training(model, simulated, folder),
        ],
    )


def _anomalies(model, real, other, scores, folder):
    pixels, names = (real, None) if other is None else (other.pixels, list(other.names))
    figures, found = [], ""
    if model.flagging.rows:
        alpha = model.config.alpha
        held = conformal_p_values(model.detector.held_out, model.detector.held_out)
        others = None if other is None else scores["p_value"]
        caption = "The most anomalous held-out images first." if other is None else ""
        figures = [
            keep(plots.anomaly_scores(held, others, alpha), folder, "p_values"),
            keep(plots.outliers(pixels, scores["p_value"], names, alpha=alpha), folder, "outliers", caption),
        ]
        found = (
            f" {int(scores['discovery'].sum())} of {len(scores['discovery'])} images are discoveries "
            f"(Benjamini-Hochberg, false discovery rate {alpha:g})."
        )
    given = model.example_classes if other is None or not model.classes else array_of(other.folders)
    figures += anomaly_maps(model, pixels, scores, folder, given)
    return Section(
        "Anomalies",
        "The score combines the latent radius and the likelihood of every level, compared with held-out images; the "
        "likelihoods of the image and of transformed copies of it; and its distance from the nearest training images. "
        f"{flagging_text(model.flagging)}{found}",
        figures,
    )


def _latents(model, real, simulated, other, z_real, z_simulated, folder):
    z_other = None if other is None else model.latents(other)
    rest = () if z_other is None else (z_other[:_CLOUD],)
    planes = principal_plane(z_real[:_CLOUD], z_simulated, *rest)
    cloud = plots.latent_cloud(
        planes[0],
        planes[1],
        planes[2] if rest else None,
        simulated[:_MARKED],
        None if other is None else other.pixels[:_MARKED],
    )
    radii = np.linalg.norm(z_real, axis=1)
    order = np.argsort(radii)
    near, far = order[:10], order[::-1][:10]
    ends_of_cloud = plots.closest_farthest(real[near], radii[near], real[far], radii[far])
    other_radii = None if z_other is None else np.linalg.norm(z_other, axis=1)
    return Section(
        "Latent cloud",
        "The latents of the images. Under a perfect model they follow N(0, I), so their norms follow a chi "
        "distribution.",
        [
            keep(
                cloud,
                folder,
                "cloud",
                f"{which(model.flagging)} images along the two principal axes of their standardised latents.",
            ),
            *clusters(model, z_real, folder),
            keep(ends_of_cloud, folder, "closest_farthest"),
            keep(plots.radius_histogram(radii, z_real.shape[1], other_radii), folder, "radii"),
            keep(plots.latent_histogram(z_real, z_other), folder, "latents"),
        ],
    )
