"""Which LeRobot families have an adapter: chordflow's own, and those of other distributions."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

import lerobot
from lerobot.configs import PreTrainedConfig

from chordflow.errors import UserError, reason
from chordflow.policies.base import FlowPolicy

ENTRY_POINTS = "chordflow.families"
"""The group of entry points by which a distribution brings an adapter: LeRobot's policy type = module:Class."""


# By family: the adapter in this package, and the extra of LeRobot's that brings what it needs. Adapters are imported
# only when asked for: each pulls in its family's own dependencies.
_ADAPTERS = {
    "eo1": ("eo1:EO1FlowPolicy", "eo1"),
    "groot": ("groot:GrootFlowPolicy", "groot"),
    "multi_task_dit": ("multi_task_dit:MultiTaskDiTFlowPolicy", "multi-task-dit"),
    "pi0": ("pi0:PI0FlowPolicy", "pi"),
    "pi05": ("pi0:PI05FlowPolicy", "pi"),
    "smolvla": ("smolvla:SmolVLAFlowPolicy", "smolvla"),
}
# Modules that LeRobot looks for no sooner than it uses them.
_NEEDED_LATE = {"groot": ("tree",)}

_LACKS_ADAPTER = "it fits the interface and only lacks an adapter"
WITHOUT_ADAPTER = {
    "evo1": _LACKS_ADAPTER,
    "fastwam": "its sampler walks a warped time grid and takes every chunk's noise from one seed",
    "lingbot_va": "it denoises a video before the actions, over a cache that holds the whole episode",
    "molmoact2": _LACKS_ADAPTER,
    "vla_jepa": _LACKS_ADAPTER,
    "wall_x": "no field of its config holds the number of steps",
    "xvla": "every step mixes its prediction with the first noise, so its sampler solves no ODE",
}
"""LeRobot's other flow-matching families, and what stands in the way; docs/families.md says more of each."""


def own_families() -> dict[str, str]:
    """The families whose adapters are chordflow's own, sorted, and the extra of LeRobot's that each needs."""
    return {family: extra for family, (_, extra) in sorted(_ADAPTERS.items())}


def supported_families() -> list[str]:
    """LeRobot policy types that have an adapter here or in an installed distribution, sorted."""
    return sorted({*_ADAPTERS, *entry_points(group=ENTRY_POINTS).names})


def adapter_for(family: str, source: str = "") -> type[FlowPolicy]:
    """The adapter class of a LeRobot policy type; `source` is what names it, an option and its value, or a file.

    Raises:
        UserError: if there is none, if it cannot be imported or is unfinished, or if two distributions bring one.
    """
    where = f"{source} is of policy type {family!r}" if source else f"policy type {family!r}"
    if family in _ADAPTERS:
        module, name = _ADAPTERS[family][0].split(":")
        try:
            for needed in _NEEDED_LATE.get(family, ()):
                import_module(needed)
            return getattr(import_module(f"chordflow.policies.{module}"), name)
        except ImportError as error:
            raise missing_packages(family, where, error) from error
    brought = list(entry_points(group=ENTRY_POINTS, name=family))
    if not brought:
        raise UserError(f"{where}, {_why_not(family)}")
    owners = [point.dist.name if point.dist is not None else point.module for point in brought]
    if len(brought) > 1:
        raise UserError(
            f"{where}, and {' and '.join(owners)} each bring an adapter for it; uninstall all but one."
        )
    try:
        adapter = brought[0].load()
        fault = _fault(adapter, family)
    except Exception as error:
        fault = f"cannot be imported ({reason(error)})"
    if fault:
        raise UserError(
            f"{where}, whose adapter {brought[0].value} of {owners[0]} {fault}; repair or uninstall that distribution."
        )
    return adapter


def missing_packages(family: str, where: str, error: BaseException) -> UserError:
    """The sentence for a family whose packages are not installed."""
    # LeRobot's message continues with its own command, whose extra may have another name.
    what = reason(error).split(". ")[0]
    remedy = "install what its distribution requires"
    if family in _ADAPTERS:
        remedy = f'install them with: pip install "lerobot[{_ADAPTERS[family][1]}]=={lerobot.__version__}"'
    return UserError(f"{where}, whose packages are not all installed ({what}); {remedy}")


def _why_not(family: str) -> str:
    """What stands in the way of a family without adapter, and what to do."""
    supported = f"give a checkpoint of a family that chordflow supports: {', '.join(supported_families())}."
    if family in WITHOUT_ADAPTER:
        return f"which cannot be reflowed yet: {WITHOUT_ADAPTER[family]} (see docs/families.md); {supported}"
    # LeRobot's policies register their configs when this is imported.
    import_module("lerobot.policies")
    if family in PreTrainedConfig.get_known_choices():
        return f"which cannot be reflowed: it is no flow-matching policy; {supported}"
    return (
        f"which LeRobot {lerobot.__version__} does not know: it is of an older or newer LeRobot, or of a package that "
        f"is not installed here (docs/add-a-family.md says how such a package brings its adapter); {supported}"
    )


def _fault(adapter: object, family: str) -> str | None:
    """What is wrong with an adapter from elsewhere, before any checkpoint is loaded; None where nothing is."""
    if not (isinstance(adapter, type) and issubclass(adapter, FlowPolicy)):
        return "is no subclass of chordflow.policies.FlowPolicy"
    asked = ("family", "policy_class", "steps_field", "encoded_once")
    missing = [*(name for name in asked if not hasattr(adapter, name)), *sorted(adapter.__abstractmethods__)]
    if missing:
        return f"does not define {', '.join(missing)} (see docs/add-a-family.md)"
    if adapter.family != family:
        return f"is for family {adapter.family!r}"
    if family not in PreTrainedConfig.get_known_choices():
        return (
            f"imports no policy of that type: PreTrainedConfig.register_subclass({family!r}) was not called"
        )
    return None
