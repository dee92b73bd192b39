"""Exported programs of a density."""

from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._batches import ROWS_AT_ONCE
from flowknife.export import KEY, ROWS, TEMPERATURE, Input, Program, frame_of, key_of

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density


def exported(flow: "Density") -> tuple[dict[str, Program], dict[str, Any]]:
    """The programs of a density, and the arguments to run them."""
    x, z = Input("x", (flow.frame.dim,)), Input("z", (flow.frame.dim,))
    conditions = [Input("given", (len(flow.given_names),))] if flow.given_names else []
    draws = conditions or [ROWS]

    def known(given):
        return {"y": given[0]} if conditions else {}

    def sample(model, words, temperature, rows):
        given = known([rows])
        return model.sample(key_of(words), () if given else rows.shape[0], temperature=temperature, **given)

    programs = {
        "log_prob": Program(lambda model, x, *given: model.log_prob(x, **known(given)), (x, *conditions), ROWS_AT_ONCE),
        "encode": Program(
            lambda model, x, *given: model.encode(x, **known(given))["z"], (x, *conditions), ROWS_AT_ONCE
        ),
        "decode": Program(lambda model, z, *given: model.decode(z, **known(given))["x"], (z, *conditions)),
        "sample": Program(sample, (KEY, TEMPERATURE, *draws), ROWS_AT_ONCE),
    }
    frames = {"x": frame_of(flow.frame), **({"given": frame_of(flow.given_frame)} if conditions else {})}
    about = {"names": flow.names, "given_names": flow.given_names, "log_det": flow.frame.log_det, "frames": frames}
    return programs, {**about, "sample_temperature": 1.0, "shape": np.shape(flow.names)}
