"""Modes of a policy at one observation: clusters of its endpoints.

Shapes: K endpoints of one observation, F features (H chunk rows times A real dimensions, flattened).
"""

from __future__ import annotations

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


def mode_centres(endpoints: Array) -> Array:
    """Centres of the clusters of one observation's endpoints.

    Ward's hierarchical clustering is cut into two to `MAX_MODES` clusters; the cut of the highest mean
    silhouette (Rousseeuw 1987) is taken if that exceeds `STRONG_STRUCTURE`, otherwise there is one mode.

    Args:
        endpoints: (K, F), K at least `MIN_ENDPOINTS`.

    Returns:
        (M, F), M from 1 to `MAX_MODES`.

    Raises:
        ValueError: if there are too few endpoints.
    """
    if len(endpoints) < MIN_ENDPOINTS:
        raise ValueError(f"{len(endpoints)} endpoints are too few to find modes in; give {MIN_ENDPOINTS} or more")
    tree = linkage(endpoints, method="ward")
    distances = cdist(endpoints, endpoints)
    best, best_score = np.ones(len(endpoints), dtype=int), STRONG_STRUCTURE
    for count in range(2, MAX_MODES + 1):
        labels = fcluster(tree, count, criterion="maxclust")
        score = _silhouette(distances, labels)
        if score > best_score:
            best, best_score = labels, score
    return np.stack([endpoints[best == label].mean(axis=0) for label in np.unique(best)])


def nearest_mode(points: Array, centres: Array) -> NDArray[np.int_]:
    """Index of the centre nearest to each point (K, F)."""
    return cdist(points, centres).argmin(axis=1)


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
