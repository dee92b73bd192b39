"""Application 2: images on the left, one latent per scale on the right.

One exact likelihood serves two purposes: sampling draws new images, and evaluation gives an anomaly score.
"""

from flowknife.apps.images._config import ImagesConfig
from flowknife.apps.images._fit import images
from flowknife.apps.images._result import Images

__all__ = ["Images", "ImagesConfig", "images"]
