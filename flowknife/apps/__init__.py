"""Applications: each is a configuration, a function that trains, and a result that samples, scores, saves and loads."""

from pathlib import Path

from flowknife.apps.classify import Classifier, ClassifyConfig, classify
from flowknife.apps.density import Density, DensityConfig, density
from flowknife.apps.images import Images, ImagesConfig, images
from flowknife.apps.invert import InvertConfig, Posterior, invert, simulate
from flowknife.errors import StorageError
from flowknife.storage import read_application

APPLICATIONS = {result.application: result for result in (Classifier, Density, Images, Posterior)}


def load(folder: str | Path) -> Classifier | Density | Images | Posterior:
    """Read a run directory of any application.

    Raises:
        StorageError: if there is none, it is damaged, of another version, or of an unknown application.
    """
    application = read_application(folder)
    if application not in APPLICATIONS:
        raise StorageError(
            f"got a run of application {application!r}; expected one of {', '.join(APPLICATIONS)}; try a newer "
            "flowknife"
        )
    return APPLICATIONS[application].load(folder)


__all__ = [
    "APPLICATIONS",
    "Classifier",
    "ClassifyConfig",
    "Density",
    "DensityConfig",
    "Images",
    "ImagesConfig",
    "InvertConfig",
    "Posterior",
    "classify",
    "density",
    "images",
    "invert",
    "load",
    "simulate",
]
