"""How two-sided a policy is: the spread of its endpoints over noises, and a few paths to them.

Shapes: N observations, K noises for each, H chunk size, D padded action dimension, A real dimensions.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_IMAGE, OBS_PREFIX
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from chordflow.couplings import Observations
from chordflow.evaluation.gap import Modes, flatten
from chordflow.evaluation.modes import mode_centres, nearest_mode
from chordflow.evaluation.paired import HeldOutSet
from chordflow.flow.solvers import Euler
from chordflow.policies import FlowPolicy
from chordflow.results.actions import TEACHER, ObservationSpread, PolicyName, TrajectoryRow, WideObservation
from chordflow.results.study import Diversity

NUM_WIDEST = 6
"""Observations that are shown with pictures."""

PICTURE_SIDE = 160
"""Longest side of a kept picture, in pixels."""

NUM_PICTURED = 24
"""Trajectories of one observation that are kept."""

NUM_STATES = 50
"""States of each that are kept, about, besides the endpoint."""


def observation_spreads(endpoints: Tensor, modes: Modes, held_out: HeldOutSet) -> list[ObservationSpread]:
    """The spread of the endpoints (N, K, H, D) of each observation, and the modes that were found among them.

    Returns:
        One row per observation. Where no endpoints differ at all, every spread is 0.
    """
    flat = flatten(endpoints, modes.chunk)
    own = np.sqrt(np.mean(np.sum((flat - flat.mean(axis=1, keepdims=True)) ** 2, axis=-1), axis=1))
    overall = np.sqrt(np.mean(np.sum((flat - flat.mean(axis=(0, 1))) ** 2, axis=-1)))
    labels, counts = modes.labels(endpoints), modes.counts
    shares = [np.bincount(seen, minlength=n) / flat.shape[1] for seen, n in zip(labels, counts, strict=True)]
    return [
        ObservationSpread(
            observation=index,
            episode=int(held_out.episodes[index]),
            frame=int(held_out.frames[index]),
            task=held_out.tasks[index],
            spread=float(own[index] / overall) if overall > 0 else 0.0,
            modes=int(counts[index]),
            shares=sorted(shares[index].tolist(), reverse=True),
        )
        for index in range(len(flat))
    ]


def widest_observations(
    spreads: list[ObservationSpread],
    endpoints: Tensor,
    modes: Modes,
    held_out: HeldOutSet,
    observations: Observations,
) -> list[WideObservation]:
    """The observations of the widest spread, `NUM_WIDEST` at most, with their endpoints and what the cameras show.

    Neighbouring frames look alike, so the widest of every episode come first, and others only where there are
    too few episodes. The endpoints (N, K, H, D) are the teacher's as deployed, with the modes found among them.
    """
    ordered = sorted(spreads, key=lambda row: -row.spread)
    widest = {row.episode: row for row in reversed(ordered)}
    ranked = sorted(ordered, key=lambda row: row is not widest[row.episode])
    chosen = sorted(ranked[:NUM_WIDEST], key=lambda row: -row.spread)
    labels = modes.labels(endpoints)
    rows = []
    for row in chosen:
        points = flatten(endpoints[row.observation][None], modes.chunk)[0]
        centre, components, axes = _main_plane(points)
        plane = (points - centre) @ components.T
        rows.append(
            WideObservation(
                observation=row.observation,
                x=plane[:, 0].tolist(),
                y=plane[:, 1].tolist(),
                labels=labels[row.observation].tolist(),
                axes=axes,
                pictures=pictures(observations[held_out.rows[row.observation]]),
            )
        )
    return rows


def _main_plane(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float]]:
    """The mean (F,) of points (K, F), their two main components (2, F), and the share of variance along each."""
    centre = points.mean(axis=0)
    _, scales, components = np.linalg.svd(points - centre, full_matrices=False)
    if len(components) < 2:
        # A single number has no second component: it is drawn against zero.
        components, scales = np.pad(components, ((0, 1), (0, 0))), np.pad(scales, (0, 1))
    total = (scales**2).sum()
    axes = (scales[:2] ** 2 / total).tolist() if total > 0 else [0.0, 0.0]
    return centre, components[:2], axes


def pictures(item: Mapping[str, Any]) -> dict[str, str]:
    """What the cameras of one observation show, PNG files in base64 by camera; the last frame where it has several."""
    found = {}
    for key, value in item.items():
        if not key.startswith(OBS_IMAGE) or not isinstance(value, Tensor):
            continue
        frame = value[-1] if value.ndim == 4 else value
        if frame.ndim != 3 or frame.shape[0] not in (1, 3):
            continue
        levels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
        pixels = levels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels)
        picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
        file = io.BytesIO()
        picture.save(file, "PNG", optimize=True)
        name = key.removeprefix(OBS_PREFIX).removeprefix("images.")
        found[name] = base64.b64encode(file.getvalue()).decode("ascii")
    return found


def diversity(endpoints: Tensor, reference: Tensor, modes: Modes, num_steps: int) -> Diversity:
    """How far endpoints (N, K, H, D) by so many Euler steps spread over noise beside a teacher's from the same noises.

    `modes` are those found among the `reference`.
    """
    own, theirs = flatten(endpoints, modes.chunk), flatten(reference, modes.chunk)
    within = [float(np.mean((flat - flat.mean(axis=1, keepdims=True)) ** 2)) for flat in (own, theirs)]
    several = np.flatnonzero(modes.counts > 1)
    # Own modes and not single endpoints: a policy whose endpoints all lie between two modes has some nearer to each.
    kept = [
        len(set(nearest_mode(mode_centres(own[index]), modes.centres[index]))) == modes.counts[index]
        for index in several
    ]
    return Diversity(
        num_steps=num_steps,
        spread=float(np.sqrt(within[0] / within[1])) if within[1] > 0 else 1.0,
        modes_kept=float(np.mean(kept)) if kept else None,
        several=len(several),
    )


@torch.no_grad()
def trajectories(
    policies: Mapping[PolicyName, FlowPolicy], held_out: HeldOutSet, endpoints: Tensor, num_steps: int
) -> tuple[list[TrajectoryRow], list[float]]:
    """Paths of all policies from the same noises at the observation where the teacher's endpoints spread most.

    The plane is that of the two main components of the teacher's states over the real dimensions; there an
    arc is seen as an arc.

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
        states = Euler().path(partial(policy.velocity, context=context), noise, num_steps)
        paths[name] = chunk.real(states).flatten(2).cpu().double().numpy()
    cloud = paths[TEACHER].reshape(-1, paths[TEACHER].shape[-1])
    centre, components, axes = _main_plane(cloud)
    every = max(1, num_steps // NUM_STATES)
    rows = []
    for name, path in paths.items():
        kept = (np.concatenate([path[:-1:every], path[-1:]]) - centre) @ components.T
        rows += [
            TrajectoryRow(name, observation, x=path[:, 0].tolist(), y=path[:, 1].tolist())
            for path in kept.swapaxes(0, 1)
        ]
    return rows, axes
