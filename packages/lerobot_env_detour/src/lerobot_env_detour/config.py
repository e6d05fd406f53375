"""How LeRobot's command line names and builds the environment: `--env.type=detour`."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_IMAGES, OBS_STATE

from lerobot_env_detour.env import FPS


@EnvConfig.register_subclass("detour")
@dataclass
class DetourEnvConfig(EnvConfig):
    """Options of the detour task.

    Attributes:
        instruction: "go left", "go right" or "go any way" for all episodes; None draws one at each reset
            (25, 25 and 50 percent).
        camera: name of the camera, `front` for `observation.images.front`; null for a policy that was trained on
            `observation.image`.
        image_size: side of the square image in the observation, in pixels.
        render_size: side of the square pictures in videos, in pixels.
        episode_length: steps after which an episode is cut off. The expert needs about 14.
    """

    task: str | None = "Detour-v0"
    fps: int = FPS
    instruction: str | None = None
    camera: str | None = "front"
    image_size: int = 64
    render_size: int = 256
    episode_length: int = 40
    render_mode: str = "rgb_array"
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in the features that follow from the camera's name and the image's size."""
        pixels = f"pixels/{self.camera}" if self.camera else "pixels"
        image = f"{OBS_IMAGES}.{self.camera}" if self.camera else OBS_IMAGE
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE, pixels: image}
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(2,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(2,)),
            pixels: PolicyFeature(type=FeatureType.VISUAL, shape=(self.image_size, self.image_size, 3)),
        }

    @property
    def package_name(self) -> str:
        """The module that registers the environment with Gymnasium."""
        return "lerobot_env_detour"

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments for `gymnasium.make`."""
        return {
            "instruction": self.instruction,
            "camera": self.camera,
            "image_size": self.image_size,
            "render_size": self.render_size,
            "render_mode": self.render_mode,
            "max_episode_steps": self.episode_length,
        }
