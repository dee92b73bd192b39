"""Exported programs of a posterior."""

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from flowknife._batches import ROWS_AT_ONCE
from flowknife._frame import plain_frame
from flowknife.apps.invert._programs import log_density_of
from flowknife.apps.invert._result import NUMBERS_AT_ONCE, PAIRS_AT_ONCE
from flowknife.export import KEY, ROWS, TEMPERATURE, Input, Program, frame_of, key_of

if TYPE_CHECKING:
    from flowknife.apps.invert._result import Posterior


def exported(posterior: "Posterior") -> tuple[dict[str, Program], dict[str, Any]]:
    """The programs `log_prob(x, y)`, `sample(n, given=y)` and `encode(x, y)`, and the arguments to run them."""
    frame = posterior.prior.frame or plain_frame(posterior.prior.dim)
    x, y = Input("x", (frame.dim,)), Input("y", (posterior.frame.dim,))
    drawn_of = Input("y", y.shape, batch="k")

    def sample(model, words, temperature, rows, y):
        return jnp.moveaxis(model.sample_left(key_of(words), rows.shape[0], temperature=temperature, y=y)["x"], 0, -2)

    def encode(model, x, y):
        left = {"x": x} | {b.name: jnp.zeros((x.shape[0], *b.shape)) for b in model.partition.left[1:]}
        found = model.encode(left, y=y)
        return jnp.concatenate([found[block.name] for block in model.partition.right], axis=-1)

    programs = {
        "log_prob": Program(log_density_of, (x, y), PAIRS_AT_ONCE),
        "encode": Program(encode, (x, y), ROWS_AT_ONCE),
        "sample": Program(sample, (KEY, TEMPERATURE, ROWS, drawn_of), NUMBERS_AT_ONCE),
    }
    inner = posterior.prior.inner
    about = {
        "names": posterior.names,
        "given_names": posterior.y_names,
        "log_det": frame.log_det,
        "framed": posterior.prior.frame is not None,
        "low": np.asarray(inner.limits.value[0]).tolist(),
        "high": np.asarray(inner.limits.value[1]).tolist(),
        "inner": np.asarray(posterior.examples["x"][0]).tolist(),
        "frames": {"x": frame_of(frame), "given": frame_of(posterior.frame)},
        "sample_temperature": 1.0,
    }
    return programs, about
