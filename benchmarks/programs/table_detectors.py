"""Anomaly scores of new rows by a detector of scikit-learn or pyod, from the start of the process."""

import common
import numpy as np


def fitted(name, train):
    """A function of rows whose value grows with anomaly."""
    if name == "scikit-learn":
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(random_state=0).fit(train)
        return lambda x: -forest.score_samples(x)
    from pyod.models.iforest import IForest

    return IForest(random_state=0).fit(train).decision_function


def main():
    s = common.settings()

    def sample():
        with np.load(s["data"]) as arrays:
            train, normal, other = (arrays[f"{name}_{s['repeat']}"] for name in ("train", "normal", "other"))
        scores = fitted(s["detector"], train)(np.concatenate([normal, other]))
        seconds = common.since_start()
        return {"seconds": seconds, "auroc": common.auroc(scores[: len(normal)], scores[len(normal) :])}

    versions = common.versions("scikit-learn", "pyod", "numpy")
    common.serve({"versions": versions, "architecture": "isolation forest, 100 trees"}, sample)


main()
