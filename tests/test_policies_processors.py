"""A checkpoint whose processors do not do what its config says is refused at loading; a sound one never is."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline, UnnormalizerProcessorStep

import drift_env  # noqa: F401 (registers the environment)
from broken_statistics import (
    AFTER,
    BEFORE,
    add_step,
    drop,
    edit_config,
    edit_normaliser,
    edit_statistics,
    edit_steps,
)
from builders import ACTION_DIM, STATE_DIM, make_config, observations
from chordflow.errors import UserError
from chordflow.policies import load_flow_policy
from chordflow.policies.processors import check_processors
from chordflow.policies.smolvla import SmolVLAFlowPolicy
from chordflow.policies.trial import blank_observation, try_out
from small_runs import contents, refusal
from test_reflow_job import options

Change = Callable[[Path], object]

STATE, ACTION = "observation.state", "action"


@pytest.fixture
def teacher(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint that may be changed."""
    return Path(shutil.copytree(checkpoint, tmp_path / "teacher"))


def rename_statistics(folder: Path, pipeline: str) -> None:
    """As LeRobot's migration leaves those of the public base of SmolVLA."""
    edit_statistics(
        folder,
        pipeline,
        lambda held: [held.update({f"so100.buffer.{key}": held.pop(key)}) for key in list(held)],
    )


def fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    """Puts a value into a statistic's last entry."""
    return lambda held: held[name].view(-1)[-1:].fill_(value)


def forget_step(folder: Path, pipeline: str) -> None:
    """Puts a step that renames nothing in the place of the one that normalises."""

    def change(step: dict[str, Any]) -> None:
        if "state_file" in step:
            step.clear()
            step.update(registry_name="rename_observations_processor", config={})

    edit_steps(folder, pipeline, change)


def widen(folder: Path, key: str, size: int) -> None:
    """Makes config and statistics agree on a size that is beyond the network's."""
    for pipeline in (BEFORE, AFTER):
        edit_statistics(
            folder,
            pipeline,
            lambda held: held.update({f"{key}.mean": torch.zeros(size), f"{key}.std": torch.ones(size)}),
        )
    features = "output_features" if key == ACTION else "input_features"
    edit_config(folder, lambda c: c[features][key].update(shape=[size]))


def add_input(folder: Path, key: str, kind: str, *shape: int) -> None:
    """Lists an observation in `config.json` alone, as a base model's stay there when it is fine-tuned."""
    edit_config(folder, lambda c: c["input_features"].update({key: {"type": kind, "shape": list(shape)}}))


def set_rename_map(folder: Path, **names: str) -> None:
    """As `lerobot-train --rename_map` leaves it, keys and values without `observation.`."""
    renames = {f"observation.{key}": f"observation.{value}" for key, value in names.items()}
    edit_steps(
        folder,
        BEFORE,
        lambda step: step["registry_name"].startswith("rename") and step["config"].update(rename_map=renames),
    )


BROKEN: dict[str, tuple[Change, list[str]]] = {
    "under other names": (
        lambda p: rename_statistics(p, BEFORE),
        ["policy_preprocessor.json", "no mean and std of observation.state", "so100.buffer.action (mean, std)"],
    ),
    "of actions under other names": (
        lambda p: rename_statistics(p, AFTER),
        ["policy_postprocessor.json", "no mean and std of action", "so100.buffer.observation.state (mean, std)"],
    ),
    "an empty file": (
        lambda p: edit_statistics(p, BEFORE, lambda held: held.clear()),
        ["no mean and std of observation.state", "no statistics at all"],
    ),
    "no file": (
        lambda p: edit_steps(p, AFTER, lambda step: step.pop("state_file", None)),
        ["policy_postprocessor.json", "no mean and std of action", "no statistics at all"],
    ),
    "none of the state": (
        lambda p: drop(p, BEFORE, STATE),
        ["policy_preprocessor.json", "no mean and std of observation.state", "it holds action (mean, std)"],
    ),
    "none of the action before the policy": (
        lambda p: drop(p, BEFORE, ACTION),
        ["policy_preprocessor.json", "no mean and std of action"],
    ),
    "none of the action behind the policy": (
        lambda p: drop(p, AFTER, ACTION),
        ["policy_postprocessor.json", "no mean and std of action"],
    ),
    "a mean alone": (
        lambda p: drop(p, BEFORE, f"{STATE}.std"),
        ["no mean and std of observation.state", "observation.state (mean)"],
    ),
    "a state that is not listed": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c["features"].pop(STATE)),
        ["does not normalise observation.state", "lists observation.images.top, action"],
    ),
    "a state that is not chosen": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c.update(normalize_observation_keys=[])),
        ["does not normalise observation.state"],
    ),
    "no mode for the action": (
        lambda p: edit_normaliser(p, AFTER, lambda c: c["norm_map"].pop("ACTION")),
        ["policy_postprocessor.json", "does not normalise action", "STATE=MEAN_STD", "ACTION=MEAN_STD"],
    ),
    "no mode for the action before the policy": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c["norm_map"].pop("ACTION")),
        ["policy_preprocessor.json", "does not normalise action"],
    ),
    "the identity for the state": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c["norm_map"].update(STATE="IDENTITY")),
        ["does not normalise observation.state", "STATE=IDENTITY", "asks for STATE=MEAN_STD"],
    ),
    "no step": (
        lambda p: forget_step(p, AFTER),
        ["policy_postprocessor.json", "no step that normalises action"],
    ),
    "quantiles that are not there": (
        lambda p: edit_normaliser(p, AFTER, lambda c: c["norm_map"].update(ACTION="QUANTILES")),
        ["no q01 and q99 of action", "ACTION=QUANTILES", "action (mean, std)"],
    ),
    "deciles that are not there": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c["norm_map"].update(STATE="QUANTILE10")),
        ["no q10 and q90 of observation.state"],
    ),
    "a range that is not there": (
        lambda p: edit_normaliser(p, BEFORE, lambda c: c["norm_map"].update(STATE="MIN_MAX")),
        ["no min and max of observation.state"],
    ),
    "NaN": (
        lambda p: edit_statistics(p, BEFORE, fill(f"{STATE}.mean", math.nan)),
        ["policy_preprocessor.json", "mean of observation.state", "NaN or infinite"],
    ),
    "infinite": (
        lambda p: edit_statistics(p, AFTER, fill(f"{ACTION}.std", math.inf)),
        ["policy_postprocessor.json", "std of action", "NaN or infinite"],
    ),
    "actions of another robot": (
        lambda p: edit_statistics(
            p, AFTER, lambda held: held.update({"action.mean": torch.zeros(7), "action.std": torch.ones(7)})
        ),
        ["policy_postprocessor.json", "mean of action of size 7", "config.json has action of size 2"],
    ),
    # PyTorch would spread one number over all dimensions.
    "one number for all actions": (
        lambda p: edit_statistics(
            p, BEFORE, lambda held: held.update({"action.mean": torch.zeros(1), "action.std": torch.ones(1)})
        ),
        ["policy_preprocessor.json", "mean of action of size 1"],
    ),
    "sizes that disagree": (
        lambda p: edit_statistics(p, BEFORE, lambda held: held.update({f"{STATE}.std": torch.ones(1)})),
        ["std of observation.state of size 1", "mean has size 3"],
    ),
    "relative actions": (
        lambda p: add_step(p, BEFORE, "relative_actions_processor", enabled=True),
        ["policy_preprocessor.json", "relative_actions_processor with enabled=true", "absolute actions"],
    ),
    "absolute actions": (
        lambda p: add_step(p, AFTER, "absolute_actions_processor", enabled=True),
        ["policy_postprocessor.json", "absolute_actions_processor with enabled=true"],
    ),
    "an action wider than the network's": (
        lambda p: widen(p, ACTION, 9),
        ["config.json has actions of size 9", "max_action_dim is 6"],
    ),
    "a state wider than the network's": (lambda p: widen(p, STATE, 9), ["the network (config.json)"]),
    "a step that fails": (
        lambda p: add_step(p, AFTER, "to_batch_processor") or add_step(p, AFTER, "map_delta_action_to_robot_action"),
        ["the postprocessor (policy_postprocessor.json)"],
    ),
    "no action": (
        lambda p: edit_config(p, lambda c: c["output_features"].clear()),
        ["config.json has no action in output_features"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_processors_that_do_not_do_what_the_config_says(case: str, teacher: Path) -> None:
    change, told = BROKEN[case]
    change(teacher)
    with pytest.raises(UserError) as refused:
        load_flow_policy(teacher, device="cpu", field="policy.path")
    said = str(refused.value)
    assert said.startswith(f"policy.path={teacher}: ")
    assert all(part in said for part in told), said
    assert "\n" not in said
    assert "optimizer.lr" not in said


@pytest.mark.parametrize("verb", ["reflow", "couple", "diagnose", "evaluate"])
@pytest.mark.parametrize("case", ["NaN", "absolute actions"])
def test_every_verb_refuses_before_it_makes_a_folder(
    verb: str, case: str, teacher: Path, checkpoint: Path, dataset_root: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    change, told = BROKEN[case]
    change(teacher)
    out = tmp_path / "out"
    data = ["--dataset.repo_id=test/tiny", f"--dataset.root={dataset_root}", f"--output_dir={out}"]
    given = {
        "reflow": options(teacher, dataset_root, out)[1:],
        "couple": [f"--teacher.path={teacher}", *data],
        "diagnose": [f"--policy.path={teacher}", *data],
        # The second of two policies: what only it has wrong is seen as early.
        "evaluate": [
            f"--teacher.path={checkpoint}",
            f"--student.path={teacher}",
            "--env.type=drift_of_the_tests",
            *data,
        ],
    }[verb]
    before = contents(tmp_path)
    said = refusal([verb, *given], capsys)
    assert f"={teacher}: " in said
    assert all(part in said for part in told), said
    assert contents(tmp_path) == before


SOUND: dict[str, Change] = {
    "a constant joint": lambda p: [
        edit_statistics(p, pipeline, fill(name, 0.0))
        for pipeline in (BEFORE, AFTER)
        for name in (f"{STATE}.std", "action.std")
    ],
    "a range of nothing": lambda p: (
        edit_statistics(p, BEFORE, lambda h: h.update({f"{STATE}.{name}": torch.ones(3) for name in ("min", "max")})),
        edit_normaliser(p, BEFORE, lambda c: c["norm_map"].update(STATE="MIN_MAX")),
    ),
    # Quantiles that are not used, and what counts frames.
    "further statistics": lambda p: edit_statistics(
        p, BEFORE, lambda h: h.update({f"{STATE}.q01": torch.full((3,), math.nan), f"{STATE}.count": torch.ones(1)})
    ),
    # LeRobot normalises the action whether the step lists it or not.
    "an action that is not listed": lambda p: [
        edit_normaliser(p, pipeline, lambda c: c["features"].pop(ACTION)) for pipeline in (BEFORE, AFTER)
    ],
    "another mode than the config's, with its statistics": lambda p: edit_config(
        p, lambda c: c["normalization_mapping"].update(ACTION="QUANTILES")
    ),
    "no normalisation by the config": lambda p: (
        edit_config(p, lambda c: c.update(normalization_mapping=dict.fromkeys(("STATE", "ACTION"), "IDENTITY"))),
        edit_statistics(p, BEFORE, lambda held: held.clear()),
        edit_statistics(p, AFTER, lambda held: held.clear()),
    ),
    # As a fine-tuned checkpoint keeps the input features of the model that it began with.
    "the size of a base model's state": lambda p: edit_config(
        p, lambda c: c["input_features"][STATE].update(shape=[6])
    ),
    "a base model's cameras": lambda p: [
        add_input(p, f"observation.images.camera{i}", "VISUAL", 3, 32, 32) for i in (1, 2)
    ],
    "an image with channels last": lambda p: add_input(p, "observation.images.top", "VISUAL", 32, 32, 3),
    "a base model's further vectors": lambda p: add_input(p, "observation.velocity", "STATE", 3),
    "blank cameras": lambda p: edit_config(p, lambda c: c.update(empty_cameras=2)),
    "a rename map": lambda p: set_rename_map(p, image="images.top"),
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


def test_what_lerobot_train_saves_is_not_refused(
    checkpoint: Path, dataset_root: Path, tmp_path: Path
) -> None:
    """From scratch, and from a model of another robot whose processors it overrides as `lerobot-train` does."""
    statistics = LeRobotDatasetMetadata("test/tiny", root=dataset_root).stats
    base = Path(shutil.copytree(checkpoint, tmp_path / "base"))
    rename_statistics(base, BEFORE)
    rename_statistics(base, AFTER)
    config = SmolVLAFlowPolicy.policy_class.config_class.from_pretrained(checkpoint)
    shared = {"stats": statistics, "norm_map": config.normalization_mapping}
    features = config.input_features | config.output_features
    saved = {
        "scratch": make_pre_post_processors(config, dataset_stats=statistics),
        "tuned": make_pre_post_processors(
            config,
            pretrained_path=str(base),
            preprocessor_overrides={"normalizer_processor": {**shared, "features": features}},
            postprocessor_overrides={
                "unnormalizer_processor": {**shared, "features": config.output_features}
            },
        ),
    }
    for name, pipelines in saved.items():
        folder = Path(shutil.copytree(checkpoint, tmp_path / name))
        for file in folder.glob("policy_p*"):
            file.unlink()
        for pipeline in pipelines:
            pipeline.save_pretrained(folder)
        policy = load_flow_policy(folder, device="cpu")
        state = policy.preprocess(observations(1))[STATE]
        mean, std = (torch.as_tensor(statistics[STATE][key], dtype=torch.float32) for key in ("mean", "std"))
        torch.testing.assert_close(state, (observations(1)[STATE] - mean) / std)


class Cameras:
    """What `check_processors` asks of a policy, with as many cameras as a test wants."""

    normalises_elsewhere = False

    def __init__(self, config: object, cameras: list[str], needs_every: bool) -> None:
        self.config, self.image_keys, self.needs_every_camera = config, cameras, needs_every


@given(
    mode=st.sampled_from([mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]),
    kind=st.sampled_from(["STATE", "ACTION"]),
    side=st.sampled_from([BEFORE, AFTER]),
    fault=st.sampled_from(["none", "lower", "upper", "nan", "size", "elsewhere"]),
)
def test_any_mode_needs_its_own_two_statistics(
    mode: NormalizationMode, kind: str, side: str, fault: str
) -> None:
    pair = {
        "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"),
        "QUANTILES": ("q01", "q99"), "QUANTILE10": ("q10", "q90"),
    }[mode.value]  # fmt: skip
    config = make_config(Path("vlm"))
    config.normalization_mapping = {"STATE": mode, "ACTION": mode, "VISUAL": NormalizationMode.IDENTITY}
    sizes = {STATE: STATE_DIM, ACTION: ACTION_DIM}
    held = {key: {name: torch.ones(size) for name in pair} for key, size in sizes.items()}
    key = STATE if kind == "STATE" else ACTION
    broken = copy.deepcopy(held)
    if fault == "elsewhere":
        broken[f"so100.{key}"] = broken.pop(key)
    elif fault in ("lower", "upper"):
        broken[key].pop(pair[fault == "upper"])
    elif fault == "nan":
        broken[key][pair[1]][0] = math.nan
    elif fault == "size":
        broken[key][pair[1]] = torch.ones(5)
    features = config.input_features | config.output_features
    before = NormalizerProcessorStep(
        features, config.normalization_mapping, broken if side == BEFORE else held
    )
    after = UnnormalizerProcessorStep(
        config.output_features, config.normalization_mapping, broken if side == AFTER else held
    )
    pipelines = PolicyProcessorPipeline(steps=[before]), PolicyProcessorPipeline(steps=[after])
    policy = Cameras(config, [], needs_every=True)
    # The state is of no concern behind the policy.
    if fault == "none" or (kind == "STATE" and side == AFTER):
        check_processors(policy, *pipelines, "policy.path=x")  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=rf"policy.path=x: {side}.json has .*{key}") as refused:
        check_processors(policy, *pipelines, "policy.path=x")  # type: ignore[arg-type]
    assert any(name in str(refused.value) for name in pair)


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
    pair = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    statistics = {
        STATE: {"mean": torch.zeros(STATE_DIM), "std": torch.ones(STATE_DIM)},
        ACTION: {"mean": torch.zeros(ACTION_DIM), "std": torch.ones(ACTION_DIM)},
        **dict.fromkeys(cameras[:known], pair),
    }
    features = config.input_features | config.output_features
    before = NormalizerProcessorStep(features, config.normalization_mapping, statistics)
    after = UnnormalizerProcessorStep(config.output_features, config.normalization_mapping, statistics)
    pipelines = PolicyProcessorPipeline(steps=[before]), PolicyProcessorPipeline(steps=[after])
    policy = Cameras(config, cameras, needs_every=not may_lack)
    if sound:
        check_processors(policy, *pipelines, "policy.path=x")  # type: ignore[arg-type]
        return
    with pytest.raises(UserError, match=rf"no mean and std of {cameras[known]}.*VISUAL=MEAN_STD"):
        check_processors(policy, *pipelines, "policy.path=x")  # type: ignore[arg-type]


class TestTrial:
    """What only shows when an observation goes through."""

    @pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("Tried to allocate 2.00 GiB")])
    def test_one_observation_that_does_not_fit_needs_another_device(
        self, error: BaseException, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def encode(*_: object) -> None:
            raise error

        monkeypatch.setattr(SmolVLAFlowPolicy, "encode", encode)
        with pytest.raises(UserError, match=r"one observation does not fit .* of cpu .*--device"):
            load_flow_policy(checkpoint, device="cpu")

    def test_renamed_cameras_come_under_the_name_that_data_have(self, checkpoint: Path) -> None:
        rename = {
            "observation.images.top": "observation.images.wrist",
            "observation.image": "observation.images.top",
        }
        policy = load_flow_policy(checkpoint, device="cpu", rename_map=rename)
        assert set(blank_observation(policy, policy.preprocessor)) == {"task", STATE, "observation.image"}

    @pytest.mark.parametrize("answer", ["NaN", "shape", "error"])
    def test_actions_that_are_no_actions(
        self, answer: str, tiny_policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def to_action(endpoint: torch.Tensor) -> torch.Tensor:
            if answer == "error":
                raise RuntimeError("The size of tensor a must match")
            return torch.full((1, 8, 2), math.nan) if answer == "NaN" else torch.zeros(1, 8, 3)

        monkeypatch.setattr(tiny_policy, "to_action", to_action)
        with pytest.raises(UserError) as refused:
            try_out(tiny_policy, tiny_policy.preprocessor, "policy.path=x")
        told = {
            "NaN": "end in NaN or infinite actions",
            "shape": "policy_postprocessor.json makes actions of shape (1, 8, 3)",
            "error": "the postprocessor (policy_postprocessor.json) fails on a blank observation",
        }[answer]
        assert told in str(refused.value)

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), UserError("mine")])
    def test_what_is_not_the_checkpoints_fault_is_not_blamed_on_it(
        self, error: Exception, tiny_policy: SmolVLAFlowPolicy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def encode(batch: object) -> None:
            raise error

        monkeypatch.setattr(tiny_policy, "encode", encode)
        with pytest.raises(type(error)) as raised:
            try_out(tiny_policy, tiny_policy.preprocessor, "policy.path=x")
        assert raised.value is error

    def test_the_callers_random_numbers_are_left_alone(self, tiny_policy: SmolVLAFlowPolicy) -> None:
        before = torch.get_rng_state()
        try_out(tiny_policy, tiny_policy.preprocessor, "policy.path=x")
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_state_under_the_identity_has_the_size_of_its_statistics(
        self, tiny_policy: SmolVLAFlowPolicy
    ) -> None:
        tiny_policy.config.input_features[STATE] = PolicyFeature(FeatureType.STATE, (6,))
        step = tiny_policy.preprocessor.steps[-1]
        step.norm_map = {**step.norm_map, FeatureType.STATE: NormalizationMode.IDENTITY}
        assert blank_observation(tiny_policy, tiny_policy.preprocessor)[STATE].shape == (1, 3)
