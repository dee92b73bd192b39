"""Products of independent priors, and priors estimated from draws."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from flowknife._frame import plain_frame
from flowknife._types import as_numbers
from flowknife.bijections import (
    Concatenate,
)
from flowknife.errors import InputError
from flowknife.priors._families import Fixed, LogNormal, Normal, Uniform
from flowknife.priors._prior import Prior, Words, default_names


def Product(parts: Mapping[str, Prior]) -> Prior:
    """Independent parts side by side, in their order.

    A part with one parameter gives the parameter its name. The parameters of a larger part keep their names, or are
    numbered.

    Args:
        parts: priors by name.

    Raises:
        InputError: for anything but priors by name, for no parts, or for repeated names.
    """
    if not isinstance(parts, Mapping) or not parts:
        got = "no parts" if parts is None or isinstance(parts, Mapping) else f"{type(parts).__name__} as the parts"
        raise InputError(f'got {got}; expected priors by name; try Product({{"x": Normal(0, 1)}})')
    for name, prior in parts.items():
        if not isinstance(name, str) or not isinstance(prior, Prior):
            raise InputError(
                f"got the part {name!r} of type {type(prior).__name__}; expected a name and a prior; try "
                'Product({"x": Normal(0, 1)})'
            )
    priors = list(parts.values())
    names = [name for key, prior in parts.items() for name in _names_of_part(key, prior)]
    frames = [plain_frame(prior.dim) if prior.frame is None else prior.frame for prior in priors]
    frame = None if all(prior.frame is None for prior in priors) else frames[0].join(*frames[1:])
    varying = [prior.inner for prior in priors if prior.inner.dim]
    if not varying:
        return Fixed(np.concatenate([frame.origin for frame in frames]), names=names, units=_units(priors))
    known = all(prior.moments is not None for prior in varying)
    return Prior(
        Concatenate([prior.bijection for prior in varying]),
        low=np.concatenate([prior.low for prior in varying]),
        high=np.concatenate([prior.high for prior in varying]),
        mean=np.concatenate([np.asarray(prior.mean) for prior in varying]) if known else None,
        std=np.concatenate([np.asarray(prior.std) for prior in varying]) if known else None,
        names=names,
        units=_units(priors),
        frame=frame,
    )


def _units(priors: Sequence[Prior]) -> list[str]:
    return [unit for prior in priors for unit in prior.units]


def _names_of_part(name: str, prior: Prior) -> Sequence[str]:
    if prior.dim == 1:
        return [name]
    numbered = prior.names == default_names(prior.dim)
    return [f"{name}{i + 1}" for i in range(prior.dim)] if numbered else prior.names


def likeliest(theta: Float[np.ndarray, "n d"], names: Words = None) -> Prior:
    """Estimate a prior of independent parameters from draws: the most likely of uniform, normal and log-normal each.

    The bounds of a uniform component lie beyond its extreme draws by the mean distance between neighbouring draws. A
    constant component is `Fixed`.

    Args:
        theta: draws, shape (n, d).
        names: names of the parameters; default x1, x2, ...

    Raises:
        InputError: for draws that are not finite numbers of that shape.
    """
    theta = as_numbers(theta, "draws")
    if theta.ndim != 2 or not theta.size or not np.all(np.isfinite(theta)):
        raise InputError(f"got draws of shape {theta.shape}; expected finite numbers of shape (n, d)")
    names = default_names(theta.shape[1]) if names is None else names
    return Product({name: _likeliest(column) for name, column in zip(names, theta.T, strict=True)})


def _likeliest(draws) -> Prior:
    if np.ptp(draws) <= 4 * np.finfo(float).eps * np.abs(draws).max():
        return Fixed(np.median(draws))
    mean, scale = draws.mean(), draws.std()
    margin = np.ptp(draws) / len(draws)
    low, high = draws.min() - margin, draws.max() + margin
    # mean log densities at the draws
    found = {"uniform": -np.log(high - low), "normal": -np.log(scale) - 0.5 * np.log(2 * np.pi * np.e)}
    logs = np.log(draws) if draws.min() > 0 else np.zeros(1)
    if logs.std() > 1e-3:  # a narrower log-normal equals a normal
        found["log-normal"] = -np.log(logs.std()) - 0.5 * np.log(2 * np.pi * np.e) - logs.mean()
    best = max(found, key=found.__getitem__)
    if best == "uniform":
        return Uniform(low, high)
    return Normal(mean, scale) if best == "normal" else LogNormal(logs.mean(), logs.std())
