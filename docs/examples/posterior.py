"""Solve an inverse problem: all parameters that explain an observation, not one of them."""

import numpy as np

import flowknife as fk


def simulator(x):
    """Data of one row of parameters; x and -x have the same."""
    return x**2


prior = fk.Uniform(low=[-2, -2], high=[2, 2])
posterior = fk.invert(simulator, prior, num_simulations=2000, noise=0.1, layers=4, train={"steps": 500}, key=0)

drawn = posterior.sample(2000, y=[1.0, 1.0], key=1)
quadrants, counts = np.unique(np.sign(drawn), axis=0, return_counts=True)
for quadrant, count in zip(quadrants.astype(int).tolist(), counts, strict=True):
    print(f"signs {quadrant}: {count / len(drawn):.0%} of the draws")
