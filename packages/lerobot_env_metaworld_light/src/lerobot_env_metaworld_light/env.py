"""Meta-World as LeRobot wraps it, drawn only where it is looked at."""

from typing import Any

import mujoco
import numpy as np
from gymnasium import spaces
from lerobot.envs.metaworld import MetaworldEnv
from numpy.typing import NDArray

from lerobot_env_metaworld_light.config import MAX_EPISODE_LENGTH, OBSERVATIONS
from lerobot_env_metaworld_light.pictures import Observation, Painter, painter
from lerobot_env_metaworld_light.tasks import OWN_TASKS, description, known
from lerobot_env_metaworld_light.two_sided import TwoSided

CORNER2 = [0.75, 0.075, 0.7]
"""Where LeRobot moves the camera corner2, whose pictures it turns upside down."""


class LightMetaworldEnv(MetaworldEnv):
    """A task of Meta-World; states, rewards and success are those of LeRobot's environment.

    Observation: `pixels`, uint8 of shape (size, size, 3), drawn when it is looked at and at the latest before
    the next step, and `agent_pos`, float32: the hand's position and the gripper's opening, and with
    `obs="pixels_full"` the positions of the first object, of the second one (zeros where there is none) and
    of the goal.
    Action: float32 of shape (4,) in [-1, 1]: the hand's move in units of 0.01 m, and the gripper's effort.

    The seed given to `reset` decides where objects and goal are; an episode is a function of seed and actions,
    whatever the environment did before. Without a seed they are drawn from where the generator stands.
    `info` holds `is_success` and, in a two-sided task, `side`. Unlike LeRobot's, the environment does not reset
    itself when an episode ends.
    """

    def __init__(
        self,
        task: str,
        obs: str = "pixels_agent_pos",
        image_size: int = 64,
        render_size: int = 256,
        episode_length: int = MAX_EPISODE_LENGTH,
        camera: str = "corner2",
    ) -> None:
        """Prepare the environment; the simulator is made at the first reset.

        Args:
            task: name of the task.
            obs: one of `OBSERVATIONS`.
            image_size: side of the picture in the observation, in pixels.
            render_size: side of the picture that `render` returns, in pixels.
            episode_length: steps after which an episode is cut off.
            camera: name of the camera.

        Raises:
            ValueError: if the task is unknown.
        """
        own = OWN_TASKS.get(known(task))
        super().__init__(
            task=own.based_on if own else task,
            camera_name=camera,
            observation_width=image_size,
            observation_height=image_size,
            visualization_width=render_size,
            visualization_height=render_size,
        )
        self.task = self._env_name = task
        self.task_description = description(task)
        self._max_episode_steps = episode_length
        self._full = obs == "pixels_full"
        self._steps = 0
        self._moves = 0
        self._state: NDArray[np.float64] = np.zeros(39)
        self.observation_space = spaces.Dict(
            {
                "pixels": spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                "agent_pos": spaces.Box(-1000.0, 1000.0, (OBSERVATIONS[obs],), np.float32),
            }
        )

    @property
    def state(self) -> NDArray[np.float64]:
        """Meta-World's full state, shape (39,): what its experts act on."""
        return self._state.copy()

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: decides where things are.
            options: ignored.
        """
        self._ensure_env()
        # Gymnasium's own part of a reset; LeRobot's would draw a picture.
        super(MetaworldEnv, self).reset(seed=seed)
        if seed is not None:
            self._env.seed(seed)
        self._state, _ = self._env.reset(seed=seed)
        # Meta-World moves goal and objects in the model; until the next step MuJoCo would draw them where they were in
        # the episode before. Only positions are computed again, which the next step does in any case.
        mujoco.mj_kinematics(self._env.model, self._env.data)
        self._steps = 0
        return self._observe(), self._info({"is_success": False})

    def step(self, action: NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Take a step of 1/80 s.

        Args:
            action: shape (4,).

        Raises:
            ValueError: if the action has another shape.
        """
        if np.shape(action) != (4,):
            raise ValueError(f"the action has the shape {np.shape(action)}; it must be (4,).")
        self._ensure_env()
        self._state, reward, done, truncated, info = self._env.step(action)
        self._steps += 1
        success = bool(info.get("success", 0))
        failed = isinstance(self._env, TwoSided) and not success and self._env.failed
        terminated = bool(done or success or failed)
        truncated = bool(truncated or self._steps >= self._max_episode_steps)
        info = self._info(info | {"task": self.task, "done": done, "is_success": success})
        if terminated:
            info["final_info"] = {"task": self.task, "done": bool(done), "is_success": success}
        observation = self._observe()
        if terminated or truncated:
            # Some vector environments look at an episode's last observation only after the reset.
            observation.look()
        return observation, float(reward), terminated, truncated, info

    def render(self) -> NDArray[np.uint8]:
        """A picture for people, shape (render_size, render_size, 3)."""
        self._ensure_env()
        return self._draw(self.visualization_width)

    def close(self) -> None:
        """Give the simulator up; a reset makes a new one."""
        super().close()
        self._env = None

    def _ensure_env(self) -> None:
        if self._env is not None:
            return
        own = OWN_TASKS.get(self.task)
        if own is None:
            super()._ensure_env()
            return
        self._env = own.simulator(camera_name=self.camera_name)
        self._env.seeded_rand_vec = True
        if self.camera_name == "corner2":
            self._env.model.cam_pos[2] = CORNER2

    def _observe(self) -> Observation:
        self._moves += 1
        moves, state = self._moves, self._state
        parts = (state[:7], state[11:14], state[36:39]) if self._full else (state[:4],)

        def draw() -> NDArray[np.uint8]:
            if moves != self._moves:
                raise RuntimeError(
                    "the picture of an observation was asked for after the environment had moved on; look at an "
                    "observation before the next step, or copy it."
                )
            return self._draw(self.observation_width)

        return Observation({"agent_pos": np.concatenate(parts).astype(np.float32)}, draw)

    def _draw(self, size: int) -> NDArray[np.uint8]:
        picture = self._painter().draw(self._env.model, self._env.data, self.camera_name, size)
        return np.ascontiguousarray(picture[::-1, ::-1] if self.camera_name == "corner2" else picture)

    def _painter(self) -> Painter:
        return painter(self.task, self._env.model, max(self.observation_width, self.visualization_width))

    def _info(self, info: dict[str, Any]) -> dict[str, Any]:
        return info | {"side": self._env.side} if isinstance(self._env, TwoSided) else info
