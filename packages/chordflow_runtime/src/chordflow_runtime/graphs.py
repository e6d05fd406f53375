"""The exported graphs: from an observation's inputs and noise to a normalised chunk.

Shapes: K noises, H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from chordflow_runtime.backends import open_graph
from chordflow_runtime.images import Floats
from chordflow_runtime.manifest import Manifest, RunnerError

CONTEXT = "context."
"""How the names of an encoded observation's tensors begin."""


class OneGraph:
    """A graph with its solver steps baked in."""

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None) -> None:
        self._graph = open_graph(manifest, folder, manifest["graphs"]["policy"], threads)
        self._noise = manifest["noise"]["input"]
        self._together = manifest["noise"]["shape"][0] != 1

    def encode(self, fed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs of an observation as they are: the graph encodes them with every noise."""
        return fed

    def endpoints(self, fed: Mapping[str, Any], noise: Floats) -> Floats:
        """The chunks (K, H, A) of noises (K, H, D) and the inputs of one observation."""
        groups = [noise] if self._together else np.split(noise, len(noise))
        return np.concatenate([self._graph({**fed, self._noise: group})["actions"] for group in groups])


class TwoGraphs:
    """The encoding of the observation, and one velocity; the Euler steps are taken here.

    Attributes:
        times: of each step, its start and its signed length.
    """

    def __init__(self, manifest: Manifest, folder: Path, threads: int | None, num_steps: int | None) -> None:
        self._encode, self._step = (
            open_graph(manifest, folder, manifest["graphs"][name], threads) for name in ("encode", "step")
        )
        self.times = manifest["times"] if num_steps is None else _grid(num_steps, manifest["grid_power"])

    def encode(self, fed: Mapping[str, Any]) -> Mapping[str, Any]:
        """The inputs of an observation, encoded; what is encoded already is given back."""
        if all(name.startswith(CONTEXT) for name in fed):
            return fed
        return {name: value for name, value in self._encode(fed).items() if name.startswith(CONTEXT)}

    def endpoints(self, fed: Mapping[str, Any], noise: Floats) -> Floats:
        """The chunks (K, H, D) of noises (K, H, D) and the inputs of one observation, encoded or not."""
        context = self.encode(fed)
        return np.concatenate([self._steps(context, one) for one in np.split(noise, len(noise))])

    def _steps(self, context: Mapping[str, Any], x: Floats) -> Floats:
        for t, dt in self.times:
            time = np.array([t], dtype=np.float32)
            x = x + np.float32(dt) * self._step({**context, "x_t": x, "t": time})["velocity"]
        return x


def open_graphs(
    manifest: Manifest, folder: Path, threads: int | None, num_steps: int | None
) -> OneGraph | TwoGraphs:
    """The graphs of a folder; RunnerError where one cannot be loaded, or takes data from elsewhere."""
    if {"one": False, "two": True}[manifest["graphs"]["kind"]]:
        return TwoGraphs(manifest, folder, threads, num_steps)
    if num_steps is not None:
        raise RunnerError(
            f"num_steps is {num_steps}, but this graph's {manifest['num_steps']} step(s) are baked in; leave it out, "
            "or export with --graphs=two."
        )
    return OneGraph(manifest, folder, threads)


def _grid(num_steps: int, power: float) -> list[tuple[float, float]]:
    """The times of a number of Euler steps, `u ** power` for evenly spaced u."""
    times = [*((1.0 - step / num_steps) ** power for step in range(num_steps)), 0.0]
    return [(t, after - t) for t, after in pairwise(times)]
