"""Whether a dataset or an environment shows what a policy looks at.

LeRobot looks at this twice: before it trains or evaluates, when the cameras of one side must all be among the other's
unless some are renamed (`validate_visual_features_consistency`), and in each family's own code, which can or cannot do
without a camera. What passes both passes here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from lerobot.utils.constants import OBS_PREFIX, OBS_STATE

from chordflow.console import say
from chordflow.errors import UserError
from chordflow.policies.base import FlowPolicy


def check_inputs(policy: FlowPolicy, shapes: Mapping[str, Sequence[int]], where: str) -> list[str]:
    """Checks that observations have what a policy needs.

    Args:
        policy: its preprocessor's renaming is applied.
        shapes: of one observation at one time, by the preprocessor's names. Three sizes make a camera.
        where: their source, such as `dataset.repo_id=NAME`, for messages.

    Returns:
        The cameras that the policy was trained with, by its statistics, and goes without here.

    Raises:
        UserError: for a camera or a state that the policy cannot do without, a state of another size, or a renaming
            that does not fit.
    """
    shown = {key: tuple(shape) for key, shape in shapes.items() if key.startswith(OBS_PREFIX)}
    names = {policy.own_name(key): key for key in shown}
    _check_renaming(policy, shown, where)
    cameras = [key for key, shape in shown.items() if len(shape) == 3]
    known = set(policy.config.image_features)
    missing = [key for key in policy.image_keys if key not in names]
    unknown = [key for key in cameras if policy.own_name(key) not in known]
    renamed = {key: name for name, key in names.items() if name != key}
    if missing and (policy.needs_every_camera or not known & set(names) or (unknown and not renamed)):
        example = json.dumps({**renamed, **dict(zip(unknown, missing, strict=False))})
        remedy = (
            f"map each to the one that it is, as in --rename_map='{example}'"
            if unknown
            else "give one with them"
        )
        raise UserError(
            f"{where} lacks the checkpoint's camera(s) {', '.join(missing)}; it has {', '.join(cameras) or 'none'}: "
            f"{remedy}."
        )
    for key in cameras:
        feature = policy.config.image_features.get(policy.own_name(key))
        if feature is not None and 3 in feature.shape and 3 not in shown[key]:
            raise UserError(
                f"{where}: {key} has shape {shown[key]}, but the checkpoint looks at images of 3 channels; give a "
                "colour camera, or record its images as RGB."
            )
    if policy.config.robot_state_feature is not None and OBS_STATE not in names:
        raise UserError(
            f"{where} has no {OBS_STATE}, which the checkpoint needs; it has {', '.join(shown) or 'nothing'}."
        )
    if OBS_STATE in names:
        _check_state(policy, shown[names[OBS_STATE]], where)
    return [key for key in missing if key in policy.statistics]


def _check_state(policy: FlowPolicy, shape: tuple[int, ...], where: str) -> None:
    """Raises UserError for a state of a size that the policy was not trained with.

    Without statistics of its own nothing tells that size, since fine-tuning leaves the base's `input_features`; a
    family that pads states to `max_state_dim` takes any that fits, as in LeRobot.
    """
    own, shown = policy.state_shape, f"{where}: {OBS_STATE} has shape {shape}, but"
    widest = getattr(policy.config, "max_state_dim", None)
    told = not policy.normalises_elsewhere and bool(policy.statistics.get(OBS_STATE))
    if told or widest is None:
        if own not in (None, shape):
            how = f"was trained with {own}" if told else f"has {own} in config.json"
            raise UserError(f"{shown} the checkpoint {how}; give observations of its own robot.")
    elif shape[0] > widest:
        raise UserError(f"{shown} max_state_dim={widest} in config.json; give observations of its own robot.")
    elif own != shape and not policy.normalises_elsewhere:
        say(f"Note: {shown} {own} in config.json; without statistics of it nothing tells which is right.")


def print_replaced_names(policy: FlowPolicy) -> None:
    """One line where `--rename_map` takes the place of what the checkpoint renames by itself."""
    if policy.replaced_rename_map:
        own = json.dumps(dict(policy.replaced_rename_map))
        say(f"Note: --rename_map replaces the checkpoint's own rename_map, {own}.")


def check_targets(policy: FlowPolicy) -> None:
    """Raises UserError where `--rename_map` makes something of an observation that the policy does not look at."""
    given, looked_at = json.dumps(dict(policy.rename_map)), list(policy.config.input_features or {})
    for target in policy.rename_map.values():
        if target not in looked_at:
            raise UserError(
                f"rename_map={given}: the checkpoint has no {target!r}; it looks at {', '.join(looked_at)}: write each "
                "as the data's name, then the checkpoint's."
            )


def _check_renaming(policy: FlowPolicy, shown: Mapping[str, object], where: str) -> None:
    """Raises UserError where what `--rename_map` asks for cannot be meant."""
    check_targets(policy)
    given = json.dumps(dict(policy.rename_map))
    for key, target in policy.rename_map.items():
        sources = [source for source in shown if policy.own_name(source) == target]
        if not sources:
            raise UserError(
                f"rename_map names {key!r}, which {where} does not have; its observations are {', '.join(shown)}."
            )
        if len(sources) > 1:
            other = next(source for source in sources if source != key)
            raise UserError(
                f"rename_map={given}: {where} has a {other!r} already, which is the policy's {target!r} too; map that "
                "one elsewhere or drop the entry."
            )
