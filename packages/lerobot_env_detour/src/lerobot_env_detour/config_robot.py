"""How LeRobot's commands name the simulated robot: `--robot.type=detour`."""

from dataclasses import dataclass

from lerobot.robots.config import RobotConfig


@RobotConfig.register_subclass("detour")
@dataclass(kw_only=True)
class DetourRobotConfig(RobotConfig):
    """Options of the simulated robot.

    Attributes:
        instruction: "go left", "go right" or "go any way": which sides count as a success. Give the policy the same
            by `--task`.
        seed: of the layout.
        camera: name of the camera.
    """

    instruction: str = "go any way"
    seed: int = 0
    camera: str = "front"
