"""Training methods: a class and a config each."""

from chordflow.training.methods.base import Method, MethodConfig
from chordflow.training.methods.consistency import ConsistencyMethod, ConsistencyMethodConfig
from chordflow.training.methods.endpoint import EndpointMethod, EndpointMethodConfig
from chordflow.training.methods.noise_biased import NoiseBiasedMethod, NoiseBiasedMethodConfig
from chordflow.training.methods.reflow import ReflowMethod, ReflowMethodConfig
from chordflow.training.methods.snapflow import SnapFlowMethod, SnapFlowMethodConfig

__all__ = [
    "ConsistencyMethod",
    "ConsistencyMethodConfig",
    "EndpointMethod",
    "EndpointMethodConfig",
    "Method",
    "MethodConfig",
    "NoiseBiasedMethod",
    "NoiseBiasedMethodConfig",
    "ReflowMethod",
    "ReflowMethodConfig",
    "SnapFlowMethod",
    "SnapFlowMethodConfig",
]
