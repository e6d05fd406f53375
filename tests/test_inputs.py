"""What a policy looks at against what a dataset or an environment shows."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.utils import validate_visual_features_consistency

from builders import STATE_DIM
from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, check_inputs, load_flow_policy
from small_runs import edit_json

type Shapes = dict[str, tuple[int, ...]]

HERE = "dataset.repo_id=me/data"
STATE = "observation.state"


@pytest.fixture
def policy(policy: FlowPolicy) -> Any:
    """The checkpoint with a config and a preprocessor of its own."""
    own: Any = copy.copy(policy)
    own.config, own.preprocessor = copy.deepcopy(own.config), copy.deepcopy(own.preprocessor)
    return own


def camera(name: str) -> str:
    return f"observation.images.{name}"


def names(**cameras: str) -> dict[str, str]:
    return {camera(key): camera(target) for key, target in cameras.items()}


def set_up(
    policy: Any, cameras: tuple[str, ...], needs_every_camera: bool = False, own: dict[str, str] | None = None,
    given: dict[str, str] | None = None,
) -> None:  # fmt: skip
    """Makes a policy one whose config lists `cameras`."""
    policy.config.input_features = {STATE: PolicyFeature(FeatureType.STATE, (STATE_DIM,))} | {
        camera(name): PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in cameras
    }
    policy.needs_every_camera = needs_every_camera
    policy.rename_map = given or {}
    step: Any = policy.preprocessor.steps[0]
    step.rename_map = given or own or {}


def shapes(cameras: tuple[str, ...], **others: tuple[int, ...]) -> Shapes:
    """Shapes of observations, a state among them unless `others` gives it."""
    vectors = {"state": (STATE_DIM,)} | others
    seen = {f"observation.{name}": shape for name, shape in vectors.items() if shape}
    return {"action": (2,)} | seen | {camera(name): (32, 32, 3) for name in cameras}


def accepted(policy: Any, shown: Shapes) -> bool:
    try:
        check_inputs(policy, shown, HERE)
    except UserError:
        return False
    return True


CAMERAS = st.sets(st.sampled_from("abcde"), max_size=4).map(lambda chosen: tuple(sorted(chosen)))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(listed=CAMERAS, shown=CAMERAS, needs_every_camera=st.booleans())
def test_cameras_pass_where_they_pass_lerobot_and_advice_is_good(
    policy: Any, listed: tuple[str, ...], shown: tuple[str, ...], needs_every_camera: bool
) -> None:
    """LeRobot's check before it trains, and what the families' code does with cameras that are absent."""
    set_up(policy, listed, needs_every_camera)
    there = {camera(name): PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in shown}
    both = set(listed) & set(shown)
    try:
        validate_visual_features_consistency(policy.config, there)
        passes = both == set(listed) if needs_every_camera else bool(both) or not listed
    except ValueError:
        passes = False
    assert accepted(policy, shapes(shown)) == passes
    if passes:
        return
    with pytest.raises(UserError, match=r"lacks the checkpoint's camera\(s\)") as caught:
        check_inputs(policy, shapes(shown), HERE)
    advice = re.search(r"--rename_map='(.*)'", str(caught.value))
    spare, missing = set(shown) - set(listed), set(listed) - set(shown)
    assert (advice is not None) == bool(spare)
    if advice is not None and (len(spare) >= len(missing) or not needs_every_camera):
        set_up(policy, listed, needs_every_camera, given=json.loads(advice[1]))
        check_inputs(policy, shapes(shown), HERE)


@pytest.mark.parametrize(("how", "shown"), [
    ({"own": names(front="a", side="b")}, ("front",)),
    ({"own": names(front="a")}, ("front", "hand")),
    ({"own": names(front="a")}, ("a",)),
    ({"given": names(front="b")}, ("front", "hand")),
    ({"given": names(front="b"), "own": names(front="a")}, ("front",)),
    # One map for a dataset and an environment whose cameras have other names.
    ({"given": names(front="a", image="a")}, ("image",)),
])  # fmt: skip
def test_renamed_cameras_are_found(how: dict[str, Any], shown: tuple[str, ...], policy: Any) -> None:
    set_up(policy, ("a", "b", "c"), **how)
    check_inputs(policy, shapes(shown), HERE)


@pytest.mark.parametrize(("how", "shown", "words"), [
    ({"own": names(front="a")}, shapes(("side",)), [f"{HERE} lacks", "a, ", '{"observation.images.side"']),
    # What is renamed already stays in the advice: --rename_map replaces the checkpoint's own.
    ({"own": names(front="a"), "needs_every_camera": True}, shapes(("front", "side", "top")),
     [json.dumps(names(front="a", side="b", top="c"))]),
    ({"needs_every_camera": True}, shapes(("a", "b")), [f"camera(s) {camera('c')};", "give one with them"]),
    ({}, shapes(()), ["it has none"]),
    ({"given": names(front="d")}, shapes(("front",)), [f"no {camera('d')!r}", f"looks at {STATE}, {camera('a')}"]),
    ({"given": names(front="a")}, shapes(("b",)), [f"rename_map names {camera('front')!r}", HERE, camera("b")]),
    ({"given": names(front="a")}, shapes(("front", "a")), [f"{HERE} has a {camera('a')!r} already"]),
    ({}, shapes(("a",), state=(5,)), [f"{HERE}: {STATE} has shape (5,)", "trained with (3,)"]),
    ({}, shapes(("a",), state=()), [f"{HERE} has no {STATE}"]),
    ({"own": {"observation.joints": STATE}}, shapes(("a",), state=(), joints=(5,)),
     [f"{STATE} has shape (5,)", "trained with (3,)"]),
])  # fmt: skip
def test_what_does_not_fit_is_named(
    how: dict[str, Any], shown: Shapes, words: list[str], policy: Any
) -> None:
    set_up(policy, ("a", "b", "c"), **how)
    with pytest.raises(UserError) as caught:
        check_inputs(policy, shown, HERE)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("kinds", [("mean", "std"), ("min", "max"), ("q01", "q99"), ()])
def test_statistics_tell_the_state_that_a_policy_was_trained_with(
    kinds: tuple[str, ...], policy: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without them any size fits that LeRobot pads, with a note where the config has another."""
    step = next(step for step in policy.preprocessor.steps if hasattr(step, "stats"))
    step.stats, step._stats_explicitly_provided = {}, False
    step.load_state_dict({f"{STATE}.{kind}": torch.ones(1) for kind in kinds})
    expected = (1,) if kinds else (STATE_DIM,)
    assert policy.state_shape == expected
    assert accepted(policy, shapes(("top",), state=expected))
    wider = (policy.config.max_state_dim,)
    if not kinds:
        assert accepted(policy, shapes(("top",), state=wider))
        assert f"{STATE} has shape {wider}, but {expected} in config.json" in capsys.readouterr().out
    said = r"trained with \(1,\)" if kinds else rf"max_state_dim={wider[0]} in config.json"
    with pytest.raises(UserError, match=said):
        check_inputs(policy, shapes(("top",), state=(expected[0] + wider[0],)), HERE)


def test_a_camera_that_the_policy_was_trained_with_is_returned(policy: Any) -> None:
    set_up(policy, ("a", "b", "c"), own=names(front="a"))
    step = next(step for step in policy.preprocessor.steps if hasattr(step, "stats"))
    step.stats = {**step.stats, camera("front"): {}, camera("b"): {}}
    assert check_inputs(policy, shapes(("b",)), HERE) == [camera("a")]
    assert check_inputs(policy, shapes(("front", "b")), HERE) == []


def test_a_preprocessor_that_renames_nothing_cannot_be_told_to(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "c"))
    edit_json(
        folder / "policy_preprocessor.json",
        lambda c: c.update(steps=[step for step in c["steps"] if "rename" not in step["registry_name"]]),
    )
    assert load_flow_policy(folder, device="cpu").replaced_rename_map == {}
    with pytest.raises(UserError, match=r"policy_preprocessor.json has no step that renames.*--rename_map"):
        load_flow_policy(folder, device="cpu", rename_map=names(front="top"))
