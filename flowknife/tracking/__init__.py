"""Tracking of fits: TensorBoard, MLflow, or your own tracker. Nothing is tracked by default.

fk.density(x, track="tensorboard:runs/logs")
fk.density(x, track="mlflow:http://localhost:5000#experiment")
fk.density(x, track=[MyTracker()])
"""

from flowknife.tracking._tracker import Track, Tracker, as_trackers, measured, tracked_by

__all__ = ["Track", "Tracker", "as_trackers", "measured", "tracked_by"]
