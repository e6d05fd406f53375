"""Training methods: a class each, with a config of its own."""

from chordflow.training.methods.base import Method, MethodConfig
from chordflow.training.methods.reflow import ReflowMethod, ReflowMethodConfig

__all__ = ["Method", "MethodConfig", "ReflowMethod", "ReflowMethodConfig"]
