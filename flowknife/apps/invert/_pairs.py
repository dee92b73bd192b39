"""Validation and standardisation of pairs, prior and noise, and notes about them."""

import jax.numpy as jnp
import numpy as np

from flowknife._frame import Frame, heavy_tails, plain_frame
from flowknife.apps.invert._gaps import filled
from flowknife.apps.invert._task import Task
from flowknife.bijections import Inverse
from flowknife.data import Simulations, fingerprint
from flowknife.diagnostics import ks_normal
from flowknife.diagnostics._flows import there_and_back
from flowknife.errors import InputError

_LOOKED_AT = 20_000  # parameters to compare with their prior, at most

_RESOLVED = 0.02  # largest rounding error of single precision, in standard deviations of the prior

_FAILED = 0.01  # if a larger share of pairs is left out, the others may not be draws of the prior

_UNLIKE = 0.05  # relevant Kolmogorov-Smirnov distance of the parameters from their prior, in excess of chance

UNLIKE_PRIOR = "the parameters of the pairs are not distributed like the prior"


def shape_of(pairs, y, config) -> tuple[int, ...]:
    """The shape of one observation.

    Raises:
        InputError: the shape does not match the number of data or the embedding.
    """
    own = np.shape(pairs[1])[1:] if isinstance(pairs, (tuple, list)) and len(pairs) == 2 else ()
    shape = config.observation or (own if len(own) > 1 else (y.shape[1],))
    dims = {"numbers": (1, 2, 3), "set": (1, 2), "series": (1, 2), "image": (2, 3)}[config.embedding]
    if int(np.prod(shape)) != y.shape[1] or len(shape) not in dims:
        raise InputError(
            f"got observations of {y.shape[1]} numbers and of shape {shape} for embedding={config.embedding}; expected "
            f"a shape of {' or '.join(map(str, dims))} axes with as many numbers; try observation=(...)"
        )
    return tuple(int(side) for side in shape)


def frame_of(y, noise, used) -> Frame:
    """Origin and scale of the data; elements of a set share them, since their order is arbitrary."""
    if used.embedding is None:
        return Frame.of(y, drop_constant=True, noise=noise)
    y = filled(y)
    if used.embedding != "set":
        return Frame.of(y, noise=noise)
    size = used.observation[1] if len(used.observation) > 1 else 1
    one = Frame.of(y.reshape(-1, size))
    return Frame(one.origin * used.observation[0], one.scale * used.observation[0])


def pairs_fingerprint(data: Simulations, task: Task) -> str:
    if task.stored is not None:
        return task.stored.sha256
    return fingerprint(np.concatenate([data.theta, data.y], axis=1))


def require_inside(prior, theta):
    if theta.shape[1] != prior.dim:
        raise InputError(f"got parameters of {theta.shape[1]} numbers and a prior of {prior.dim}; expected as many")
    outside = ~np.isfinite(np.asarray(prior.log_prob(theta)))
    if outside.any():
        raise InputError(
            f"got {outside.sum()} of {len(theta)} parameters outside of the prior, the first in row "
            f"{np.argmax(outside) + 1}; expected all inside; try wider bounds"
        )
    fixed = () if prior.frame is None else prior.frame.constant
    for i in np.flatnonzero(np.ptp(theta, axis=0) == 0):
        if i not in fixed:
            name, value = prior.names[i], theta[0, i]
            raise InputError(
                f"got the parameter {name}, which is {value:g} in all {len(theta):,} pairs, and a prior that lets it "
                f"vary; expected draws from the prior; try fk.priors.Fixed({value:g}) for it, or pairs without a prior"
            )


def require_resolved(prior):
    """Refuse a prior that is too narrow for single precision, even relative to its own origin."""
    inner = prior.inner
    if not inner.dim:
        raise InputError(
            f"got parameters that never vary ({', '.join(prior.names)}); expected at least one that does; check the "
            "pairs"
        )
    u = np.repeat(np.linspace(-2, 2, 41, dtype=np.float32)[:, None], inner.dim, axis=1)
    back = np.asarray(there_and_back(Inverse(inner.bijection), jnp.asarray(u)))
    error = np.abs(back - u).max(axis=0)
    if np.all(error < _RESOLVED):
        return
    name = inner.names[int(np.argmax(np.where(np.isnan(error), np.inf, error)))]
    raise InputError(
        f"got a prior of {name} that single precision cannot resolve: its spread is too small beside its values; "
        "expected a larger spread; try a Uniform or Normal prior, or the parameter minus its usual value"
    )


def tails_note(theta, y, prior, estimated, y_names):
    """A note about heavy tails of the data, and of parameters whose prior was estimated; "" if there are none."""
    found = [heavy_tails(y, y_names)]
    if estimated:  # for a log-normal parameter the prior takes the logarithm already
        inside = (prior.frame or plain_frame(prior.dim)).to_model(theta)
        u = prior.inner.bijection.encode(jnp.asarray(inside))[0]
        found.append(heavy_tails(np.asarray(u), prior.inner.names))
    return "; ".join(line for line in found if line)


def require_exact(config, exact):
    """Refuse a random simulator in the partitioned form, which needs Gaussian noise of known size."""
    if config.form == "partitioned" and not exact:
        raise InputError(
            "got a simulator with its own random numbers and form=partitioned; expected data without randomness, "
            "and Gaussian noise as noise=...; try form=conditional"
        )


def failures_note(data, task):
    """A note about pairs that were left out; "" if there are none."""
    if not data.failed:
        return ""
    what = "pairs" if task.pairs else "simulations"
    return (
        f"{data.failed:,} of {data.failed + len(data.y):,} {what} cannot be used and were left out ({data.reason}); "
        "the posterior is that of parameters whose simulation works"
    )


def prior_note(x, prior, data):
    """A note if the given parameters x, in the units of the model, are not draws of the prior; else ""."""
    if data.failed > _FAILED * len(x):  # the remaining ones are not draws of it, and `failures_note` already says so
        return ""
    u = np.asarray(prior.inner.bijection.encode(jnp.asarray(x[:_LOOKED_AT]))[0])
    distance = max(ks_normal(column) for column in u.T)
    if distance < _UNLIKE + 2 / len(u) ** 0.5:
        return ""
    return (
        f"{UNLIKE_PRIOR} (Kolmogorov-Smirnov distance {distance:.2f}): the posterior is that under their own "
        "distribution, not under the prior; try pairs that are drawn from it, or no prior"
    )


def noise_of(noise, y) -> np.ndarray:
    scale = np.asarray(noise, np.float64)
    if scale.ndim > 1 or scale.size not in (1, y.shape[1]) or not np.all(np.isfinite(scale) & (scale >= 0)):
        raise InputError(f"got noise={noise}; expected a standard deviation, or one for each of {y.shape[1]} data")
    return np.broadcast_to(scale.reshape(-1), y.shape[1:])
