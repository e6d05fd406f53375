"""A two-sided task for LeRobot: go round an obstacle by the left, by the right, or any way.

Importing this package registers `lerobot_env_detour/Detour-v0` with Gymnasium, and with LeRobot an environment and a
simulated robot, both as `detour`.
LeRobot's commands import it by themselves once it is installed.
"""

import gymnasium as gym

from lerobot_env_detour.config import DetourEnvConfig
from lerobot_env_detour.config_robot import DetourRobotConfig
from lerobot_env_detour.env import DetourEnv
from lerobot_env_detour.expert import DetourExpert
from lerobot_env_detour.scene import INSTRUCTION_PROBABILITIES, INSTRUCTIONS, Scene

__all__ = [
    "INSTRUCTIONS",
    "INSTRUCTION_PROBABILITIES",
    "DetourEnv",
    "DetourEnvConfig",
    "DetourExpert",
    "DetourRobotConfig",
    "Scene",
]

if "lerobot_env_detour/Detour-v0" not in gym.registry:
    gym.register("lerobot_env_detour/Detour-v0", DetourEnv, max_episode_steps=40)
