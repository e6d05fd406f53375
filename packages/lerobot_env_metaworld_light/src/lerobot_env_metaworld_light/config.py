"""How LeRobot's command line names and builds the environment: `--env.type=metaworld_light`."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

OBSERVATIONS = {"pixels_agent_pos": 4, "pixels_full": 13}
"""What `obs` may be, and how many numbers `agent_pos` then has."""
FPS = 80
ACTION_DIM = 4
MAX_EPISODE_LENGTH = 500
"""Meta-World's own limit of steps."""
CAMERAS = ("corner", "corner2", "corner3", "topview", "behindGripper", "gripperPOV")
"""Meta-World's cameras, by its names."""


@EnvConfig.register_subclass("metaworld_light")
@dataclass
class LightMetaworldConfig(EnvConfig):
    """Options of Meta-World.

    Attributes:
        task: names of tasks or of LeRobot's groups of tasks (easy, medium, hard, very_hard), joined by commas.
        obs: what `agent_pos` holds: pixels_agent_pos is the hand's position and the
            gripper's opening (4 numbers, as LeRobot's own environment has it); pixels_full has the positions of
            both objects and of the goal as well (13 numbers, in metres).
        image_size: side of the square picture in the observation, in pixels.
        render_size: side of the square pictures in videos, in pixels.
        episode_length: steps after which an episode is cut off, at most 500. The experts need 30 to 330.
        camera: which of Meta-World's cameras: corner, corner2, corner3, topview, behindGripper or gripperPOV.
    """

    task: str | None = "reach-v3"
    fps: int = FPS
    obs: str = "pixels_agent_pos"
    image_size: int = 64
    render_size: int = 256
    episode_length: int = MAX_EPISODE_LENGTH
    camera: str = "corner2"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    def __post_init__(self) -> None:
        """Check the options that need no simulator, and fill in the features that follow from them.

        Raises:
            ValueError: if an option is out of range.
        """
        if self.obs not in OBSERVATIONS:
            raise ValueError(f"env.obs={self.obs}: it must be one of {', '.join(OBSERVATIONS)}.")
        if not 1 <= self.episode_length <= MAX_EPISODE_LENGTH:
            raise ValueError(
                f"env.episode_length={self.episode_length}: give 1 to {MAX_EPISODE_LENGTH}, Meta-World's own limit."
            )
        if self.camera not in CAMERAS:
            raise ValueError(f"env.camera={self.camera}: it must be one of {', '.join(CAMERAS)}.")
        for name, size in (("image_size", self.image_size), ("render_size", self.render_size)):
            if not 16 <= size <= 2048:
                raise ValueError(f"env.{name}={size}: give 16 to 2048 pixels.")
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(OBSERVATIONS[self.obs],)),
            "pixels": PolicyFeature(type=FeatureType.VISUAL, shape=(self.image_size, self.image_size, 3)),
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of an environment, but for its task."""
        return {
            "obs": self.obs,
            "image_size": self.image_size,
            "render_size": self.render_size,
            "episode_length": self.episode_length,
            "camera": self.camera,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """Make `n_envs` environments of each task, as {group or task: {number: vector environment}}.

        Raises:
            ValueError: if a task is unknown; the message has the nearest names.
            RuntimeError: if MuJoCo's version does not work, or nothing is there to render with.
        """
        # Meta-World is imported here and not above: LeRobot's commands import this module whatever they do.
        from lerobot_env_metaworld_light.machine import check_machine
        from lerobot_env_metaworld_light.vector import make_vector_envs

        check_machine()
        return make_vector_envs(self.task or "", n_envs, use_async_envs, self.gym_kwargs)
