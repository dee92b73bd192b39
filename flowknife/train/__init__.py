"""Training: `fit(model, data) -> FitResult`, one loop for arrays in memory and for streams of batches.

Arrays in memory stay on the device, and many steps run inside one compiled loop. Batches of a stream are prefetched in
a thread. The result has an exponential moving average of the weights (Polyak & Juditsky 1992), from the evaluation with
the best held-out objective. With checkpoints, an interrupted fit can be resumed.
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
