"""Where a report's figures are kept, and the frame that names the two ends."""

from pathlib import Path
from typing import TYPE_CHECKING

from flowknife.inn import INN
from flowknife.report._page import Frame, Picture
from flowknife.storage import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 110


def keep(figure: "Figure", folder: str | Path, name: str, caption: str = "") -> Picture:
    """Write a figure to `folder/figures/name.png` and return it for a section."""
    path = Path(folder) / "figures" / f"{name}.png"
    with replacing(path) as place:
        figure.savefig(place, dpi=_DPI, format="png")
    return Picture(path, caption)


def ends(model: INN) -> Frame:
    """The blocks of both ends, with shapes and laws."""

    def words(block):
        size = " x ".join(map(str, block.shape)) or "1"
        return f"{block.name} {size}, {type(block.law).__name__}"

    return Frame([words(block) for block in model.partition.left], [words(block) for block in model.partition.right])
