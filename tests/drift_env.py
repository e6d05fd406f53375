"""A small environment that fits the tests' checkpoints: one camera, three numbers of state, two of action.

It complains where it is stepped before a reset, beyond its end, or reset without a seed, so a test that
passes says that rollouts do none of these. `lenient` lifts this for LeRobot's vector environment.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

# Those of `builders`, which takes a worker seconds to import.
TASKS = ("go left", "go right", "go any way round the obstacle")
TIME_LIMIT = 13
MEAN_ACTION = 8.0


class DriftEnv(gym.Env[Any, Any]):
    """Actions push a point about; it ends where it leaves a band of a width that the seed draws."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 10}
    steps: ClassVar[int] = 0
    lenient: ClassVar[bool] = False

    def __init__(self, cameras: tuple[str, ...], action_dim: int, state_dim: int, render_mode: str | None):
        self.cameras, self.state_dim, self.render_mode = cameras, state_dim, render_mode
        image = gym.spaces.Box(0, 255, (32, 32, 3), np.uint8)
        pictures = gym.spaces.Dict(dict.fromkeys(cameras, image))
        state = gym.spaces.Box(-np.inf, np.inf, (state_dim,), np.float32)
        self.observation_space = gym.spaces.Dict({"pixels": pictures, "agent_pos": state})
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (action_dim,), np.float32)
        self.running = False

    @property
    def task_description(self) -> str:
        return self.instruction

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        assert seed is not None or self.lenient, "an episode begins by its seed"
        super().reset(seed=seed)
        self.instruction = TASKS[int(self.np_random.integers(len(TASKS)))]
        self.point = self.np_random.normal(size=3) * 0.1
        self.radius = float(self.np_random.uniform(0.2, 0.8))
        self.running = True
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.running or self.lenient, "an episode that is over is not stepped"
        DriftEnv.steps += 1
        # Less about what the first action has for its mean, so that episodes go either way.
        self.point[:2] += 0.015 * (np.resize(np.asarray(action, dtype=np.float64), 2) - MEAN_ACTION)
        self.point[2] *= -0.9
        gone = bool(abs(self.point[0]) > self.radius)
        self.running = not gone
        side = "left" if self.point[0] < 0 else "right"
        info = {"is_success": gone and side == "right", "side": side}
        return self._observe(), float(self.point[0]), gone, False, info

    def render(self) -> np.ndarray:
        """The camera's picture, twice as large."""
        return np.kron(self._picture(), np.ones((2, 2, 1), dtype=np.uint8))

    def _picture(self) -> np.ndarray:
        rows, columns = np.mgrid[0:32, 0:32] / 16.0 - 1.0
        waves = [np.sin(3 * (rows - self.point[0])), np.cos(3 * (columns - self.point[1])), rows * columns]
        return (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)

    def _observe(self) -> dict[str, Any]:
        state = np.resize(self.point, self.state_dim).astype(np.float32)
        return {"pixels": {camera: self._picture() for camera in self.cameras}, "agent_pos": state}


def register(name: str, env: type[DriftEnv]) -> None:
    if f"chordflow_tests/{name}" not in gym.registry:
        gym.register(f"chordflow_tests/{name}", env, max_episode_steps=TIME_LIMIT)


register("Drift-v0", DriftEnv)


@EnvConfig.register_subclass("drift_of_the_tests")
@dataclass
class DriftEnvConfig(EnvConfig):
    """The environment as LeRobot's factory takes it."""

    task: str | None = "Drift-v0"
    cameras: tuple[str, ...] = ("top",)
    action_dim: int = 2
    state_dim: int = 3
    render_mode: str | None = None
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))}
    )

    @property
    def package_name(self) -> str:
        return "chordflow_tests"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        sizes = {"action_dim": self.action_dim, "state_dim": self.state_dim}
        return {"cameras": tuple(self.cameras), **sizes, "render_mode": self.render_mode}
