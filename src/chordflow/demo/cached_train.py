"""LeRobot's own training command with decoded frames kept in memory.

Run as ``python -m chordflow.demo.cached_train``; takes the arguments of ``lerobot-train`` and trains the
same weights. A frame of an image dataset takes LeRobot some milliseconds to look up and decode, which for a
tiny policy is three times the cost of the training step; the demo's dataset has no random transforms, so a
frame that was decoded once can be used again.
"""

from typing import Any

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts.lerobot_train import main


def keep_frames() -> None:
    """Let every LeRobotDataset of this process remember its frames; only for use in a process of its own."""
    look_up = LeRobotDataset.__getitem__

    def remember(self: LeRobotDataset, index: int) -> dict[str, Any]:
        frames = self.__dict__.setdefault("_frames_in_memory", {})
        if index not in frames:
            frames[index] = look_up(self, index)
        # A copy of the dictionary, not of its tensors: collation stacks those into new ones.
        return dict(frames[index])

    LeRobotDataset.__getitem__ = remember


if __name__ == "__main__":
    keep_frames()
    main()
