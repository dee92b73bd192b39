"""Training: `fit(model, data) -> FitResult`, one loop for arrays in memory and for streams of batches.

Arrays in memory stay on the device and many steps run inside one compiled loop; a stream's batches are fetched ahead in
a thread. What is kept is an exponential moving average of the weights (Polyak & Juditsky 1992), at the evaluation where
the held-out objective was best. With checkpoints a fit that was stopped goes on where it was.
"""

from flowknife._cluster import join
from flowknife._record import MINIMUM_STEPS
from flowknife._types import split_trainable
from flowknife.train._checkpoints import Checkpoints, Part, about_fit
from flowknife.train._feeds import Rows, StoredRows, take
from flowknife.train._fit import fit, whole
from flowknife.train._result import FitResult, missing_steps
from flowknife.train._steps import OPTIMISERS
from flowknife.train._training import Training

__all__ = [
    "MINIMUM_STEPS",
    "OPTIMISERS",
    "Checkpoints",
    "FitResult",
    "Part",
    "Rows",
    "StoredRows",
    "Training",
    "about_fit",
    "fit",
    "join",
    "missing_steps",
    "split_trainable",
    "take",
    "whole",
]
