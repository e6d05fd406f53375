"""Modes of a policy at one observation: clusters of its endpoints.

Shapes: K endpoints of one observation, F features (H chunk rows times A real dimensions, flattened).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist

Array = NDArray[np.floating]

MIN_ENDPOINTS = 16
"""With fewer endpoints a second mode may go unseen."""

STRONG_STRUCTURE = 0.7
"""Mean silhouette above which a partition counts (Kaufman & Rousseeuw 1990, table 4: "strong structure").

One normal cloud that varies along a line, cut in two, reaches about 0.6; two modes apart exceed 0.8.
"""

MAX_MODES = 4

LEAST_SHARE = 0.05
"""A smaller cluster, or a single endpoint, is an outlier rather than a mode."""


def mode_centres(endpoints: Array) -> Array:
    """Centres (M, F), M from 1 to `MAX_MODES`, of the clusters of one observation's endpoints (K, F).

    Ward's hierarchical clustering is cut into two to `MAX_MODES` clusters; the cut of the highest mean
    silhouette (Rousseeuw 1987) is taken if that exceeds `least_silhouette` and no cluster is an outlier.
    Where no cut does, the same is tried on the first principal component alone: in many dimensions the spread
    inside the modes, summed over all of them, hides the gap between them. If that fails too, there is one
    mode.

    Raises:
        ValueError: if there are fewer than `MIN_ENDPOINTS`.
    """
    if len(endpoints) < MIN_ENDPOINTS:
        raise ValueError(
            f"{len(endpoints)} endpoints are too few to find modes in; give {MIN_ENDPOINTS} or more"
        )
    labels = _best_cut(endpoints)
    if labels is None and endpoints.shape[1] > 1:
        centred = endpoints - endpoints.mean(axis=0)
        left, scales, _ = np.linalg.svd(centred, full_matrices=False)
        labels = _best_cut(left[:, :1] * scales[:1])
    if labels is None:
        labels = np.ones(len(endpoints), dtype=int)
    return np.stack([endpoints[labels == label].mean(axis=0) for label in np.unique(labels)])


def least_silhouette(count: int) -> float:
    """Mean silhouette that a cut of `count` endpoints must exceed.

    Few points of one normal law often look parted: on a line the best cut of 16 exceeds `STRONG_STRUCTURE`
    in one case of six. The second term is a fit to the 99.8 % quantile of that law for 16 to 64 points (0.81
    at 16, 0.74 at 32). Round clouds along their first principal component follow the same law, and a line is the
    worst case without projection.
    """
    return max(STRONG_STRUCTURE, 0.55 + 1.05 / math.sqrt(count))


def nearest_mode(points: Array, centres: Array) -> NDArray[np.int_]:
    """Index of the centre nearest to each point (K, F)."""
    return cdist(points, centres).argmin(axis=1)


def _best_cut(points: Array) -> NDArray[np.int_] | None:
    """Labels (K,) of the cut with the highest mean silhouette, or None where none is high enough."""
    tree = linkage(points, method="ward")
    distances = cdist(points, points)
    best, best_score = None, least_silhouette(len(points))
    for count in range(2, MAX_MODES + 1):
        labels = fcluster(tree, count, criterion="maxclust")
        if np.bincount(labels)[1:].min() < max(2, LEAST_SHARE * len(points)):
            continue
        score = _silhouette(distances, labels)
        if score > best_score:
            best, best_score = labels, score
    return best


def _silhouette(distances: Array, labels: NDArray[np.int_]) -> float:
    """Mean silhouette; a point alone in its cluster counts as 0."""
    names = np.unique(labels)
    if len(names) < 2:
        return -1.0
    sums = np.stack([distances[:, labels == name].sum(axis=1) for name in names], axis=1)
    sizes = np.array([(labels == name).sum() for name in names])
    own = np.searchsorted(names, labels)
    rows = np.arange(len(labels))
    inside = sums[rows, own] / np.maximum(sizes[own] - 1, 1)
    others = sums / sizes
    others[rows, own] = np.inf
    outside = others.min(axis=1)
    scale = np.maximum(inside, outside)
    scores = np.where((sizes[own] > 1) & (scale > 0), (outside - inside) / np.where(scale > 0, scale, 1), 0.0)
    return float(scores.mean())
