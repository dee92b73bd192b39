"""Number of levels of a multi-scale flow."""

from flowknife._types import Shape
from flowknife.errors import InputError


def levels_for(shape: Shape) -> int:
    """Levels of a multi-scale flow for an image size: halve while the grid is even and the half at least 4 pixels."""
    check_image(shape, 0, least=0)
    height, width, _ = shape
    levels = 0
    while height % 2 == 0 and width % 2 == 0 and min(height, width) >= 8:
        height, width, levels = height // 2, width // 2, levels + 1
    return max(levels, 1)


def check_image(shape, levels, least=1):
    if levels < least:
        raise InputError(f"got levels={levels}; expected at least {least}")
    if len(shape) != 3 or shape[0] % 2**levels or shape[1] % 2**levels:
        raise InputError(
            f"got an image of shape {shape} for {levels} levels; expected (height, width, channels), height and width "
            f"divisible by {2**levels}; try fewer levels or another image_size"
        )
