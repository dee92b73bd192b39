"""Priors, each represented by a bijection from its parameters to N(0, I).

    u, log_det = prior.bijection.encode(theta)          u is exactly standard normal under the prior
    log_prob(theta) = log N(u; 0, I) + log_det          -inf outside of the support
    sample(key, n)  = decode(standard normal draws)

So a network on u that is followed by `prior.bijection.decode` cannot leave the support.

Parameters far from zero, such as Uniform(1.7e9, 1.7e9 + 1), cannot be resolved in single precision. Their prior
has a `frame`, which keeps origin and scale in double precision, and `inner` is the prior of (theta - origin) / scale.

Examples:
    >>> import flowknife as fk
    >>> prior = fk.priors.Product({
    ...     "angle": fk.Uniform(low=0.0, high=90.0, units=["deg"]),
    ...     "speed": fk.LogNormal(mean=2.7, scale=0.3, units=["m/s"]),
    ... })
    >>> prior.names, prior.sample(5, key=0).shape
    (('angle', 'speed'), (5, 2))
"""

from flowknife.priors._combined import Product, likeliest
from flowknife.priors._families import Fixed, Histogram, LogNormal, LogUniform, Normal, Truncated, Uniform
from flowknife.priors._prior import Prior
from flowknife.priors._process import KERNELS, GaussianProcess

__all__ = [
    "KERNELS",
    "Fixed",
    "GaussianProcess",
    "Histogram",
    "LogNormal",
    "LogUniform",
    "Normal",
    "Prior",
    "Product",
    "Truncated",
    "Uniform",
    "likeliest",
]
