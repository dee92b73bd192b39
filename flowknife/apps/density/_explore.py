"""The interactive page of a density: rows, scores that calibrate, and the units of the columns."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowknife.explore import described_frame, thinned, write_page

if TYPE_CHECKING:
    from flowknife.apps.density._result import Density

_ROWS = 1500  # shown


def explore_density(flow: "Density", folder: str | Path) -> Path:
    """Write `explore.html` of a fitted density into `folder`; return the page's path."""
    rows = flow.joint_frame.from_model(flow.reference[:_ROWS])
    x, given = np.split(rows, [len(flow.names)], axis=1)
    scores = -flow._held_out_log_prob if flow.flagging.rows else np.zeros(0)
    return write_page(
        flow,
        folder,
        "density",
        {
            "frame": described_frame(flow.frame),
            "given_frame": described_frame(flow.given_frame),
            "given_names": list(flow.given_names),
            "rows": x,
            "given": given,
            "given_usual": [float(value) for value in np.median(given, axis=0)],
            "scores": thinned(scores),
        },
    )
