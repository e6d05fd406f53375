"""A policy from an exported folder.

Shapes: H chunk size, D padded action dimension, A real action dimension.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from chordflow_runtime.graphs import open_graphs
from chordflow_runtime.images import IDENTITY, Floats, Scale
from chordflow_runtime.manifest import MANIFEST, Manifest, RunnerError, read_manifest
from chordflow_runtime.observation import Observer, Step


class Policy:
    """Runs an exported policy; `load` makes one.

    Attributes:
        manifest: what manifest.json holds.
    """

    def __init__(
        self, manifest: Manifest, folder: Path, threads: int | None, seed: int | None, num_steps: int | None
    ) -> None:
        self.manifest = manifest
        self._observer = Observer(manifest, folder)
        self._scale = Scale(manifest["unnormalise"].get("action", IDENTITY))
        self._action_dim = int(manifest["chunk"]["action_dim"])
        first = int(manifest["chunk"]["first_executed"])
        self._executed = slice(first, first + int(manifest["chunk"]["num_executed"]))
        if manifest["noise"]["law"] != "standard_normal":
            raise ValueError(f"noise of law {manifest['noise']['law']}")
        self._noise_shape = (1, *manifest["noise"]["shape"][1:])
        self._generator = np.random.default_rng(seed)
        self._graphs = open_graphs(manifest, folder, threads, num_steps)
        self._actions: deque[Floats] = deque()
        self._history: deque[Step] = deque(maxlen=1 - min(self._observer.deltas))

    def __call__(self, observation: Mapping[str, Any], noise: Any = None) -> Floats:
        """The chunk (H, A), in the robot's units, for an observation.

        Args:
            observation: by LeRobot's item keys, without a batch: images (3, height, width) float in [0, 1] or
                (height, width, 3) uint8, state, and the instruction as `task`. A policy that looks at several
                control steps takes them stacked in front, the oldest first; one alone is repeated.
            noise: (1, H, D), standard normal; by default it is drawn.

        Raises:
            RunnerError: if the observation is not of this policy, or the noise has another shape.
        """
        return self.to_action(self.endpoint(self.prepare(observation), noise))

    def prepare(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """What the graph takes of an observation, by the names of its inputs and with the batch in front."""
        return self._observer.feed(self._observer.steps(observation), observation)

    def encode(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        """What `prepare` makes, encoded ahead for any number of noises; the same again where there is one graph."""
        return self._graphs.encode(inputs)

    def endpoint(self, inputs: Mapping[str, Any], noise: Any = None) -> Floats:
        """The chunk (H, A) as the graph gives it, normalised, of what `prepare` or `encode` makes and noise."""
        if noise is None:
            noise = self._generator.standard_normal(self._noise_shape, dtype=np.float32)
        try:
            noise = np.asarray(noise, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise RunnerError(f"noise is {noise!r}; give numbers of shape {self._noise_shape}.") from error
        if noise.shape != self._noise_shape or not np.isfinite(noise).all():
            raise RunnerError(
                f"noise has shape {noise.shape}; give finite numbers of shape {self._noise_shape}."
            )
        return self.endpoints(inputs, noise)[0]

    def endpoints(self, inputs: Mapping[str, Any], noise: Floats) -> Floats:
        """The normalised chunks (K, H, A) of one observation and several noises (K, H, D)."""
        endpoints = self._graphs.endpoints(inputs, noise)[..., : self._action_dim]
        if not np.isfinite(endpoints).all():
            raise RunnerError(
                "the graph gave NaN or infinite actions; look at the observation and the checkpoint."
            )
        return endpoints

    def to_action(self, endpoint: Floats) -> Floats:
        """A chunk (..., A) of `endpoint` in the robot's units."""
        return self._scale.invert(endpoint)

    def select_action(self, observation: Mapping[str, Any], noise: Any = None) -> Floats:
        """The next action (A,) of the current chunk; a new one is made where that is used up, from `noise` if given.

        The observation is of this control step alone. Call it at each, so that a policy that looks back misses none.
        """
        looks_back = len(self._observer.deltas) > 1
        if looks_back or not self._actions:
            step = self._observer.step(observation)
            # As in LeRobot, the first observation stands for those before it.
            self._history.extend([step] if self._history else [step] * (1 - min(self._observer.deltas)))
        if not self._actions:
            steps = [self._history[delta - 1] for delta in self._observer.deltas]
            endpoint = self.endpoint(self._observer.feed(steps, observation), noise)
            self._actions.extend(self.to_action(endpoint)[self._executed])
        return self._actions.popleft()

    def reset(self) -> None:
        """Forgets actions and observations, at the start of an episode; the stream of noises goes on."""
        self._actions.clear()
        self._history.clear()

    def warm_up(self) -> None:
        """Runs the graphs once on a blank observation, so that the first action is not the slowest."""
        self(self._observer.blank, np.zeros(self._noise_shape))


def load(
    folder: str | Path, *, threads: int | None = None, seed: int | None = None, num_steps: int | None = None
) -> Policy:
    """Loads a policy that chordflow has exported.

    Args:
        folder: what `chordflow export` has made.
        threads: that compute one chunk; by default all cores.
        seed: of the noise; by default every policy draws its own.
        num_steps: Euler steps, for a folder of two graphs; by default as it was exported.

    Raises:
        RunnerError: if the folder was changed, is of a newer version, or cannot be run here.
    """
    for name, value, least in (("threads", threads, 1), ("num_steps", num_steps, 1), ("seed", seed, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise RunnerError(
                f"{name} is {value!r}; choose a whole number, at least {least}, or leave it out."
            )
    folder = Path(folder)
    try:
        return Policy(read_manifest(folder), folder, threads, seed, num_steps)
    except RunnerError:
        raise
    # The file says something that this version has no code for, or somebody wrote into it.
    except Exception as error:
        raise RunnerError(
            f"{folder / MANIFEST} cannot be followed ({error!r}); export the policy again, or install a newer "
            "chordflow_runtime."
        ) from error
