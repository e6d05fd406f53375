"""One adapter per LeRobot family, behind one interface; loading, saving and relocating checkpoints.

Only this package touches a policy's private parts.
"""

from chordflow.policies.base import ChunkSpec, FlowPolicy, Role, VelocityModule
from chordflow.policies.checkpoint import load_flow_policy, resolve_checkpoint, save_student
from chordflow.policies.context import Context
from chordflow.policies.files import relocate
from chordflow.policies.inputs import check_inputs, print_replaced_names

__all__ = [
    "ChunkSpec",
    "Context",
    "FlowPolicy",
    "Role",
    "VelocityModule",
    "check_inputs",
    "load_flow_policy",
    "print_replaced_names",
    "relocate",
    "resolve_checkpoint",
    "save_student",
]
