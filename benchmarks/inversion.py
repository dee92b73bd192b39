"""`fk.invert` against exact posteriors: the protocol of Kruse et al. 2021 (arXiv 2101.10763) for two inverse problems.

    MINUTES=15 OBSERVATIONS=200 python -m benchmarks inversion

Err_post is the unbiased MMD^2 between 1000 draws and 1000 reference draws of each observation, averaged; Err_resim is
E|f(x) - y|^2 of the draws.
"""

import os
import time

import numpy as np

import flowknife as fk

_SETTINGS = {
    "kinematics": {"noise": 0.01},
    "ballistics": {"noise": 0.01},
}


def run() -> None:
    """Print both errors of both forms of both problems, and what they cost."""
    minutes = float(os.environ.get("MINUTES", "15"))
    observations = int(os.environ.get("OBSERVATIONS", "200"))
    forms = os.environ.get("FORMS", "conditional partitioned").split()
    print(f"{'problem':<12}{'form':<14}{'Err_post':>10}{'median':>9}{'Err_resim':>11}{'nll':>9}{'minutes':>9}")
    for name in os.environ.get("PROBLEMS", "kinematics ballistics").split():
        problem = fk.problems.PROBLEMS[name]()
        for form in forms:
            start = time.perf_counter()
            posterior = fk.invert(
                problem,
                form=form,
                num_simulations=int(os.environ.get("SIMULATIONS", "1000000")),
                train={"minutes": minutes},
                key=0,
                show_progress=False,
                **_SETTINGS[name],
            )
            spent = (time.perf_counter() - start) / 60
            post, resim = errors(problem, posterior, observations)
            print(
                f"{name:<12}{form:<14}{np.mean(post):>10.4f}{np.median(post):>9.4f}{np.mean(resim):>11.5f}"
                f"{posterior.metrics['nll']:>9.3f}{spent:>9.1f}",
                flush=True,
            )


def errors(problem, posterior, observations: int, draws: int = 1000) -> tuple[list[float], list[float]]:
    """(Err_post, Err_resim) of each observation."""
    truth = np.asarray(problem.prior.sample(observations, key=1))
    y = np.asarray(problem.forward(truth))
    post, resim = [], []
    for i, (one, drawn) in enumerate(zip(y, posterior.sample(draws, y=y, key=2), strict=True)):
        reference = problem.reference_posterior(one, draws, key=100 + i)
        post.append(fk.diagnostics.mmd2(drawn, reference))
        resim.append(fk.diagnostics.resimulation_error(np.asarray(problem.forward(drawn)), one).mean_squared)
    return post, resim
