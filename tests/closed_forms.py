"""Flows whose velocity, endpoints and curvature are known exactly: the yardstick of the tests.

Noise is a standard normal, the action a Gaussian or a mixture of Gaussians, and the two are drawn apart, as
flow matching does. The field is the optimum of the flow-matching loss, `v(x, t) = E[noise - action | x_t]`.

Shapes: B batch, H chunk, D padded dimension, K modes; states, noises and endpoints are (B, H, D), times (B,).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianFlow:
    """Flow from standard normal noise to an action of independent normal entries, `mean` ((B,) H, D) and `std` (H, D).

    With `g(t) = sqrt(t^2 + (1 - t)^2 s^2)` the point of the trajectory that starts at noise `x_1` is
    `x_t = (1 - t) m + g(t) x_1`; everything below follows from it by differentiation and integration.
    """

    mean: Tensor
    std: Tensor

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Optimal velocity of flow matching."""
        t = t.view(-1, 1, 1).to(x.dtype)
        return _gaussian_velocity(x, t, self.mean.to(x), self.std.to(x))

    def endpoint(self, noise: Tensor) -> Tensor:
        """Exact end of the trajectory that starts at `noise`, `m + s * x_1`. Shape (B, H, D)."""
        return self.mean.to(noise) + self.std.to(noise) * noise

    def s_by_dim(self) -> Tensor:
        """Exact S, `integral of g'^2 dt - (1 - s)^2 = (2 - pi / 2) s`, mean over H. Shape (D,)."""
        return ((2 - math.pi / 2) * self.std.double()).mean(dim=0)

    def chord_by_dim(self) -> Tensor:
        """Exact `E (x_1 - x_0)^2 = (1 - s)^2 + m^2`, mean over H. Shape (D,)."""
        return ((1 - self.std.double()) ** 2 + self.mean.double() ** 2).mean(dim=0)

    def curvature(self, real_dims: int) -> float:
        """Exact `sqrt(S / E ||x_1 - x_0||^2)` over the first `real_dims` dimensions."""
        return math.sqrt(self.s_by_dim()[:real_dims].sum() / self.chord_by_dim()[:real_dims].sum())

    def reflowed_velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Optimal velocity after one reflow: that of the coupling `(x_1, m + s x_1)`.

        Paths of this coupling do not cross, so the noise can be read off `x_t` and the field is straight."""
        t = t.view(-1, 1, 1).to(x.dtype)
        mean, std = self.mean.to(x), self.std.to(x)
        noise = (x - (1 - t) * mean) / (t + (1 - t) * std)
        return (1 - std) * noise - mean


@dataclass(frozen=True)
class GaussianMixtureFlow:
    """Flow to a mixture of Gaussians: `weights` (K,), `means` ((B,) K, H, D), `stds` (K, H, D).

    A mode is a whole chunk: its entries are independent given the mode.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Optimal velocity of flow matching: the modes' own, weighted by their probability given `x_t`."""
        t = t.view(-1, 1, 1, 1).to(x.dtype)
        means, stds = self.means.to(x), self.stds.to(x)
        by_mode = _gaussian_velocity(x[:, None], t, means, stds)
        posterior = self._log_posterior(x, t).softmax(dim=1)
        return (posterior[:, :, None, None] * by_mode).sum(dim=1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n actions from the mixture itself, not by the flow."""
        mode = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn((n, *self.means.shape[1:]), generator=generator, dtype=self.means.dtype)
        return self.means[mode] + self.stds[mode] * normal

    def mode_of(self, endpoint: Tensor) -> Tensor:
        """The most probable mode of each endpoint."""
        at_action = torch.zeros(1, 1, 1, 1, dtype=endpoint.dtype, device=endpoint.device)
        return self._log_posterior(endpoint, at_action).argmax(dim=1)

    def _log_posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Log probability of each mode given `x_t`, up to a constant. Shape (B, K)."""
        means, stds = self.means.to(x), self.stds.to(x)
        variance = t**2 + (1 - t) ** 2 * stds**2
        log_density = -0.5 * ((x[:, None] - (1 - t) * means) ** 2 / variance + variance.log())
        return self.weights.to(x).log() + log_density.sum(dim=(2, 3))


def _gaussian_velocity(x: Tensor, t: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`E[noise - action | x_t]` by linear regression of noise - action on `x_t`; shapes broadcast."""
    variance = t**2 + (1 - t) ** 2 * std**2
    slope = (t - (1 - t) * std**2) / variance
    return slope * (x - (1 - t) * mean) - mean
