"""Anomaly scores of new rows of a small table, from the start of the process; `fk.density` with its defaults."""

import warnings

import common
import numpy as np

import flowknife as fk


def main():
    s = common.settings()
    warnings.simplefilter("ignore")  # few rows leave none for p-values

    def sample():
        with np.load(s["data"]) as arrays:
            train, normal, other = (arrays[f"{name}_{s['repeat']}"] for name in ("train", "normal", "other"))
        flow = fk.density(train, key=0, show_progress=False)
        scores = np.asarray(flow.score(np.concatenate([normal, other]))["score"])
        seconds = common.since_start()
        return {"seconds": seconds, "auroc": common.auroc(scores[: len(normal)], scores[len(normal) :])}

    common.serve({"versions": common.versions("flowknife", "jax"), "architecture": "as it is by default"}, sample)


main()
