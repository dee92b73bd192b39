"""All figures of flowknife, in one style: functions of arrays that return a matplotlib `Figure`.

Tables: `samples`, `density`, `mapping`, `mapping_animation`, `history`.
Latents: `latents`, `latent_histogram`, `radius_histogram`, `anomaly_scores`.
Images: `image_grid`, `compare`, `real_regenerated_simulated`, `temperatures`, `interpolation`, `closest_farthest`,
`outliers`, `latent_cloud`, `latent_clusters`, `along`, `nearest`, `resampled`, `anomaly_maps`, `heat_maps`,
`interpolation_animation`.
Posteriors: `corner`, `calibration`, `coverage`, `predictive`, `recovery`, `contraction`, `promised`.
Streams: `monitoring`.
Classes: `confusion`, `reliability`, `latent_classes`, `class_samples`.

Figures use neither pyplot nor global settings, so any thread may draw, and figures need not be closed. Save one with
`figure.savefig("name.png")`. matplotlib is imported when the first figure is drawn.
"""

from flowknife.plots.animation import mapping_animation
from flowknife.plots.classes import class_samples, confusion, latent_classes, reliability
from flowknife.plots.clusters import latent_clusters
from flowknife.plots.images import (
    closest_farthest,
    compare,
    image_grid,
    interpolation,
    latent_cloud,
    outliers,
    real_regenerated_simulated,
    temperatures,
)
from flowknife.plots.normality import anomaly_scores, latent_histogram, latents, radius_histogram
from flowknife.plots.posterior import calibration, corner, coverage, predictive
from flowknife.plots.problems import problem
from flowknife.plots.promises import contraction, monitoring, promised, recovery
from flowknife.plots.strips import along, anomaly_maps, heat_maps, interpolation_animation, nearest, resampled
from flowknife.plots.tables import density, history, mapping, samples

__all__ = [
    "along",
    "anomaly_maps",
    "anomaly_scores",
    "calibration",
    "class_samples",
    "closest_farthest",
    "compare",
    "confusion",
    "contraction",
    "corner",
    "coverage",
    "density",
    "heat_maps",
    "history",
    "image_grid",
    "interpolation",
    "interpolation_animation",
    "latent_classes",
    "latent_cloud",
    "latent_clusters",
    "latent_histogram",
    "latents",
    "mapping",
    "mapping_animation",
    "monitoring",
    "nearest",
    "outliers",
    "predictive",
    "problem",
    "promised",
    "radius_histogram",
    "real_regenerated_simulated",
    "recovery",
    "reliability",
    "resampled",
    "samples",
    "temperatures",
]
