"""Training methods: a class and a config each, which their modules register."""

from chordflow.training.methods import demonstrated
from chordflow.training.methods.base import Method, MethodConfig
from chordflow.training.methods.coupled import ReflowMethod, ReflowMethodConfig

__all__ = ["Method", "MethodConfig", "ReflowMethod", "ReflowMethodConfig", "demonstrated"]
