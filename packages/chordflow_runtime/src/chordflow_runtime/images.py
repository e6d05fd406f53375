"""Numbers and pictures as LeRobot's processors and models make them, in float32 and operation by operation.

Shapes: h and w of the camera, H and W of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chordflow_runtime.manifest import RunnerError

Floats = NDArray[np.float32]

IDENTITY: Mapping[str, Any] = {"mode": "identity"}
"""The entry of a feature that is passed on as it is."""


class Scale:
    """How a feature is normalised: LeRobot's `mode`, and the two statistics that it uses.

    `a` is the mean or the lower end of a range, `b` the standard deviation or the upper end; `eps` is added to the
    deviation, or put in the place of an empty range.
    """

    def __init__(self, entry: Mapping[str, Any], shape: tuple[int, ...] = (-1,)) -> None:
        self.mode = entry["mode"]
        if self.mode not in ("identity", "mean_std", "min_max", "quantiles", "quantile10"):
            raise ValueError(f"normalisation {self.mode}")
        if self.mode != "identity":
            a, b = (np.asarray(entry[name], dtype=np.float32).reshape(shape) for name in ("a", "b"))
            self.eps = np.float32(entry["eps"])
            # A range is mapped onto [-1, 1].
            width = b if self.mode == "mean_std" else np.where(b == a, self.eps, b - a)
            self.a, self.b = a, width.astype(np.float32)

    def apply(self, value: Floats) -> Floats:
        """The normalised value."""
        if self.mode == "identity":
            return value
        centred: Floats = value - self.a
        return centred / (self.b + self.eps) if self.mode == "mean_std" else 2 * centred / self.b - 1

    def invert(self, value: Floats) -> Floats:
        """The value of a normalised one."""
        if self.mode == "identity":
            return value
        unit: Floats = value if self.mode == "mean_std" else (value + 1) * np.float32(0.5)
        return unit * self.b + self.a


@dataclass(frozen=True)
class Camera:
    """One camera of the policy.

    Attributes:
        key: LeRobot's name of it.
        shape: (3, h, w), as the policy was trained.
        scale: its normalisation.
        resize: the manifest's entry; None where the graph takes the camera's own size, and no other.
    """

    key: str
    shape: tuple[int, ...]
    scale: Scale
    resize: Mapping[str, Any] | None

    def __call__(self, value: Any) -> Floats:
        """A picture, CHW float in [0, 1] or HWC uint8, as (3, H, W)."""
        image = np.asarray(value)
        if image.dtype == np.uint8 and image.ndim == 3:
            image = image.transpose(2, 0, 1) / np.float32(255)
        if image.ndim != 3 or image.shape[0] != 3 or image.size == 0 or image.dtype.kind != "f":
            raise RunnerError(
                f"{self.key} is {np.asarray(value).dtype} of shape {np.shape(value)}; give (height, width, 3) uint8 or "
                "(3, height, width) float."
            )
        image = image.astype(np.float32)
        # Also false where a number is NaN.
        if not (image.min() >= -1e-6 and image.max() <= 1 + 1e-6):
            raise RunnerError(
                f"{self.key} has values from {image.min()} to {image.max()}; floats are in [0, 1]."
            )
        if self.resize is None and image.shape != self.shape:
            raise RunnerError(
                f"{self.key} has shape {image.shape}, and the graph takes {self.shape} alone; give images of that size."
            )
        image = self.scale.apply(image)
        return image if self.resize is None else letterbox(image, **self.resize)


def letterbox(
    image: Floats,
    height: int,
    width: int,
    mode: str,
    place: str,
    fill: float,
    clamp: bool,
) -> Floats:
    """A picture (3, h, w) as (3, H, W): resized with its aspect ratio kept, the rest filled.

    Args:
        image: the picture.
        height: H.
        width: W.
        mode: `bilinear`.
        place: where the picture stands, `bottom_right` (SmolVLA) or `centre` (pi0).
        fill: of the rest.
        clamp: whether interpolated values are cut to [0, 1].
    """
    if mode != "bilinear" or place not in ("bottom_right", "centre"):
        raise ValueError(f"resize by {mode} to {place}")
    if image.shape[1:] == (height, width):
        return image
    ratio = max(image.shape[2] / width, image.shape[1] / height)
    inner = int(image.shape[1] / ratio), int(image.shape[2] / ratio)
    if 0 in inner:
        raise RunnerError(f"an image of shape {image.shape} is too narrow to be resized; give whole images.")
    image = bilinear(image, *inner)
    top, left = height - inner[0], width - inner[1]
    if place == "centre":
        top, left = top // 2, left // 2
    whole = np.full((len(image), height, width), fill, dtype=np.float32)
    whole[:, top : top + inner[0], left : left + inner[1]] = image.clip(0, 1) if clamp else image
    return whole


def bilinear(image: Floats, height: int, width: int) -> Floats:
    """A picture (3, h, w) as (3, height, width): torch's `interpolate` with align_corners=False, to rounding."""
    low, high, weight = _taps(image.shape[2], width)
    image = image[:, :, low] * (1 - weight) + image[:, :, high] * weight
    low, high, weight = _taps(image.shape[1], height)
    weight = weight[:, None]
    return image[:, low] * (1 - weight) + image[:, high] * weight


def _taps(size: int, new_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """For every new pixel along an axis: the two old ones it lies between, and the second one's weight."""
    scale = float(np.float32(size) / np.float32(new_size))
    # torch multiplies and subtracts in float32 with a single rounding.
    place = (scale * (np.arange(new_size) + 0.5) - 0.5).astype(np.float32).clip(0)
    low = np.minimum(place.astype(np.int64), size - 1)
    return low, np.minimum(low + 1, size - 1), (place - low.astype(np.float32)).clip(0, 1)
