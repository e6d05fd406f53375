"""Two tasks of which each start has two right answers, whose mean is wrong.

Coordinates are Meta-World's, in metres: x to the robot's right, y away from it, z upwards. So *left* is the side
of smaller x.
"""

from typing import Any

import mujoco
import numpy as np
from gymnasium.spaces import Box
from metaworld.envs.sawyer_push_v3 import SawyerPushEnvV3
from metaworld.envs.sawyer_reach_wall_v3 import SawyerReachWallEnvV3
from metaworld.sawyer_xyz_env import SawyerXYZEnv
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WALL_Y = 0.75
WALL_HALF_WIDTH = 0.1
WALL_HEIGHT = 0.5
"""As high as the hand can be lifted: there is no way over the wall."""
WALL_HALF_DEPTH = 0.01

GOAL_DISTANCE = 0.26
"""From one goal of the pushing task to the other; one counts as reached within 0.05."""


class TwoSided(SawyerXYZEnv):
    """What both have in common: all goals are seen, and the scene is changed before it is compiled."""

    def __init__(self, **options: Any) -> None:
        """Make the simulator.

        Args:
            options: of Meta-World's class.
        """
        super().__init__(**options)
        # What `set_task` does for Meta-World's own tasks.
        self._set_task_called = True
        self._freeze_rand_vec = False
        self._partially_observable = False
        self.__dict__.pop("sawyer_observation_space", None)

    @property
    def side(self) -> str:
        """Which way has been taken: "left", "right", or "none" so far."""
        raise NotImplementedError

    @property
    def failed(self) -> bool:
        """Whether the episode cannot be won any more."""
        return False

    def _change(self, scene: mujoco.MjSpec) -> None:
        raise NotImplementedError

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        scene = mujoco.MjSpec.from_file(self.fullpath)
        self._change(scene)
        model = scene.compile()
        return model, mujoco.MjData(model)


class RoundWallEnv(TwoSided, SawyerReachWallEnvV3):
    """Reach a goal behind a wall that has to be passed by the left or by the right, without touching it.

    Meta-World's wall stands to the right and is passed above. This one stands in the middle between hand and goal,
    and there is no way above it.
    """

    def __init__(self, **options: Any) -> None:
        """Make the simulator.

        Args:
            options: of Meta-World's class.
        """
        super().__init__(**options)
        goal_low, goal_high = (-0.04, 0.86, 0.1), (0.04, 0.92, 0.2)
        # The puck lies in front of the wall and plays no part here.
        self._random_reset_space = Box(
            np.array((-0.05, 0.6, 0.015, *goal_low)),
            np.array((0.05, 0.65, 0.015, *goal_high)),
            dtype=np.float64,
        )
        self.goal_space = Box(np.array(goal_low), np.array(goal_high), dtype=np.float64)
        self._side = "none"

    @property
    def side(self) -> str:
        """By which side the hand has passed the wall."""
        return self._side

    @property
    def failed(self) -> bool:
        """Whether the robot touches the wall."""
        wall = self.model.body("wall").id
        robot_and_wall = [
            contact
            for contact in self.data.contact
            if (self.model.geom_bodyid[contact.geom1] == wall)
            != (self.model.geom_bodyid[contact.geom2] == wall)
        ]
        return bool(robot_and_wall)

    def _change(self, scene: mujoco.MjSpec) -> None:
        wall = scene.body("wall")
        wall.pos = [0.0, WALL_Y, WALL_HEIGHT / 2]
        for geom in wall.geoms:
            geom.size = [WALL_HALF_WIDTH, WALL_HALF_DEPTH, WALL_HEIGHT / 2]

    def reset_model(self) -> Floats:
        """Begin an episode."""
        self._side = "none"
        return super().reset_model()

    def evaluate_state(self, obs: Floats, action: NDArray[np.float32]) -> tuple[float, dict[str, Any]]:
        """Meta-World's reward and success; notes the side in passing."""
        x, y = obs[:2]
        if y < WALL_Y:
            self._side = "none"
        elif self._side == "none":
            self._side = "left" if x < 0 else "right"
        return super().evaluate_state(obs, action)


class PushEitherGoalEnv(TwoSided, SawyerPushEnvV3):
    """Push the puck to one of two goals that lie to the left and to the right in front of it.

    The observation's goal is the left one; the right one has the place of the second object.
    """

    def __init__(self, **options: Any) -> None:
        """Make the simulator.

        Args:
            options: of Meta-World's class.
        """
        super().__init__(**options)
        # The puck, and the point in the middle between the goals.
        low, high = (-0.03, 0.62, 0.02, -0.02, 0.8, 0.01), (0.03, 0.66, 0.02, 0.02, 0.84, 0.02)
        self._random_reset_space = Box(np.array(low), np.array(high), dtype=np.float64)
        self.goal_space = Box(np.array((-0.3, 0.7, 0.0)), np.array((0.3, 0.95, 0.1)), dtype=np.float64)

    @property
    def goals(self) -> tuple[Floats, Floats]:
        """The left goal and the right one, each of shape (3,)."""
        aside = np.array([GOAL_DISTANCE / 2, 0.0, 0.0])
        return self._middle - aside, self._middle + aside

    @property
    def side(self) -> str:
        """The goal at which the puck lies."""
        puck = self.data.body("obj").xpos
        left, right = (np.linalg.norm(puck - goal) <= self.TARGET_RADIUS for goal in self.goals)
        return "left" if left else "right" if right else "none"

    @property
    def _middle(self) -> Floats:
        # Between two resets Meta-World asks for an observation while it is still being made.
        if self._last_rand_vec is None or self.obj_init_pos is None:
            return np.array([0.0, 0.8, 0.02])
        return np.array([*self._last_rand_vec[3:5], 0.02])

    def _change(self, scene: mujoco.MjSpec) -> None:
        goal = scene.site("goal")
        scene.worldbody.add_site(name="right_goal", pos=goal.pos, size=goal.size, rgba=goal.rgba)

    def reset_model(self) -> Floats:
        """Begin an episode."""
        super().reset_model()
        self._target_pos = self.goals[0]
        for name, goal in zip(("goal", "right_goal"), self.goals, strict=True):
            self.model.site(name).pos = goal
        mujoco.mj_forward(self.model, self.data)
        return self._get_obs()

    def evaluate_state(self, obs: Floats, action: NDArray[np.float32]) -> tuple[float, dict[str, Any]]:
        """Meta-World's reward and success with regard to the nearer goal."""
        left, right = self.goals
        puck = obs[4:7]
        nearer = left if np.linalg.norm(puck - left) <= np.linalg.norm(puck - right) else right
        self._target_pos = nearer
        try:
            return super().evaluate_state(obs, action)
        finally:
            self._target_pos = left

    @property
    def _target_site_config(self) -> list[tuple[str, Floats]]:
        return list(zip(("goal", "right_goal"), self.goals, strict=True))

    def _get_pos_objects(self) -> Floats:
        return np.hstack((super()._get_pos_objects(), self.goals[1]))

    def _get_quat_objects(self) -> Floats:
        return np.hstack((super()._get_quat_objects(), (0.0, 0.0, 0.0, 1.0)))
