"""TensorBoard, through tensorboardX."""

import math
from collections.abc import Mapping
from typing import Any

from flowknife._settings import leaves
from flowknife.errors import InputError
from flowknife.tracking._tracker import Tracker


class TensorBoard(Tracker):
    """Event files in a folder, which `tensorboard --logdir FOLDER` shows: curves, metrics, settings and a figure.

    Args:
        folder: the folder; created if it does not exist.

    Raises:
        InputError: tensorboardX is not installed.
    """

    def __init__(self, folder: str):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise InputError('tensorboardX is not installed; try pip install "flowknife[track]"') from None
        self._writer = SummaryWriter(folder)
        self._last = 0

    def measured(self, part: str, step: int, values: Mapping[str, float]) -> None:
        self._last = max(self._last, step)
        for name, value in values.items():
            if math.isfinite(value):
                self._writer.add_scalar(f"{part}/{name}", value, step)
        self._writer.flush()

    def fitted(self, result: Any) -> None:
        for name, value in result.metrics.items():
            self._writer.add_scalar(f"metrics/{name}", value, self._last)
        rows = [f"| {key} | {value} |" for key, value in leaves(result.used.model_dump(exclude_none=True))]
        self._writer.add_text("settings", "\n".join(["| setting | used |", "|---|---|", *rows]), self._last)
        for name, figure in result.figures().items():
            self._writer.add_image(f"figures/{name}", _pixels(figure), self._last, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


def _pixels(figure):
    import io

    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return np.asarray(Image.open(stream).convert("RGB"))
