"""The interactive page of an inverse problem: observations to drag, and how the problem looks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowknife._frame import plain_frame
from flowknife.diagnostics import Typicality
from flowknife.errors import InputError
from flowknife.explore import described_frame, write_page
from flowknife.problems import PROBLEMS

if TYPE_CHECKING:
    from flowknife.apps.invert._result import Posterior

_ROWS = 500  # pairs that are kept for the ranges of axes, and as examples


def explore_invert(posterior: "Posterior", folder: str | Path) -> Path:
    """Write `explore.html` of a posterior into `folder`; return the page's path."""
    pairs = posterior.example_pairs
    prior = posterior.prior
    make = PROBLEMS.get(posterior.record.data.problem or "")
    problem = None if make is None else make()
    units = [""] * len(posterior.y_names) if problem is None else list(problem.y_units)
    return write_page(
        posterior,
        folder,
        "invert",
        {
            "units": list(prior.units),
            "y_names": list(posterior.y_names),
            "y_units": units,
            "x_frame": described_frame(prior.frame or plain_frame(prior.dim)),
            "y_frame": described_frame(posterior.frame),
            "conditional": posterior.config.form == "conditional",
            "forward": posterior.config.form == "partitioned",
            "support": {name: np.asarray(getattr(prior, name), np.float64) for name in ("low", "high")},
            "observations": pairs["y"][:_ROWS],
            "parameters": pairs["x"][:_ROWS],
            "detector": _detector(posterior) if posterior.flagging.rows else None,
            "scene": _scene(problem),
        },
    )


def _scene(problem: Any) -> dict[str, Any]:
    """How a problem is drawn, with the numbers that this takes; see `page/scenes.js`."""
    geometry = {} if problem is None else {name: [float(v) for v in part] for name, part in problem.geometry.items()}
    if problem is not None and problem.name == "kinematics":
        from flowknife.problems._kinematics import LENGTHS

        return {"kind": "arm", "lengths": list(LENGTHS)}
    if problem is not None and problem.name == "gravity":
        from flowknife.problems._gravity import ATTRACTION, HEIGHT

        return {"kind": "basin", "contrast": ATTRACTION, "height": HEIGHT, **geometry}
    if problem is not None and problem.name == "dispersion":
        depths = [0.0, *(float(v) for v in np.cumsum(geometry["thickness"]))]
        return {"kind": "profile", "periods": geometry["periods"], "depths": depths}
    return {"kind": "plain"}


def _detector(posterior):
    """What decides whether the simulator can have made an observation, see `Posterior.misspecification`."""
    ordered, spread = posterior.ordered_data
    own, calibrating = (posterior._features(part["y"]) for part in (posterior.reference, posterior.held_out))
    detector = Typicality.fit(own, calibrating)
    if len(detector.upward) or len(detector.precisions) != 1:
        raise InputError(
            "got a detector of several groups of features; expected one; try the report without interactive"
        )
    return {
        "ordered": ordered.T.astype(np.float64).ravel(),
        "spread": spread.astype(np.float64),
        "mean": detector.mean,
        "scale": detector.scale,
        "precision": detector.precisions[0],
        "usual": detector.usual[:, 0],
        "held_out": detector.held_out,
        **detector.tail(0),
    }
