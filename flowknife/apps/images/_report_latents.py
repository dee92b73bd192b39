"""Figures of the latent space of an image model: interpolation, levels, temperatures, nearest images, anomaly maps."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife import plots
from flowknife.diagnostics import principal_plane, ranked
from flowknife.report._figures import keep, which
from flowknife.report._page import PageImage, Section

if TYPE_CHECKING:
    from flowknife.apps.images._result import Images


_CHANGED = 6  # images in the figure of small changes

_CLASSES = 20  # at most, in the figure of samples per class

_CLOUD = 400

_MAPPED = 10

_NEIGHBOURS = 3

_CHANGES = ("itself", "mirrored", "1 px right", "1 px down", "turned 5°", "brighter", "darker")


def through_latent(model: "Images", folder: str | Path) -> Section:
    """Interpolation from one image to another, and each level resampled."""
    real, given = model.examples, given_of(model)
    if model.classes:
        real = real[model.example_codes == model.example_codes[0]]
    strip = plots.interpolation(model.interpolate(real[0], real[-1 if model.classes else 1], steps=9, given=given))
    rows = [(name, model.resample(real[0], name, n=7, key=0, given=given)[0]) for name in model.levels]
    return Section(
        "Interpolation and resampling",
        "Every point of the latent space is an image: on a path between two images, or with one level resampled and "
        "the others kept.",
        [
            keep(strip, folder, "interpolation", "Interpolation between two images, level by level on spheres."),
            keep(plots.resampled(real[0], rows), folder, "resampled", "z_0 is the coarsest level."),
        ],
    )


def given_of(model: "Images") -> Any:
    """The class of the first image shown, for figures of a single class; None without classes."""
    return None if model.example_classes is None else model.example_classes.tolist()[0]


def of_each_class(model: "Images", folder: str | Path) -> list[PageImage]:
    """Samples of each class; nothing without classes."""
    if not model.classes:
        return []
    rows = [(str(name), model.sample(10, key=1, given=name)) for name in model.classes[:_CLASSES]]
    figure = plots.compare(rows, "The same latents given each class.")
    return [keep(figure, folder, "classes", "New images of each class, at temperature 0.7.")]


def level_temperatures(model: "Images", folder: str | Path) -> list[PageImage]:
    """Samples with a temperature for the coarsest level and one for all others; nothing for a single level."""
    coarsest, *finer = model.levels
    if not finer:
        return []
    rows = []
    for first, rest in ((1.0, 1.0), (1.0, 0.7), (1.0, 0.4), (0.7, 1.0), (0.7, 0.7), (0.4, 1.0)):
        temperature = {coarsest: first, **dict.fromkeys(finer, rest)}
        drawn = model.sample(10, key=1, temperature=temperature, given=given_of(model))
        rows.append((f"T = {first:g}, {rest:g}", drawn))
    figure = plots.compare(
        rows, "The same latents with one temperature T for the coarsest level and one for all finer ones."
    )
    return [
        keep(
            figure,
            folder,
            "level_temperatures",
            "The coarsest level determines the layout, the finer levels the detail.",
        )
    ]


def nearest_training(model: "Images", simulated: np.ndarray, folder: str | Path) -> list[PageImage]:
    """Samples above their nearest training images."""
    found = model.nearest(simulated[:10], k=min(_NEIGHBOURS, len(model.neighbours.images)))
    if not model.flagging.rows:  # otherwise the images shown are training images, each its own nearest neighbour
        return []
    typical = np.median(model.nearest(model.held_out, k=1).distances)
    figure = plots.nearest(simulated[:10], found.images, found.distances, typical)
    caption = "Samples that are much nearer to training images than held-out images are were memorised, not generated."
    return [keep(figure, folder, "nearest", caption)]


def anomaly_maps(
    model: "Images", pixels: np.ndarray, scores: Mapping[str, np.ndarray], folder: str | Path, given: Any = None
) -> list[PageImage]:
    """Anomaly maps of some flagged images, or of the most anomalous ones if few are flagged."""
    some = max(int(np.sum(scores.get("flag", 0))), min(_MAPPED, len(pixels)))
    order = ranked(scores)[np.linspace(0, some - 1, min(_MAPPED, some)).astype(int)]
    maps = model.anomaly_map(pixels[order], None if given is None else given[order])
    if not maps.any():  # a latent without spatial positions
        return []
    column, letter = ("p_value", "p") if "p_value" in scores else ("score", "score")
    captions = [f"{letter} = {value:.3f}" for value in scores[column][order]]
    return [keep(plots.anomaly_maps(pixels[order], maps, captions), folder, "anomaly_maps")]


def clusters(model: "Images", z_real: np.ndarray, folder: str | Path) -> list[PageImage]:
    """The latents of images and of slightly changed copies, among the latents of all images."""
    versions = np.stack([_changed(image) for image in model.examples[:_CHANGED]])
    flat = versions.reshape(-1, *versions.shape[2:])
    given = model.example_classes
    given = None if given is None else np.repeat(given[:_CHANGED], len(_CHANGES))
    cloud, points = principal_plane(z_real[:_CLOUD], model.latents(flat, given))
    figure = plots.latent_clusters(cloud, points.reshape(*versions.shape[:2], 2), _CHANGES, versions)
    grey = which(model.flagging).lower()
    caption = f"Grey: {grey} images. In colour: a few of them (large markers) and slightly changed copies of each."
    return [keep(figure, folder, "clusters", caption)]


def _changed(image):
    """An image and its changed copies, in the order of `_CHANGES`."""
    from scipy import ndimage

    def shifted(axis):
        return np.concatenate([np.take(image, [0], axis), np.delete(image, -1, axis)], axis)

    turned = ndimage.rotate(image, 5, reshape=False, order=1, mode="nearest")
    lighter, darker = (np.clip(image.astype(int) + step, 0, 255).astype(np.uint8) for step in (24, -24))
    return np.stack([image, image[:, ::-1], shifted(1), shifted(0), turned, lighter, darker])
