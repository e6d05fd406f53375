"""Whether a checkpoint's processors do what its config says.

LeRobot passes on as it is what its normalising steps do not list, have no mode for, or have no statistics of: a policy
then sees and gives numbers of another scale, without a word.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.utils.constants import ACTION
from torch import Tensor

from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy
from chordflow.policies.files import CONFIG, POSTPROCESSOR, PREPROCESSOR

_STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def check_processors(policy: FlowPolicy, preprocessor: Any, postprocessor: Any, where: str) -> None:
    """Makes sure that observations and actions are normalised as the policy was trained.

    A camera without statistics passes where the family fills in for one that is absent.

    Args:
        policy: who is to act.
        preprocessor: the checkpoint's observation pipeline, as LeRobot loads it.
        postprocessor: its action pipeline.
        where: the option that names the checkpoint and its value, for messages.

    Raises:
        UserError: for a feature that no step normalises, statistics that are absent, not finite or of another size
            than the action, and actions relative to the state.
    """
    if policy.config.action_feature is None:
        raise UserError(f"{where}: {CONFIG} has no {ACTION} in output_features; restore it from a good copy.")
    for file, pipeline in ((PREPROCESSOR, preprocessor), (POSTPROCESSOR, postprocessor)):
        for step in pipeline.steps:
            if isinstance(step, RelativeActionsProcessorStep | AbsoluteActionsProcessorStep) and step.enabled:
                raise UserError(
                    f"{where}: {file} has a step {_name(step)} with enabled=true: such a checkpoint's actions depend "
                    "on the state that was seen last, so an endpoint alone is no action; give a checkpoint with "
                    "absolute actions."
                )
    if policy.normalises_elsewhere:
        return
    config = policy.config
    inputs, actions = config.input_features or {}, {ACTION: config.action_feature}
    # A fine-tuned config may list further vectors of the model that it began with; no policy looks at them.
    vectors = (config.robot_state_feature, config.env_state_feature)
    observed = {key: feature for key, feature in inputs.items() if any(feature is own for own in vectors)}
    before = [step for step in preprocessor.steps if isinstance(step, NormalizerProcessorStep)]
    after = [step for step in postprocessor.steps if isinstance(step, UnnormalizerProcessorStep)]
    for file, steps, features in (
        (PREPROCESSOR, before, observed | actions),
        (POSTPROCESSOR, after, actions),
    ):
        for key, feature in features.items():
            if fault := _fault(config, steps, key, feature):
                raise UserError(f"{where}: {file} {fault}")
    faults = [fault for key in policy.image_keys if (fault := _fault(config, before, key, inputs[key]))]
    if faults and (policy.needs_every_camera or len(faults) == len(policy.image_keys)):
        raise UserError(f"{where}: {PREPROCESSOR} {faults[0]}")


def statistics_of(steps: Sequence[Any], key: str) -> dict[str, Tensor]:
    """What normalising steps hold of a feature, by the statistic's name; empty where they hold nothing."""
    return {
        name: tensor
        for step in steps
        if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)
        for flat, tensor in step.state_dict().items()
        for feature, name in [flat.rsplit(".", 1)]
        if feature == key
    }


def lower_bound(steps: Sequence[Any], key: str, kind: FeatureType) -> Tensor | None:
    """A value of a feature that its own normalisation makes small; None where there are no statistics of it."""
    held = statistics_of(steps, key)
    modes = [step.norm_map.get(kind) for step in steps if isinstance(step, NormalizerProcessorStep)]
    names = [_STATISTICS[mode][0] for mode in modes if mode in _STATISTICS]
    return next((held[name] for name in (*names, "mean", "min") if name in held), None)


def _fault(config: Any, steps: Sequence[Any], key: str, feature: PolicyFeature) -> str | None:
    """What keeps the steps of one pipeline from normalising a feature as the config asks, and what to do."""
    kind = feature.type.value
    wanted = config.normalization_mapping.get(kind, NormalizationMode.IDENTITY)
    if wanted == NormalizationMode.IDENTITY:
        return None
    asked = f"{CONFIG} asks for {kind}={wanted.value}, and LeRobot passes on unnormalised what its steps leave out"
    remedy = "give a checkpoint as lerobot-train saves it, with the statistics of its own data"
    if not steps:
        return f"has no step that normalises {key}: {asked}; {remedy}."
    able = [
        step for step in steps if step.norm_map.get(feature.type, NormalizationMode.IDENTITY) in _STATISTICS
    ]
    if not able:
        modes = (
            ", ".join(f"{each.value}={mode.value}" for each, mode in steps[0].norm_map.items()) or "nothing"
        )
        return f"does not normalise {key}: the norm_map of its {_name(steps[0])} holds {modes}; {asked}; {remedy}."
    listing = [step for step in able if _lists(step, key)]
    if not listing:
        return (
            f"does not normalise {key}: its {_name(able[0])} lists {', '.join(able[0].features) or 'no features'}; "
            f"{asked}; {remedy}."
        )
    step = listing[0]
    mode = step.norm_map[feature.type]
    names = _STATISTICS[mode]
    held = statistics_of([step], key)
    if any(name not in held for name in names):
        return (
            f"has no {' and '.join(names)} of {key}, by which it is to be normalised ({kind}={mode.value}); it holds "
            f"{_keys(step)}: {remedy} (a base model is fine-tuned first)."
        )
    size = math.prod(feature.shape) if key == ACTION else held[names[0]].numel()
    for name in names:
        if not held[name].isfinite().all():
            return f"has a {name} of {key} with NaN or infinite numbers; {remedy}, computed anew from whole data."
        if held[name].numel() != size:
            return (
                f"has a {name} of {key} of size {held[name].numel()}, but "
                + (f"{CONFIG} has {key} of size {size}" if key == ACTION else f"{names[0]} has size {size}")
                + "; give a checkpoint whose statistics and config are of one robot."
            )
    return None


def _lists(step: Any, key: str) -> bool:
    """Whether a step looks at a feature; the action it takes in any case."""
    chosen = step.normalize_observation_keys
    return key == ACTION or (key in step.features and (chosen is None or key in chosen))


def _keys(step: Any) -> str:
    """The statistics that a step holds, by feature."""
    held: dict[str, list[str]] = {}
    for flat in step.state_dict():
        feature, name = flat.rsplit(".", 1)
        held.setdefault(feature, []).append(name)
    listed = [f"{feature} ({', '.join(names)})" for feature, names in held.items()]
    return ", ".join(listed[:4] + ["..."] * (len(listed) > 4)) or "no statistics at all"


def _name(step: Any) -> str:
    return getattr(type(step), "_registry_name", None) or type(step).__name__
