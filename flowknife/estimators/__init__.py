"""Estimators for scikit-learn: `FlowDensity`, `AnomalyDetector`, `FlowClassifier`, `FlowRegressor`, `FlowTransformer`.

Each fits in a pipeline, is cloned, pickled, searched and cross-validated like any estimator. Every setting of training
and of the network is an argument; None leaves it open, to be chosen from the data. The fitted result of
`flowknife.apps` is in `flow_`, with all its methods. They work on any table of numbers, including features of other
networks. Needs scikit-learn: `pip install "flowknife[sklearn]"`.

Examples:
    >>> import flowknife as fk
    >>> detector = fk.AnomalyDetector(contamination=0.01, minutes=1)
    >>> detector.fit(x_train).predict(x_test)  # doctest: +SKIP
"""

from flowknife.estimators._base import FlowEstimator  # first, since it raises the error if scikit-learn is missing

# isort: split
from flowknife.estimators._anomalies import AnomalyDetector, PyODDetector
from flowknife.estimators._density import FlowDensity, FlowTransformer
from flowknife.estimators._supervised import FlowClassifier, FlowRegressor

__all__ = [
    "AnomalyDetector",
    "FlowClassifier",
    "FlowDensity",
    "FlowEstimator",
    "FlowRegressor",
    "FlowTransformer",
    "PyODDetector",
]
