"""Which LeRobot families have an adapter."""

from __future__ import annotations

from importlib import import_module

from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy

# Adapters are imported only when asked for: each pulls in its family's own dependencies.
_ADAPTERS = {"smolvla": "chordflow.policies.smolvla:SmolVLAFlowPolicy"}


def supported_families() -> list[str]:
    """LeRobot policy types that have an adapter, sorted."""
    return sorted(_ADAPTERS)


def adapter_for(family: str) -> type[FlowPolicy]:
    """The adapter class of a LeRobot policy type.

    Raises:
        UserError: if there is none.
    """
    if family not in _ADAPTERS:
        raise UserError(
            f"policy type {family!r} cannot be reflowed: chordflow supports the flow-matching families "
            f"{', '.join(supported_families())}; give a checkpoint of one of these."
        )
    module, name = _ADAPTERS[family].split(":")
    return getattr(import_module(module), name)
