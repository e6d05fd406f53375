"""A few paths from noise to action, for a picture of arcs and chords.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension, A real dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chordflow.evaluation.paired import HeldOutSet, velocity_of
from chordflow.flow.solvers import get_solver
from chordflow.policies import FlowPolicy
from chordflow.results.actions import TEACHER, PolicyName, TrajectoryRow

NUM_PICTURED = 24
"""Trajectories of one observation that are kept."""

NUM_STATES = 50
"""States of each that are kept, about, besides the endpoint."""


@torch.no_grad()
def trajectories(
    policies: Mapping[PolicyName, FlowPolicy], held_out: HeldOutSet, endpoints: Tensor, num_steps: int
) -> tuple[list[TrajectoryRow], list[float]]:
    """Paths of all policies from the same noises at the observation where endpoints spread most.

    The plane is that of the two main components of the teacher's states over the real dimensions; there an
    arc is seen as an arc.

    Args:
        policies: by name, `teacher` among them.
        held_out: observations and noises.
        endpoints: (N, K, H, D), of the teacher as deployed.
        num_steps: Euler steps of a path.

    Returns:
        The rows, and the share of the teacher's variance along each axis.
    """
    chunk = policies[TEACHER].chunk
    flat = chunk.real(endpoints).flatten(2)
    observation = int(flat.var(dim=1).sum(dim=-1).argmax())
    noise = held_out.noise[observation, : min(NUM_PICTURED, held_out.noise.shape[1])]
    paths: dict[PolicyName, NDArray[np.float64]] = {}
    for name, policy in policies.items():
        context = held_out.contexts[name].index(torch.tensor([observation])).repeat(len(noise))
        states = get_solver("euler").path(velocity_of(policy, context), noise, num_steps)
        paths[name] = chunk.real(states).flatten(2).cpu().double().numpy()
    cloud = paths[TEACHER].reshape(-1, paths[TEACHER].shape[-1])
    centre = cloud.mean(axis=0)
    _, scales, components = np.linalg.svd(cloud - centre, full_matrices=False)
    if len(components) < 2:
        # A single real number per chunk has no second component: it is drawn against zero.
        components, scales = np.pad(components, ((0, 1), (0, 0))), np.pad(scales, (0, 1))
    every = max(1, num_steps // NUM_STATES)
    rows = []
    for name, path in paths.items():
        kept = (np.concatenate([path[:-1:every], path[-1:]]) - centre) @ components[:2].T
        rows += [
            TrajectoryRow(
                policy=name, observation=observation, x=kept[:, k, 0].tolist(), y=kept[:, k, 1].tolist()
            )
            for k in range(kept.shape[1])
        ]
    return rows, (scales[:2] ** 2 / (scales**2).sum()).tolist()
