"""The interactive page of an inverse problem, with draggable observations and a drawing of the problem."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from flowknife._frame import plain_frame
from flowknife.diagnostics import Typicality
from flowknife.errors import InputError
from flowknife.explore import Live, count_of, described_frame, live_page, rows_of, seed_of, write_page
from flowknife.problems import problem_of

if TYPE_CHECKING:
    from flowknife.apps.invert._result import Posterior

_ROWS = 500  # pairs kept as examples and for the ranges of the axes


def explore_invert(posterior: "Posterior", folder: str | Path) -> Path:
    """Write `explore.html` of a posterior into `folder`; return the page's path."""
    return write_page(posterior, folder, "invert", _parts(posterior))


def _parts(posterior):
    """The content of the page."""
    pairs = posterior.example_pairs
    prior = posterior.prior
    problem = problem_of(posterior.record.data.problem, prior.dim, len(posterior.y_names))
    units = [""] * len(posterior.y_names) if problem is None else list(problem.y_units)
    return {
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
    }


def live_invert(posterior: "Posterior") -> Live:
    """The live page: its content and the functions that it can call."""
    model, frame, size, length = posterior.model, posterior.prior_frame, posterior.prior.dim, len(posterior.y_names)
    latent = sum(block.size for block in model.partition.right)

    def rows(x, n):
        return rows_of(x, n, size).astype(float)

    def observed(y):
        return rows_of(y, 1, length)[0].astype(float)

    def cond(y, n):
        given = posterior._given(observed(y)[None]).astype(np.float32)
        return jnp.broadcast_to(given, (n, length)) if model.partition.cond else None

    def sample(n, y, seed=0, temperature=1.0):
        return posterior.sample(count_of(n), y=observed(y), key=seed_of(seed), temperature=temperature).astype(float)

    def encode(x, n, y):
        inside = frame.to_model(rows(x, n)).astype(np.float32)
        noise = np.zeros((len(inside), latent - size), np.float32)
        return model.bijection.encode(jnp.concatenate([inside, noise], axis=1), cond(y, len(inside)))[0]

    def decode(z, n, y):
        left = model.bijection.decode(jnp.asarray(rows_of(z, n, latent), jnp.float32), cond(y, n))[0]
        return frame.from_model(np.asarray(left)[:, :size]).astype(float)

    def log_prob(x, n, y):
        return posterior.log_prob(rows(x, n), observed(y))

    def predict(x, n):
        return posterior.predict(rows(x, n))

    def prepare():
        drawn = sample(300, posterior.example_pairs["y"][0])  # the number of draws that the page shows
        if posterior.config.form == "partitioned":
            predict(drawn[:40], 40)

    calls = {"sample": sample, "encode": encode, "decode": decode, "log_prob": log_prob, "predict": predict}
    return live_page(posterior, "invert", {**_parts(posterior), "latent": latent}, calls, prepare=prepare)


def _scene(problem: Any) -> dict[str, Any]:
    """The drawing of a problem, with its parameters; see `page/scenes.js`."""
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
    """The misspecification detector, see `Posterior.misspecification`."""
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
