"""`fk.invert` with its defaults against exact and MCMC posteriors: C2ST, and coverage of 90 % intervals.

PROBLEMS="two_moons gaussian_linear gravity dispersion" DRAWS=10000 python -m benchmarks posteriors
"""

import os
import time

import joblib
import numpy as np

import flowknife as fk

_CASES = {
    # simulations, form, observations compared with the reference, noise
    "two_moons": (10_000, "conditional", 10, None),
    "gaussian_linear": (10_000, "conditional", 10, None),
    "gravity": (100_000, "conditional", 5, 0.1),
    "dispersion": (20_000, "partitioned", 5, 0.01),
}


def run() -> None:
    """Print C2ST (0.5 is perfect) and the share of 1000 truths in their 90 % intervals, of parameters and noise."""
    draws = int(os.environ.get("DRAWS", "10000"))
    head = f"{'problem':<16}{'simulations':>12}{'form':>13}{'C2ST':>8}{'worst':>8}{'coverage':>10}{'noise':>8}"
    print(f"{head}{'fit s':>7}")
    for name in os.environ.get("PROBLEMS", " ".join(_CASES)).split():
        count, form, observations, noise = _CASES[name]
        problem = fk.problems.PROBLEMS[name]() if noise is None else fk.problems.PROBLEMS[name](noise=noise)
        start = time.perf_counter()
        settings = {"form": form, "noise": noise, "key": 0, "show_progress": False}
        if name == "dispersion":  # its simulations are stored
            theta, clean = fk.problems.pairs()
            posterior = fk.invert(pairs=(theta[:-1000], clean[:-1000]), prior=problem.prior, **settings)
        else:
            posterior = fk.invert(problem, num_simulations=count, **settings)
        seconds = time.perf_counter() - start
        if name == "dispersion":
            truth, clean = theta[-1000:], clean[-1000:]
        else:
            truth = np.asarray(problem.prior.sample(1000, key=7))
            clean = np.asarray(problem.forward(truth))
        y = clean + (noise or 0.0) * np.random.default_rng(0).normal(size=clean.shape)
        if noise is None:
            y = np.asarray(problem.simulate(truth, key=8))
        with joblib.parallel_config("loky", n_jobs=os.cpu_count(), inner_max_num_threads=1):  # the folds of C2ST
            found = [
                fk.diagnostics.c2st(
                    problem.reference_posterior(y[i], draws, key=20 + i), posterior.sample(draws, y=y[i], key=i)
                )
                for i in range(int(os.environ.get("OBSERVATIONS", observations)))
            ]
        inside, of_noise = _coverage(posterior, truth, y, y - clean)
        mean, worst = (np.mean(found), np.max(found)) if found else (np.nan, np.nan)
        row = f"{name:<16}{count:>12}{form:>13}{mean:>8.3f}{worst:>8.3f}{inside:>10.3f}{of_noise:>8}{seconds:>7.0f}"
        print(row, flush=True)


def _coverage(posterior, truth, y, true_noise):
    """Share of all components of parameters, and of noise, inside their central 90 % intervals."""
    if posterior.config.form == "partitioned":
        drawn, noise = posterior.sample_noise(500, y=y, key=1)
        of_noise = f"{_inside(noise, true_noise):.3f}"
    else:
        drawn, of_noise = posterior.sample(500, y=y, key=1), "-"
    return _inside(drawn, truth), of_noise


def _inside(drawn, truth):
    low, high = np.quantile(drawn, [0.05, 0.95], axis=1)
    return float(np.mean((truth >= low) & (truth <= high)))
