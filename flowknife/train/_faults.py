"""Locating a non-finite number, with advice."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowknife.bijections import Bijection, Chain, Repeat
from flowknife.inn import INN
from flowknife.objectives import Batch, split_batch


def at_limits(batch: Batch) -> str:
    """Advice for values so close to the limits of their precision that no learning rate helps; or ""."""
    for name, value in batch.items():
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            continue
        size = np.abs(np.asarray(value, np.float64))
        limits = jnp.finfo(value.dtype)
        if not np.all(np.isfinite(size)):
            return f"finite numbers in {name!r}, divided by their spread where they are beyond {limits.max:.1g}"
        if size.max(initial=0.0) > float(limits.max) ** 0.5 or 0 < size.max(initial=0.0) < float(limits.tiny) ** 0.5:
            return f"other units for {name!r}, whose largest number is {size.max():.2g}: divide it by its spread"
    return ""


def first_fault(model: INN, batch: Batch) -> str:
    """The place of the first non-finite number of a batch, in words."""
    for name, value in batch.items():
        if not np.all(np.isfinite(value)):
            rows = np.unique(np.argwhere(~np.isfinite(np.asarray(value)))[:, 0])
            return f"the data block {name!r} has non-finite numbers in {len(rows)} rows of the batch"
    left, known = split_batch(model, batch)
    end = model.left_end(left, key=0, **known)
    place = _first_nonfinite(model.bijection, end.array, end.cond)[0]
    return f"the output of {place} is not finite" if place else "its gradient is not finite, its outputs are"


def _first_nonfinite(bijection: Bijection, x: Array, cond: Array | None) -> tuple[str, Array]:
    """Path of the first layer with a non-finite output ("" if there is none), and the output."""
    if isinstance(bijection, Chain):
        layers = list(bijection.bijections)
    elif isinstance(bijection, Repeat):
        arrays, structure = eqx.partition(bijection.layer, eqx.is_array)
        layers = [eqx.combine(jax.tree.map(lambda a, i=i: a[i], arrays), structure) for i in range(bijection.times)]
    else:
        y, log_det = bijection.encode(x, cond)
        finite = bool(jnp.all(jnp.isfinite(y)) & jnp.all(jnp.isfinite(log_det)))
        return ("" if finite else type(bijection).__name__), y
    for i, layer in enumerate(layers):
        place, x = _first_nonfinite(layer, x, cond)
        if place:
            return f"{type(bijection).__name__}[{i}].{place}", x
    return "", x
