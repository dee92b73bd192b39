"""Applications: each is a configuration, a function that trains, and a result that samples, scores, saves and loads."""

from pathlib import Path

from flowknife.apps.classify import Classifier, ClassifyConfig, classify
from flowknife.apps.density import Density, DensityConfig, density
from flowknife.apps.images import Images, ImagesConfig, images
from flowknife.apps.invert import InvertConfig, Posterior, invert
from flowknife.errors import StorageError
from flowknife.storage import read_run

APPLICATIONS = {result.application: result for result in (Classifier, Density, Images, Posterior)}


def load(folder: str | Path) -> Classifier | Density | Images | Posterior:
    """Read a run directory, of whichever application.

    Raises:
        StorageError: if there is none, it is damaged, of another version, or of an unknown application.
    """
    application = read_run(folder)["application"]
    if application not in APPLICATIONS:
        raise StorageError(
            f"got a run of application {application!r}; expected one of {', '.join(APPLICATIONS)}; try a newer "
            "flowknife"
        )
    try:
        return APPLICATIONS[application].load(folder)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(
            f"got {folder}, a run that is damaged or of another version ({reason}); expected one that this version of "
            "flowknife wrote; try to fit anew"
        ) from None


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
]
