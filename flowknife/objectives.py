"""What training minimises. An objective maps (model, batch, key) to one number; `nll` is the default for every job."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowknife.inn import INN

Batch = Mapping[str, Array]
Objective = Callable[[INN, Batch, Array], Float[Array, ""]]


def split_batch(model: INN, batch: Batch) -> tuple[dict[str, Array], dict[str, Array]]:
    """(left-hand blocks, known values) of a batch that holds both by name."""
    known = {block.name for block in model.partition.known}
    return (
        {name: value for name, value in batch.items() if name not in known},
        {name: value for name, value in batch.items() if name in known},
    )


def nll(model: INN, batch: Batch, key: Array) -> Float[Array, ""]:
    """Mean negative log-likelihood of the left end given the known values, in nats per row: -E log p(x | y)."""
    left, known = split_batch(model, batch)
    return -jnp.mean(model.log_prob(left, key=key, **known))
