"""Meta-World for LeRobot that renders only what a policy looks at, with two tasks that are two-sided.

Importing this package registers `metaworld_light` with LeRobot, whose commands import it by themselves once
it is installed. That is all that it does: Meta-World and MuJoCo are imported when an environment is made.
"""

from lerobot_env_metaworld_light.config import OBSERVATIONS, LightMetaworldConfig

__all__ = ["OBSERVATIONS", "LightMetaworldConfig"]
