"""Data that all sides of a row read, and what is found out about their answers afterwards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

Settings = Mapping[str, Any]


def toy(settings: Settings, folder: Path) -> dict[str, Any]:
    """Rows of a distribution of known entropy."""
    import flowknife as fk

    source = fk.data.TOYS[settings["toy"]]
    train, test = (source.sample(settings[n], key=i).astype(np.float32) for i, n in ((1, "rows"), (2, "new")))
    path = folder / "toy.npz"
    np.savez(path, train=train, test=test, entropy=source.entropy)
    return {"data": str(path)}


def table(settings: Settings, folder: Path) -> dict[str, Any]:
    """Rows to train on, new rows of the same kind, and others: one split for each repeat."""
    x, normal = _wine() if settings["table"] == "wine" else _digits()
    count = {"wine": 59, "digits": 1000}[settings["table"]]
    parts = {}
    for i in range(settings["splits"]):
        own = np.flatnonzero(normal)[np.random.default_rng(i).permutation(normal.sum())]
        train, new, other = x[own[:count]], x[own[count:]], x[~normal]
        if settings["table"] == "digits":
            train, new, other = _principal(train, (train, new, other), 20)
        parts |= {f"train_{i}": train, f"normal_{i}": new, f"other_{i}": other}
    path = folder / "table.npz"
    np.savez(path, **parts)
    return {"data": str(path)}


def _wine():
    from sklearn.datasets import load_wine

    x, cultivar = load_wine(return_X_y=True)
    return x, cultivar == 1


def _digits():
    from sklearn.datasets import load_digits

    x, digit = load_digits(return_X_y=True)
    return x, digit != 9


def _principal(fitted, tables, most):
    """The first principal components of rows, by the axes of `fitted`."""
    mean = fitted.mean(axis=0)
    axes = np.linalg.svd(fitted - mean, full_matrices=False)[2][:most]
    return tuple((rows - mean) @ axes.T for rows in tables)


def two_moons(settings: Settings, folder: Path) -> dict[str, Any]:
    """Pairs of parameters and data, and observations with draws of their exact posteriors."""
    import flowknife as fk

    problem = fk.problems.two_moons()
    theta = np.asarray(problem.prior.sample(settings["simulations"], key=1))
    y = np.asarray(problem.simulate(theta, key=2))
    truth = np.asarray(problem.prior.sample(settings["observations"], key=3))
    observed = np.asarray(problem.simulate(truth, key=4))
    exact = [problem.reference_posterior(one, settings["compared"], key=i) for i, one in enumerate(observed)]
    path = folder / "pairs.npz"
    np.savez(path, theta=theta, y=y, observed=observed, exact=np.stack(exact))
    return {"data": str(path), "out": str(folder / "draws.npy")}


def c2st(settings: Settings, folder: Path) -> dict[str, float]:
    """The mean C2ST of draws against draws of the exact posteriors; 0.5 is perfect."""
    import flowknife as fk

    with np.load(folder / "pairs.npz") as arrays:
        exact = arrays["exact"]
    drawn = np.load(folder / "draws.npy")
    return {"c2st": float(np.mean([fk.diagnostics.c2st(a, b) for a, b in zip(exact, drawn, strict=True)]))}
