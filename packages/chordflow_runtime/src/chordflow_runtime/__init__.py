"""Runs a policy that chordflow has exported, without torch and LeRobot.

policy = chordflow_runtime.load("exported/")
action = policy.select_action({"observation.images.top": picture, "observation.state": state, "task": "go left"})
"""

from chordflow_runtime.manifest import RunnerError
from chordflow_runtime.policy import Policy, load

__all__ = ["Policy", "RunnerError", "load"]
