"""Arrays in, matplotlib `Figure` out: every picture that flowknife draws, in one look.

Tables: `samples`, `density`, `mapping`, `mapping_animation`, `history`.
Latents: `latents`, `latent_histogram`, `radius_histogram`, `anomaly_scores`.
Images: `image_grid`, `real_regenerated_simulated`, `temperatures`, `interpolation`, `closest_farthest`, `outliers`,
`latent_cloud`.

A figure belongs to its caller alone: no pyplot, no global settings, so any thread may draw and nothing stays behind.
Save one with `figure.savefig("name.png")`. matplotlib is imported at the first drawing, not before.
"""

from flowknife.plots.animation import mapping_animation
from flowknife.plots.images import (
    closest_farthest,
    image_grid,
    interpolation,
    latent_cloud,
    outliers,
    real_regenerated_simulated,
    temperatures,
)
from flowknife.plots.normality import anomaly_scores, latent_histogram, latents, radius_histogram
from flowknife.plots.tables import density, history, mapping, samples

__all__ = [
    "anomaly_scores",
    "closest_farthest",
    "density",
    "history",
    "image_grid",
    "interpolation",
    "latent_cloud",
    "latent_histogram",
    "latents",
    "mapping",
    "mapping_animation",
    "outliers",
    "radius_histogram",
    "real_regenerated_simulated",
    "samples",
    "temperatures",
]
