"""Whether a checkpoint's processors do what its config says, and whether one observation gets through.

LeRobot passes on as it is what its normalising steps do not list, have no mode for, or have no statistics of: a policy
then sees and gives numbers of another scale, and nothing reports it.

Shapes: B batch, H chunk size, D padded action dimension, A real action dimension, T observed steps.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import (
    AbsoluteActionsProcessorStep,
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from chordflow.errors import UserError, machine_refuses, named, ran_out_of_memory, reason
from chordflow.flow.seeds import generator
from chordflow.policies.base import RELATIVE_ACTIONS, FlowPolicy
from chordflow.policies.files import CONFIG, POSTPROCESSOR, PREPROCESSOR, WEIGHTS

_STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}
_ONE_ROBOT = "give a checkpoint whose config, statistics and steps are of one robot"


def check_processors(policy: FlowPolicy, preprocessor: Any, postprocessor: Any, where: str) -> None:
    """Makes sure that observations and actions are normalised as the policy was trained.

    A camera without statistics passes where the family fills in for one that is absent. `where` is the option that
    names the checkpoint and its value, for messages.

    Raises:
        UserError: for a feature that no step normalises, statistics that are absent, not finite or of another size
            than the action, and actions relative to the state.
    """
    config = policy.config
    for file, pipeline in ((PREPROCESSOR, preprocessor), (POSTPROCESSOR, postprocessor)):
        for step in pipeline.steps:
            if isinstance(step, RelativeActionsProcessorStep | AbsoluteActionsProcessorStep) and step.enabled:
                raise UserError(
                    f"{where}: {file} has a step {step_name(step)} with enabled=true: {RELATIVE_ACTIONS}."
                )
    if policy.normalises_elsewhere:
        return
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
    both = [step for steps in (before, after) for step in steps if _mode(step, ACTION) in _STATISTICS]
    if len(both) > 1:
        first, last = both[0], both[-1]
        into, out = (_mode(step, ACTION) for step in (first, last))
        if into != out:
            raise UserError(
                f"{where}: {PREPROCESSOR} normalises {ACTION} by {into.value}, {POSTPROCESSOR} unnormalises it by "
                f"{out.value}; {_ONE_ROBOT}."
            )
        with named(where):
            check_same_statistics(
                statistics_of([first], ACTION), statistics_of([last], ACTION), _STATISTICS[into]
            )
    faults = [fault for key in policy.image_keys if (fault := _fault(config, before, key, inputs[key]))]
    if faults and (policy.needs_every_camera or len(faults) == len(policy.image_keys)):
        raise UserError(f"{where}: {PREPROCESSOR} {faults[0]}")


def _fault(config: Any, steps: Sequence[Any], key: str, feature: PolicyFeature) -> str | None:
    """What keeps the steps of one pipeline from normalising a feature as the config asks, and what to do."""
    kind = feature.type.value
    wanted = config.normalization_mapping.get(kind, NormalizationMode.IDENTITY)
    remedy = "give a checkpoint as lerobot-train saves it, with the statistics of its own data"
    listing = [(step, mode) for step in steps if (mode := _mode(step, key)) in _STATISTICS]
    if not listing:
        if wanted == NormalizationMode.IDENTITY:
            return None
        there = "; ".join(map(_about, steps)) or "no step that normalises"
        return (
            f"does not normalise {key}: it has {there}; {CONFIG} sets {kind}={wanted.value}, and LeRobot passes on "
            f"what is left out: {remedy}."
        )
    step, mode = listing[0]
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
        # Of a single number LeRobot itself makes a scalar, where it moves statistics to another device.
        scalar = held[name].dim() == 0 and math.prod(feature.shape) != 1
        if feature.type is not FeatureType.VISUAL and (scalar or size == 0):
            shape = tuple(held[name].shape)
            return (
                f"has a {name} of {key} of shape {shape}, where each dimension needs a number; {_ONE_ROBOT}."
            )
        if held[name].numel() != size:
            other = f"{CONFIG} has {key} of size" if key == ACTION else f"{names[0]} has size"
            return f"has a {name} of {key} of size {held[name].numel()}, but {other} {size}; {_ONE_ROBOT}."
    return None


def check_same_statistics(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str], size: int | None = None
) -> None:
    """Makes sure that actions leave a policy on the scale on which demonstrations enter it.

    Raises:
        UserError: where the first `size` of the action's statistics `names`, (A,) each, differ by more than a float32's
            rounding.
    """
    first, second = (
        torch.stack([torch.as_tensor(held[name]).flatten()[:size].float() for name in names])
        for held in (before, after)
    )
    apart = (first - second).abs() > 1e-5 * first.abs().amax(0)
    if apart.any():
        row, dim = apart.nonzero()[0].tolist()
        raise UserError(
            f"{PREPROCESSOR} normalises {ACTION} by a {names[row]} of {first[row, dim]:g} in dimension {dim}, "
            f"{POSTPROCESSOR} unnormalises it by one of {second[row, dim]:g}; {_ONE_ROBOT}."
        )


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


def _mode(step: Any, key: str) -> Any:
    """How a step normalises a feature, which goes by the type that it lists; None where it passes the feature on."""
    if key == ACTION:
        return step.norm_map.get(FeatureType.ACTION)
    chosen = step.normalize_observation_keys
    if key not in step.features or (chosen is not None and key not in chosen):
        return None
    kind = step.features[key].type
    return None if kind is FeatureType.ACTION else step.norm_map.get(kind)


def _keys(step: Any) -> str:
    """The statistics that a step holds, by feature."""
    held: dict[str, list[str]] = {}
    for flat in step.state_dict():
        feature, name = flat.rsplit(".", 1)
        held.setdefault(feature, []).append(name)
    listed = [f"{feature} ({', '.join(names)})" for feature, names in held.items()]
    return ", ".join(listed[:4] + ["..."] * (len(listed) > 4)) or "no statistics at all"


def _about(step: Any) -> str:
    """What a step normalises."""
    modes = ", ".join(f"{kind.value}={mode.value}" for kind, mode in step.norm_map.items()) or "nothing"
    listed = ", ".join(f"{key} ({one.type.value})" for key, one in step.features.items()) or "no features"
    return f"{step_name(step)}, whose norm_map holds {modes} and which lists {listed}"


def step_name(step: Any) -> str:
    """What a processor's file calls a step."""
    return getattr(type(step), "_registry_name", None) or type(step).__name__


@contextlib.contextmanager
def _unrenamed(preprocessor: Any) -> Iterator[None]:
    """Context in which observations come by the policy's own names: only data can show whether a renaming is right."""
    before = [(step, step.rename_map) for step in preprocessor.steps if hasattr(step, "rename_map")]
    for step, _ in before:
        step.rename_map = {}
    try:
        yield
    finally:
        for step, own in before:
            step.rename_map = own


@torch.no_grad()
def try_out(policy: FlowPolicy, preprocessor: Any, where: str) -> None:
    """Takes a blank observation to actions in one step, so that what cannot work fails before any training.

    Raises:
        UserError: naming the part that fails, or if actions are not finite or of another size than the chunk's.
    """
    chunk = policy.chunk
    if chunk.action_dim > chunk.padded_dim:
        raise UserError(
            f"{where}: {CONFIG} has actions of size {chunk.action_dim}, but max_action_dim is {chunk.padded_dim}; "
            f"{_ONE_ROBOT}."
        )
    inputs, widest = policy.config.input_features or {}, getattr(policy.config, "max_state_dim", math.inf)
    size = math.prod(policy.state_shape or ())
    if not policy.normalises_elsewhere and size > widest:
        raise UserError(
            f"{where}: {PREPROCESSOR} has statistics of {OBS_STATE} of size {size}, but max_state_dim is {widest} in "
            f"{CONFIG}; {_ONE_ROBOT}."
        )
    part = f"the preprocessor ({PREPROCESSOR})"
    # What a family draws in passing leaves the caller's stream as it was.
    with torch.random.fork_rng(devices=[]), _unrenamed(preprocessor):
        try:
            batch = policy.preprocess(blank_observation(policy, preprocessor))
            part = f"the network ({CONFIG})"
            context = policy.encode(batch)
            noise = policy.sample_noise(1, generator(0, "trial")).to(policy.device)
            endpoint = noise - policy.velocity(noise, torch.ones(1, device=policy.device), context)
            part = f"the postprocessor ({POSTPROCESSOR})"
            actions = policy.to_action(endpoint)
        except Exception as error:
            if isinstance(error, UserError) or machine_refuses(error):
                raise
            if ran_out_of_memory(error):
                raise UserError(
                    f"{where}: one observation does not fit into the memory of {policy.device} ({reason(error)}); give "
                    "a --device with more, or free what other programs hold of it."
                ) from error
            if OBS_STATE not in inputs and OBS_STATE in reason(error):
                raise UserError(
                    f"{where}: {CONFIG} has no {OBS_STATE} in input_features; restore it from a good copy."
                ) from error
            raise UserError(
                f"{where}: {part} fails on a blank observation of the sizes in {CONFIG} and {PREPROCESSOR} "
                f"({reason(error)}); {_ONE_ROBOT}."
            ) from error
    expected = (1, chunk.horizon, chunk.action_dim)
    if tuple(actions.shape) != expected:
        raise UserError(
            f"{where}: {POSTPROCESSOR} makes actions of shape {tuple(actions.shape)} of a chunk of {expected}; "
            f"{_ONE_ROBOT}."
        )
    if not chunk.real(actions).isfinite().all():
        raise UserError(
            f"{where}: its steps end in NaN or infinite actions, on a blank observation too; check the weights in "
            f"{WEIGHTS}; a student's training diverged: train it again with a lower --optimizer.lr."
        )


def blank_observation(policy: FlowPolicy, preprocessor: Any) -> dict[str, Any]:
    """One observation by the policy's own names: black images, and a state that normalisation makes small.

    Vectors have the size of their statistics: a fine-tuned checkpoint keeps the sizes of the model that it began with
    in `input_features`.
    """
    indices = policy.observation_delta_indices or [0]
    # A single step has no axis: SmolVLA's adaptation to Aloha takes none.
    steps = (len(indices),) if len(indices) > 1 else ()
    items: dict[str, Any] = {"task": ["go"]}
    for key, feature in (policy.config.input_features or {}).items():
        if feature.type not in (FeatureType.STATE, FeatureType.ENV) and key not in policy.image_keys:
            continue
        value: Tensor = torch.zeros(feature.shape)
        if feature.type is FeatureType.VISUAL:
            # Data bring channels first, in whatever order the config lists them.
            value = value.movedim(-1, 0) if value.shape[-1] <= 4 < value.shape[0] else value
        elif (held := _lower_bound(preprocessor.steps, key)) is not None:
            value = held.cpu()
        items[key] = value.expand(1, *steps, *value.shape).clone()
    return items


def _lower_bound(steps: Sequence[Any], key: str) -> Tensor | None:
    """A value of a feature that its own normalisation makes small; None where there are no statistics of it."""
    held = statistics_of(steps, key)
    modes = [_mode(step, key) for step in steps if isinstance(step, NormalizerProcessorStep)]
    names = [_STATISTICS[mode][0] for mode in modes if mode in _STATISTICS]
    return next((held[name] for name in (*names, "mean", "min") if name in held), None)


def normalisation(steps: Sequence[Any], key: str) -> dict[str, Any] | None:
    """How steps normalise a feature, or undo it: mode, its two statistics and epsilon; None where they pass it on."""
    for step in steps:
        if not isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
            continue
        held, mode = statistics_of([step], key), _mode(step, key)
        if mode in _STATISTICS and held:
            first, second = (held[name].tolist() for name in _STATISTICS[mode])
            return {"mode": mode.value.lower(), "a": first, "b": second, "eps": step.eps}
    return None
