"""chordflow: reflow LeRobot flow-matching policies into students that act in one or two steps."""

__version__ = "0.1.0"
