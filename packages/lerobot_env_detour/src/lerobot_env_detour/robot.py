"""A robot to try LeRobot's robot commands with, where there is none: the detour task in place of a machine."""

import logging
from typing import Any

import numpy as np
from lerobot.robots.robot import Robot

from lerobot_env_detour.config_robot import DetourRobotConfig
from lerobot_env_detour.env import DetourEnv


class DetourRobot(Robot):
    """Acts in one episode, which begins when it is connected, and stands still after its end.

    Observation: `x.pos` and `y.pos`, the agent's position, and the camera's image, uint8 of shape (64, 64, 3).
    Action: `x.vel` and `y.vel`, the move in units of `MAX_STEP`; the world waits for it.
    """

    config_class = DetourRobotConfig
    name = "detour"

    def __init__(self, config: DetourRobotConfig) -> None:
        """Make the robot.

        Args:
            config: its options.
        """
        super().__init__(config)
        self._config = config
        self._env = DetourEnv(config.instruction)
        self._seen: dict[str, Any] | None = None

    @property
    def observation_features(self) -> dict[str, Any]:
        """Kinds of what is observed."""
        return {"x.pos": float, "y.pos": float, self._config.camera: (64, 64, 3)}

    @property
    def action_features(self) -> dict[str, Any]:
        """Kinds of what an action holds."""
        return {"x.vel": float, "y.vel": float}

    @property
    def is_connected(self) -> bool:
        """Whether the episode has begun."""
        return self._seen is not None

    def connect(self, calibrate: bool = True) -> None:
        """Begin the episode.

        Args:
            calibrate: nothing to do.
        """
        self._seen, _ = self._env.reset(seed=self._config.seed)
        self._outcome = "running"

    @property
    def is_calibrated(self) -> bool:
        """Always: there is nothing to calibrate."""
        return True

    def calibrate(self) -> None:
        """Nothing to do."""

    def configure(self) -> None:
        """Nothing to do."""

    def get_observation(self) -> dict[str, Any]:
        """What is seen now; raises RuntimeError if the robot is not connected."""
        if self._seen is None:
            raise RuntimeError("the robot is not connected; call connect first.")
        x, y = self._seen["agent_pos"].tolist()
        return {"x.pos": x, "y.pos": y, self._config.camera: self._seen["pixels"]}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Move; the episode's outcome goes to the log.

        Args:
            action: `x.vel` and `y.vel`.
        """
        if self._outcome == "running":
            move = np.array([action["x.vel"], action["y.vel"]])
            self._seen, _, ended, _, info = self._env.step(move)
            self._outcome = info["outcome"]
            if ended:
                logging.info("The episode of seed %d has ended: %s.", self._config.seed, self._outcome)
        return action

    def disconnect(self) -> None:
        """End the episode."""
        self._seen = None
