"""Training methods: a class and a config each."""

from chordflow.training.methods.base import Method, MethodConfig
from chordflow.training.methods.coupled import (
    ConsistencyMethod,
    ConsistencyMethodConfig,
    EndpointMethod,
    EndpointMethodConfig,
    ReflowMethod,
    ReflowMethodConfig,
)
from chordflow.training.methods.demonstrated import (
    NoiseBiasedMethod,
    NoiseBiasedMethodConfig,
    SnapFlowMethod,
    SnapFlowMethodConfig,
)

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
