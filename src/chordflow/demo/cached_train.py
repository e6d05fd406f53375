"""LeRobot's own training command with an image dataset's columns kept in memory.

Run as `python -m chordflow.demo.cached_train`; takes the arguments of `lerobot-train` and trains the
same weights. Looking up and decoding one frame takes LeRobot some milliseconds, which for a tiny policy is
three times the cost of the training step. So the table is decoded once, LeRobot's reader then reads
from the decoded one, and what it makes of a frame is kept; what that is stays the reader's business.
"""

from dataclasses import dataclass
from typing import Any

from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.scripts.lerobot_train import main


@dataclass
class DecodedColumn:
    """One column, indexed by a list of rows."""

    values: list[Any]

    def __getitem__(self, rows: list[int]) -> list[Any]:
        """The values at these rows."""
        return [self.values[row] for row in rows]


@dataclass
class DecodedTable:
    """A table of decoded columns by name, indexed as LeRobot's reader does: by row, or by name and then by rows."""

    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> dict[str, Any] | DecodedColumn:
        """One row as a dictionary, or one column."""
        if isinstance(key, str):
            return DecodedColumn(self.columns[key])
        return {name: column[key] for name, column in self.columns.items()}


def keep_frames() -> None:
    """Let every LeRobotDataset decode its table once and keep its items; only for use in a process of its own."""
    look_up = LeRobotDataset.__getitem__

    def look_up_decoded(self: LeRobotDataset, index: int) -> dict[str, Any]:
        reader = self.reader
        if not isinstance(reader.hf_dataset, DecodedTable):
            reader.hf_dataset = DecodedTable(dict(reader.hf_dataset[:]))
        items = self.__dict__.setdefault("_items_in_memory", {})
        if index not in items:
            items[index] = look_up(self, index)
        # A copy of the dictionary alone: collation stacks the tensors into new ones.
        return dict(items[index])

    LeRobotDataset.__getitem__ = look_up_decoded


if __name__ == "__main__":
    keep_frames()
    main()
