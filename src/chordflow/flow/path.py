"""The straight path between noise and action, and the velocity that a network learns on it.

Shapes: B batch, H chunk, D padded dimension. Time runs from t = 1 (noise) to t = 0 (action).
"""

from torch import Tensor


def interpolate(noise: Tensor, endpoint: Tensor, t: Tensor) -> Tensor:
    """Point of the straight path, `x_t = t * noise + (1 - t) * endpoint`.

    `noise` and `endpoint` (a teacher's or a demonstration) have shape (B, H, D), t has shape (B,).

    Raises:
        ValueError: if the shapes do not fit each other.

    Source: Liu et al. 2022 (arXiv 2209.03003), eq. 1, with time running the other way, as in LeRobot.
    """
    _require_same_shape(noise, endpoint)
    if t.shape != noise.shape[:1]:
        raise ValueError(f"t has shape {tuple(t.shape)}; give one time per sample, ({noise.shape[0]},).")
    t = t.view(-1, *[1] * (noise.dim() - 1))
    return t * noise + (1 - t) * endpoint


def velocity_target(noise: Tensor, endpoint: Tensor) -> Tensor:
    """Derivative of the straight path by time, `u_t = noise - endpoint` (B, H, D): the same at every t.

    Raises:
        ValueError: if the shapes differ.
    """
    _require_same_shape(noise, endpoint)
    return noise - endpoint


def _require_same_shape(noise: Tensor, endpoint: Tensor) -> None:
    # Broadcasting would turn a chunk cut to the real dimensions into a silent error.
    if noise.shape != endpoint.shape:
        raise ValueError(
            f"noise has shape {tuple(noise.shape)} and endpoint {tuple(endpoint.shape)}; they must be equal."
        )
