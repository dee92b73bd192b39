"""Applications 3 and 4, generative classification: one density per class, of images or of the rows of a table."""

from flowknife.apps.classify._config import ClassifyConfig
from flowknife.apps.classify._fit import classify
from flowknife.apps.classify._result import Classifier

__all__ = ["Classifier", "ClassifyConfig", "classify"]
