"""The detour task as a Gymnasium environment."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from lerobot_env_detour.rendering import draw_agent, draw_ground
from lerobot_env_detour.scene import (
    GOAL_RADIUS,
    INSTRUCTIONS,
    MAX_STEP,
    Scene,
    Side,
    draw_scene,
    hits_obstacle,
    passed_side,
)

FPS = 10


class DetourEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """Reach the goal without touching the obstacle that stands in between, by an allowed side.

    Observation: `pixels`, uint8 of shape (size, size, 3), under the camera's name where it has one, and `agent_pos`,
    float32 of shape (2,).
    Action: float32 of shape (2,) in [-1, 1], the move in units of `MAX_STEP`.
    Reward: 1 on success, else 0.

    An episode ends in success when the goal is reached after the obstacle was passed on an allowed side, and
    in failure on touching the obstacle or passing it on a forbidden side. `info` holds `is_success`,
    `side` ("left", "right" or "none" so far) and `outcome` ("running", "success", "collision" or
    "wrong side").

    Everything is a function of the seed given to `reset`; the dynamics are deterministic.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": FPS}

    task = "Detour-v0"

    def __init__(
        self,
        instruction: str | None = None,
        image_size: int = 64,
        render_size: int = 256,
        render_mode: str | None = "rgb_array",
        camera: str | None = None,
    ) -> None:
        """Make the environment.

        Args:
            instruction: one of `INSTRUCTIONS` for all episodes, or None to draw one at each reset.
            image_size: side of the square image in the observation, in pixels.
            render_size: side of the square image that `render` returns, in pixels.
            render_mode: "rgb_array" or None.
            camera: name of the camera: `pixels` is a dictionary that holds the image under it.

        Raises:
            ValueError: if the instruction is unknown or an image is smaller than 16 pixels.
        """
        if instruction is not None and instruction not in INSTRUCTIONS:
            raise ValueError(f"instruction is {instruction!r}; it must be one of {list(INSTRUCTIONS)}.")
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if size < 16:
                raise ValueError(f"{name} is {size}; it must be at least 16.")
        self.render_mode = render_mode
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict({camera: image}) if camera else image,
                "agent_pos": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
            }
        )
        self._camera = camera
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._instruction = instruction
        self._image_size = image_size
        self._render_size = render_size
        self._render_ground: NDArray[np.float32] | None = None
        self._scene: Scene | None = None
        self._side: Side = "none"

    @property
    def scene(self) -> Scene:
        """The layout of the running episode.

        Raises:
            RuntimeError: if `reset` has not been called.
        """
        if self._scene is None:
            raise RuntimeError("the environment has no scene yet; call reset first.")
        return self._scene

    @property
    def position(self) -> NDArray[np.float64]:
        """The agent's centre, shape (2,)."""
        return self._position.copy()

    @property
    def task_description(self) -> str:
        """The instruction of the running episode, under the name that LeRobot's evaluation asks for."""
        return self.scene.instruction

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: decides layout and instruction.
            options: `{"instruction": ...}` overrides the instruction of this episode and leaves the layout
                as the seed has it; other keys are left to other tools.
        """
        super().reset(seed=seed)
        instruction = (options or {}).get("instruction", self._instruction)
        self._scene = draw_scene(self.np_random, instruction)
        self._ground = draw_ground(self._scene, self._image_size)
        self._render_ground = None
        self._position = np.array(self._scene.start)
        self._side = "none"
        return self._observe(), self._info("running")

    def step(self, action: NDArray[np.floating]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Move by `action * MAX_STEP`, the action clipped to [-1, 1].

        Args:
            action: shape (2,).
        """
        scene = self.scene
        before = self._position
        move = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0) * MAX_STEP
        self._position = after = np.clip(before + move, -1.0, 1.0)
        side = passed_side(before, after, scene)
        if side != "none":
            self._side = side
        if hits_obstacle(before, after, scene):
            outcome = "collision"
        elif side != "none" and side not in scene.allowed_sides:
            outcome = "wrong side"
        elif self._side != "none" and np.hypot(*(after - scene.goal)) <= GOAL_RADIUS:
            outcome = "success"
        else:
            outcome = "running"
        ended = outcome != "running"
        return self._observe(), float(outcome == "success"), ended, False, self._info(outcome)

    def render(self) -> NDArray[np.uint8]:
        """A picture for people, shape (render_size, render_size, 3)."""
        if self._render_ground is None:
            self._render_ground = draw_ground(self.scene, self._render_size)
        return draw_agent(self._render_ground, self._position)

    def _observe(self) -> dict[str, Any]:
        image = draw_agent(self._ground, self._position)
        return {
            "pixels": {self._camera: image} if self._camera else image,
            "agent_pos": self._position.astype(np.float32),
        }

    def _info(self, outcome: str) -> dict[str, Any]:
        return {"is_success": outcome == "success", "side": self._side, "outcome": outcome}
