"""A checkpoint whose processors do not do what its config says is refused at loading; a sound one never is."""

import contextlib
import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline, UnnormalizerProcessorStep
from torch import Tensor

import drift_env  # noqa: F401 (registers the environment)
from broken_statistics import AFTER, BEFORE, add_step, drop, edit_normaliser, edit_statistics, edit_steps
from builders import ACTION_DIM, STATE_DIM, make_config, observations
from chordflow.errors import UserError
from chordflow.policies import check_inputs, load_flow_policy
from chordflow.policies.processors import blank_observation, check_processors, try_out
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from small_runs import changed, edit_json, options, refused

Change = Callable[[Path], object]

STATE, ACTION, CAMERA = "observation.state", "action", "observation.images."


@pytest.fixture
def teacher(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "teacher"))


def config(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda p: edit_json(p / "config.json", change)


def fill(name: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    """Puts a value into a statistic's last entry."""
    return lambda held: held[name].view(-1)[-1:].fill_(value)


def forget_step(folder: Path, pipeline: str) -> None:
    """Puts a step that renames nothing in the place of the one that normalises."""

    def change(step: dict[str, Any]) -> None:
        if step.pop("state_file", None):
            step.update(registry_name="rename_observations_processor", config={})

    edit_steps(folder, pipeline, change)


def resized(key: str, size: int) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.update({f"{key}.mean": torch.zeros(size), f"{key}.std": torch.ones(size)})


def widen(folder: Path, key: str, size: int) -> None:
    """Makes config and statistics agree on a size that is beyond the network's."""
    for pipeline in (BEFORE, AFTER):
        edit_statistics(folder, pipeline, resized(key, size))
    features = "output_features" if key == ACTION else "input_features"
    config(lambda c: c[features][key].update(shape=[size]))(folder)


def add_input(folder: Path, key: str, kind: str, *shape: int) -> None:
    """Lists an observation in `config.json` alone, as a base model's stay there when it is fine-tuned."""
    config(lambda c: c["input_features"].update({key: {"type": kind, "shape": list(shape)}}))(folder)


def held(pipeline: str, change: Callable[[dict[str, Tensor]], object]) -> Change:
    return lambda p: edit_statistics(p, pipeline, change)


def normaliser(pipeline: str, change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda p: edit_normaliser(p, pipeline, change)


def mode(pipeline: str, **modes: str) -> Change:
    return normaliser(pipeline, lambda c: c["norm_map"].update(modes))


PRE, POST = f"{BEFORE}.json", f"{AFTER}.json"
BROKEN: dict[str, tuple[Change, list[str]]] = {
    "no file": (
        lambda p: edit_steps(p, AFTER, lambda step: step.pop("state_file", None)),
        [POST, f"no mean and std of {ACTION}", "no statistics at all"],
    ),
    "a state that is not listed": (
        normaliser(BEFORE, lambda c: c["features"].pop(STATE)),
        ["does not normalise observation.state", "lists observation.images.top (VISUAL), action (ACTION)"],
    ),
    "a state that is not chosen": (
        normaliser(BEFORE, lambda c: c.update(normalize_observation_keys=[])), ["does not normalise observation.state"]
    ),
    "no mode for the action": (
        normaliser(AFTER, lambda c: c["norm_map"].pop("ACTION")),
        [POST, "does not normalise action", "STATE=MEAN_STD", "ACTION=MEAN_STD"],
    ),
    "the identity for the state": (
        mode(BEFORE, STATE="IDENTITY"),
        ["does not normalise observation.state", "STATE=IDENTITY", "sets STATE=MEAN_STD"],
    ),
    "a state that the step lists as another kind": (
        normaliser(BEFORE, lambda c: c["features"][STATE].update(type="ENV")),
        ["does not normalise observation.state", "observation.state (ENV)"],
    ),
    "no mode in the config, one without statistics in the step": (
        lambda p: [config(lambda c: c["normalization_mapping"].pop("ACTION"))(p), drop(p, AFTER, ACTION)],
        ["no mean and std of action"],
    ),
    "no step": (lambda p: forget_step(p, AFTER), [POST, "does not normalise action", "no step that normalises"]),
    "quantiles that are not there": (
        mode(AFTER, ACTION="QUANTILES"), ["no q01 and q99 of action", "ACTION=QUANTILES", "action (mean, std)"]
    ),
    "NaN": (
        held(BEFORE, fill(f"{STATE}.mean", math.nan)), [PRE, "mean of observation.state", "NaN or infinite"]
    ),
    "actions of another robot": (
        held(AFTER, resized(ACTION, 7)), [POST, "mean of action of size 7", "config.json has action of size 2"]
    ),
    "actions of another scale": (
        held(BEFORE, lambda h: [h[name].mul_(5).add_(1) for name in ("action.mean", "action.std")]),
        [f"{PRE} normalises action by a mean of ", f"dimension 0, {POST} unnormalises it by one of "],
    ),
    "actions that leave by another mode than they enter": (
        lambda p: (mode(BEFORE, ACTION="MIN_MAX")(p), held(BEFORE, lambda h: h.update(
            {f"{ACTION}.min": h[f"{ACTION}.mean"] - 1, f"{ACTION}.max": h[f"{ACTION}.mean"] + 1}))(p)),
        [f"{PRE} normalises action by MIN_MAX, {POST} unnormalises it by MEAN_STD"],
    ),
    "relative actions": (
        lambda p: add_step(p, BEFORE, "relative_actions_processor", enabled=True),
        [PRE, "relative_actions_processor with enabled=true", "absolute actions"],
    ),
    "absolute actions": (
        lambda p: add_step(p, AFTER, "absolute_actions_processor", enabled=True),
        [POST, "absolute_actions_processor with enabled=true"],
    ),
    "an action wider than the network's": (
        lambda p: widen(p, ACTION, 9), ["config.json has actions of size 9", "max_action_dim is 6"]
    ),
    "a state wider than the network's": (
        lambda p: widen(p, STATE, 9), ["statistics of observation.state of size 9", "max_state_dim is 8"]
    ),
    "no state": (
        config(lambda c: c["input_features"].pop(STATE)), ["config.json has no observation.state in input_features"]
    ),
    "no inputs": (
        config(lambda c: c["input_features"].clear()), ["config.json has no observations in"]
    ),
    "what LeRobot has not ported": (
        changed("config.json", use_delta_joint_actions_aloha=True), ["can read (NotImplementedError: `use_delta"]
    ),
    "joints that are not Aloha's": (
        changed("config.json", adapt_to_pi_aloha=True),
        ["adapt_to_pi_aloha=true", "observation.state has size 3", "Aloha's 14 joints; set it to false"],
    ),
    "a step that fails": (
        lambda p: add_step(p, AFTER, "to_batch_processor") or add_step(p, AFTER, "map_delta_action_to_robot_action"),
        ["the postprocessor (policy_postprocessor.json)"],
    ),
    "no action": (
        config(lambda c: c["output_features"][ACTION].update(type="STATE")),
        ["config.json has no action in output_features"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_processors_that_do_not_do_what_the_config_says(case: str, teacher: Path) -> None:
    change, told = BROKEN[case]
    change(teacher)
    with pytest.raises(UserError) as raised:
        load_flow_policy(teacher, device="cpu", field="policy.path")
    said = str(raised.value)
    assert said.startswith(f"policy.path={teacher}: ")
    assert all(part in said for part in told), said
    assert "\n" not in said
    assert "optimizer.lr" not in said


@pytest.mark.parametrize("verb", ["reflow", "couple", "diagnose", "evaluate"])
def test_every_verb_refuses_before_it_makes_a_folder(
    verb: str, teacher: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    change, told = BROKEN["absolute actions"]
    change(teacher)
    out = tmp_path / "out"
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", f"--output_dir={out}"]
    # Of two policies the second: what only it has wrong is seen as early.
    both = [
        f"--teacher.path={checkpoint}",
        f"--student.path={teacher}",
        "--env.type=drift_of_the_tests",
        *data,
    ]
    given = {
        "reflow": options(teacher, dataset_root, out)[1:],
        "couple": [f"--teacher.path={teacher}", *data],
        "diagnose": [f"--policy.path={teacher}", *data],
        "evaluate": both,
    }[verb]
    said = refused([verb, *given], capsys, tmp_path)
    assert f"={teacher}: " in said
    assert all(part in said for part in told), said


SOUND: dict[str, Change] = {
    "a constant joint": lambda p: [
        edit_statistics(p, side, fill(name, 0.0)) for side in (BEFORE, AFTER) for name in (f"{STATE}.std", "action.std")
    ],
    "a range of nothing": lambda p: (
        edit_statistics(p, BEFORE, lambda h: h.update({f"{STATE}.{name}": torch.ones(3) for name in ("min", "max")})),
        mode(BEFORE, STATE="MIN_MAX")(p),
    ),
    # Quantiles that are not used, and what counts frames.
    "further statistics": held(
        BEFORE, lambda h: h.update({f"{STATE}.q01": torch.full((3,), math.nan), f"{STATE}.count": torch.ones(1)})
    ),
    # Of one robot, computed once in float64.
    "statistics that differ by rounding": held(BEFORE, lambda h: h["action.mean"].mul_(1 + 1e-6)),
    # LeRobot normalises the action whether the step lists it or not.
    "an action that is not listed": lambda p: [
        edit_normaliser(p, side, lambda c: c["features"].pop(ACTION)) for side in (BEFORE, AFTER)
    ],
    "another mode than the config's, with its statistics": config(
        lambda c: c["normalization_mapping"].update(ACTION="QUANTILES")
    ),
    "no normalisation by the config": lambda p: (
        changed("config.json", normalization_mapping=dict.fromkeys(("STATE", "ACTION"), "IDENTITY"))(p),
        *(mode(side, STATE="IDENTITY", ACTION="IDENTITY")(p) for side in (BEFORE, AFTER)),
        *(edit_statistics(p, side, dict.clear) for side in (BEFORE, AFTER)),
    ),
    "an image with channels last": lambda p: add_input(p, f"{CAMERA}top", "VISUAL", 32, 32, 3),
    "a base model's further vectors": lambda p: add_input(p, "observation.velocity", "STATE", 3),
    "a postprocessor of another machine's device": lambda p: edit_steps(
        p, AFTER, lambda s: s["registry_name"] == "device_processor" and s["config"].update(device="cuda:3")
    ),
    "steps for relative actions that are off": lambda p: (
        add_step(p, BEFORE, "relative_actions_processor", enabled=False),
        add_step(p, AFTER, "absolute_actions_processor", enabled=False),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOUND)
def test_what_lerobot_runs_is_not_refused(case: str, teacher: Path) -> None:
    SOUND[case](teacher)
    policy = load_flow_policy(teacher, device="cpu")
    blank = blank_observation(policy, policy.preprocessor)
    assert policy.preprocess(dict(blank))[STATE].shape[-1] == 3
    # The network's own answer, by LeRobot's class and pipelines alone.
    items = observations(2, cameras=("top", "camera1", "camera2"))
    batch = policy.preprocess(dict(items))
    noise = torch.randn(2, *policy.chunk.shape, generator=torch.Generator().manual_seed(0))
    policy.set_num_steps(1)
    with torch.no_grad():
        endpoint = noise - policy.velocity(noise, torch.ones(2), policy.encode(batch))
        stock = policy.policy.predict_action_chunk(dict(batch), noise=noise)
    torch.testing.assert_close(policy.to_action(endpoint), policy.postprocessor(stock), rtol=1e-5, atol=1e-5)


def check(config: Any, before: Any, after: Any, needs_every: bool, cameras: list[str] | None = None) -> None:
    """`check_processors` of what it asks of a policy, by the statistics of either pipeline."""
    policy: Any = SimpleNamespace(
        normalises_elsewhere=False, config=config, image_keys=cameras or [], needs_every_camera=needs_every
    )
    modes = config.normalization_mapping
    steps = (
        NormalizerProcessorStep(config.input_features | config.output_features, modes, before),
        UnnormalizerProcessorStep(config.output_features, modes, after),
    )
    check_processors(policy, *(PolicyProcessorPipeline(steps=[step]) for step in steps), "policy.path=x")


@given(
    mode=st.sampled_from([mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]),
    key=st.sampled_from([STATE, ACTION]),
    side=st.sampled_from([BEFORE, AFTER]),
    fault=st.sampled_from(["none", "lower", "upper", "nan", "size", "elsewhere", "empty", "scalar"]),
)
def test_any_mode_needs_its_own_two_statistics(
    mode: NormalizationMode, key: str, side: str, fault: str
) -> None:
    pair = {
        "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"),
        "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"),
    }[mode.value]  # fmt: skip
    config = make_config(Path("vlm"))
    config.normalization_mapping = {"STATE": mode, "ACTION": mode, "VISUAL": NormalizationMode.IDENTITY}
    sizes = {STATE: STATE_DIM, ACTION: ACTION_DIM}
    held = {name: {kind: torch.ones(size) for kind in pair} for name, size in sizes.items()}
    broken = copy.deepcopy(held)
    if fault == "elsewhere":
        broken[f"so100.{key}"] = broken.pop(key)
    elif fault in ("lower", "upper"):
        broken[key].pop(pair[fault == "upper"])
    elif fault == "nan":
        broken[key][pair[1]][0] = math.nan
    elif fault == "size":
        # PyTorch would spread one number over all dimensions.
        broken[key][pair[1]] = torch.ones(1)
    elif fault in ("empty", "scalar"):
        broken[key] = {kind: torch.ones(() if fault == "scalar" else 0) for kind in pair}
    of = (broken, held) if side == BEFORE else (held, broken)
    # The state is of no concern behind the policy.
    if fault == "none" or (key == STATE and side == AFTER):
        check(config, *of, needs_every=True)
        return
    with pytest.raises(UserError, match=rf"policy.path=x: {side}.json has .*{key}") as raised:
        check(config, *of, needs_every=True)
    assert any(name in str(raised.value) for name in pair)


@pytest.mark.parametrize(
    ("known", "may_lack", "sound"),
    [(2, False, True), (1, False, False), (1, True, True), (0, False, False), (0, True, False)],
    ids=["all", "one of two", "one that may be absent", "none of two", "none, though all may be absent"],
)
def test_cameras_that_are_normalised_need_statistics_unless_they_are_absent(
    known: int, may_lack: bool, sound: bool
) -> None:
    config = make_config(Path("vlm"), cameras=("top", "wrist"))
    config.normalization_mapping = {**config.normalization_mapping, "VISUAL": NormalizationMode.MEAN_STD}
    cameras = list(config.image_features)
    shapes = {STATE: (STATE_DIM,), ACTION: (ACTION_DIM,), **dict.fromkeys(cameras[:known], (3, 1, 1))}
    held = {key: {"mean": torch.zeros(shape), "std": torch.ones(shape)} for key, shape in shapes.items()}
    lacking = rf"no mean and std of {cameras[known % 2]}.*VISUAL=MEAN_STD"
    with contextlib.nullcontext() if sound else pytest.raises(UserError, match=lacking):
        check(config, held, held, not may_lack, cameras)


FULL = "one observation does not fit .* of cpu .*--device"


@pytest.mark.parametrize(("method", "outcome", "said"), [
    ("encode", MemoryError(), FULL),
    ("encode", torch.OutOfMemoryError("Tried to allocate 2.00 GiB"), FULL),
    # What is not the checkpoint's fault is not blamed on it.
    ("encode", OSError(28, "No space left on device"), None),
    ("encode", UserError("mine"), None),
    ("to_action", torch.full((1, 8, 2), math.nan), "end in NaN or infinite actions"),
    ("to_action", torch.zeros(1, 8, 3), rf"{POST} makes actions of shape \(1, 8, 3\)"),
    ("to_action", RuntimeError("The size"), rf"the postprocessor \({POST}\) fails on a blank observation"),
])  # fmt: skip
def test_what_only_shows_when_an_observation_goes_through(
    method: str, outcome: Any, said: str | None, tiny_policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def answer(*_: object) -> Tensor:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(tiny_policy, method, answer)
    with pytest.raises(UserError if said else type(outcome), match=said) as raised:
        try_out(tiny_policy, tiny_policy.preprocessor, "policy.path=x")
    assert (raised.value is outcome) == (said is None)


@pytest.mark.parametrize(("renaming", "said"), [
    ({f"{CAMERA}top": STATE}, "dataset.repo_id=x has a 'observation.state' already"),
    ({f"{CAMERA}top": "observation.image"}, "path=.*rename_map=.*the checkpoint has no 'observation.image'"),
    ({STATE: "observation.velocity"}, "path=.*rename_map=.*the checkpoint has no 'observation.velocity'"),
])  # fmt: skip
def test_a_wrong_rename_map_is_not_the_checkpoints_fault(
    renaming: dict[str, str], said: str, checkpoint: Path
) -> None:
    shown = {STATE: (3,), f"{CAMERA}top": (32, 32, 3)}
    with pytest.raises(UserError, match=said):
        check_inputs(
            load_flow_policy(checkpoint, device="cpu", rename_map=renaming), shown, "dataset.repo_id=x"
        )


def test_a_trial_leaves_the_callers_random_numbers_alone(tiny_policy: SmolVLAFlowPolicy) -> None:
    before = torch.get_rng_state()
    try_out(tiny_policy, tiny_policy.preprocessor, "policy.path=x")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_under_the_identity_has_the_size_of_its_statistics(tiny_policy: SmolVLAFlowPolicy) -> None:
    tiny_policy.config.input_features[STATE] = PolicyFeature(FeatureType.STATE, (6,))
    step = tiny_policy.preprocessor.steps[-1]
    step.norm_map = {**step.norm_map, FeatureType.STATE: NormalizationMode.IDENTITY}
    assert blank_observation(tiny_policy, tiny_policy.preprocessor)[STATE].shape == (1, 3)
