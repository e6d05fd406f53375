"""What a network does to images before it looks at them, as data."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageResize:
    """How a family brings images to its network's size, their proportions kept: what is left over is black.

    Attributes:
        height: of the network's images; `width` too.
        place: where the image lies in them.
        clamp: whether its numbers are brought back into [0, 1].
    """

    height: int
    width: int
    place: Literal["bottom_right", "centre"]
    clamp: bool = False
