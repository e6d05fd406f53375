"""Meta-World, drawn only where it is looked at: as LeRobot's own in all else, with two two-sided tasks."""

import ast
import copy
import ctypes.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from chordflow.errors import UserError
from chordflow.rollouts.environments import make_environments
from lerobot_env_metaworld_light import LightMetaworldConfig, machine
from lerobot_env_metaworld_light.config import CAMERAS

PACKAGE = Path(machine.__file__).parent

try:
    machine.check_machine()
    NOTHING_TO_RENDER_WITH = ""
except RuntimeError as error:
    NOTHING_TO_RENDER_WITH = str(error)
drawn = pytest.mark.skipif(bool(NOTHING_TO_RENDER_WITH), reason=NOTHING_TO_RENDER_WITH)


def make(task: str, **options: Any) -> Any:
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    return LightMetaworldEnv(task, **options)


def run_expert(
    env: Any, seed: int, expert_seed: int
) -> tuple[dict[str, Any], list[np.ndarray], list[float], Any]:
    """An episode of the expert: its last info, states, rewards, and the expert."""
    from lerobot_env_metaworld_light.experts import make_expert

    env.reset(seed=seed)
    expert = make_expert(env.task, expert_seed)
    states, rewards, ended = [env.state], [], False
    while not ended:
        _, reward, terminated, truncated, info = env.step(expert.act(env.state))
        states.append(env.state)
        rewards.append(reward)
        ended = terminated or truncated
    return info, states, rewards, expert


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Any:
    """LeRobot's own environment; what it draws after every step is left out, for it takes a second."""
    from lerobot.envs.metaworld import MetaworldEnv

    def build(task: str) -> Any:
        env = MetaworldEnv(task, obs_type="pixels_agent_pos")
        env._ensure_env()
        monkeypatch.setattr(env._env, "render", lambda: np.zeros((480, 480, 3), np.uint8))
        return env

    return build


@pytest.mark.parametrize("task", ["push-v3", "door-open-v3"])
def test_states_rewards_and_success_are_those_of_lerobots_environment(task, stock):
    from lerobot_env_metaworld_light.experts import make_expert

    theirs, ours = stock(task), make(task)
    for seed in (3, 4):
        there, _ = theirs.reset(seed=seed)
        here, _ = ours.reset(seed=seed)
        expert, ended = make_expert(task, seed), False
        np.testing.assert_array_equal(here["agent_pos"], there["agent_pos"].astype(np.float32))
        while not ended:
            np.testing.assert_array_equal(ours._env.data.qpos, theirs._env.data.qpos)
            action = expert.act(ours.state)
            there, reward, terminated, truncated, told = theirs.step(action)
            here, *outcome, info = ours.step(action)
            assert outcome == [reward, terminated, truncated]
            assert info["is_success"] == told["is_success"]
            np.testing.assert_array_equal(here["agent_pos"], there["agent_pos"].astype(np.float32))
            ended = terminated or truncated
        assert info["is_success"]
        assert info["final_info"] == told["final_info"]


@drawn
def test_the_picture_is_lerobots_but_smaller_and_without_shadows():
    from lerobot.envs.metaworld import MetaworldEnv

    theirs, ours = MetaworldEnv("reach-v3"), make("reach-v3")
    theirs._ensure_env()
    # Its own, 4096 and 4, take seconds without a GPU.
    theirs._env.model.vis.quality.shadowsize, theirs._env.model.vis.quality.offsamples = 256, 0
    large = theirs.reset(seed=1)[0]["pixels"].astype(float)
    small = ours.reset(seed=1)[0]["pixels"]
    assert (small.shape, small.dtype) == ((64, 64, 3), np.uint8)
    # 480 pixels are seven and a half for each of ours: compared at a size that divides both.
    blocks = large.reshape(32, 15, 32, 15, 3).mean(axis=(1, 3))
    own = small.astype(float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    error = np.abs(own - blocks).mean()
    assert error < 12
    for wrong in (own[::-1], own[:, ::-1], own[::-1, ::-1]):
        assert np.abs(wrong - blocks).mean() > 2 * error
    assert ours.render().shape == (256, 256, 3)
    theirs.close()


@drawn
def test_pictures_are_drawn_only_where_they_are_looked_at(monkeypatch):
    from lerobot_env_metaworld_light.pictures import Painter

    calls = []
    draw = Painter.draw
    monkeypatch.setattr(Painter, "draw", lambda self, *args: calls.append(args[-1]) or draw(self, *args))
    env = make("reach-v3", episode_length=4)
    first, _ = env.reset(seed=0)
    second, *_ = env.step(np.zeros(4, np.float32))
    assert not calls
    with pytest.raises(RuntimeError, match="had moved on"):
        first["pixels"]
    copied = copy.deepcopy(second)
    assert type(copied) is dict
    third, *_ = env.step(np.ones(4, np.float32))
    np.testing.assert_array_equal(copied["pixels"], second["pixels"])
    assert len(calls) == 1
    assert dict(third.items())["pixels"] is third["pixels"] is third.get("pixels")
    env.step(np.ones(4, np.float32))
    *_, truncated, _ = env.step(np.ones(4, np.float32))
    assert truncated
    # Some vector environments reset before they look at the last observation.
    assert len(calls) == 3


@drawn
@pytest.mark.parametrize(
    "autoreset", [gym.vector.AutoresetMode.NEXT_STEP, gym.vector.AutoresetMode.SAME_STEP]
)
def test_vector_environments_see_the_pictures_of_their_own_episodes(autoreset):
    vector = gym.vector.SyncVectorEnv(
        [lambda: make("reach-v3", episode_length=2) for _ in range(2)], autoreset_mode=autoreset
    )
    seen, _ = vector.reset(seed=[5, 6])
    single = make("reach-v3")
    for row, seed in enumerate((5, 6)):
        np.testing.assert_array_equal(seen["pixels"][row], single.reset(seed=seed)[0]["pixels"])
    moved = single.step(np.ones(4, np.float32))[0]["pixels"]
    np.testing.assert_array_equal(vector.step(np.ones((2, 4), np.float32))[0]["pixels"][1], moved)
    _, _, _, truncated, _ = vector.step(np.ones((2, 4), np.float32))
    assert truncated.all()
    begun = vector.step(np.zeros((2, 4), np.float32))[0]["pixels"]
    assert not np.array_equal(begun[1], moved)


@drawn
@pytest.mark.parametrize("task", ["reach-v3", "lever-pull-v3", "reach-round-wall"])
def test_the_first_picture_shows_where_things_are_in_this_episode(task):
    import mujoco

    env = make(task)
    other = env.reset(seed=4)[0]["pixels"]
    first = env.reset(seed=3)[0]["pixels"]
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(first, make(task).reset(seed=3)[0]["pixels"])
    mujoco.mj_forward(env._env.model, env._env.data)
    np.testing.assert_array_equal(first, env._draw(64))


@pytest.mark.parametrize("task", ["drawer-close-v3", "reach-round-wall", "push-either-goal"])
def test_an_episode_is_a_function_of_its_seed(task):
    env = make(task, obs="pixels_full")
    _, states, rewards, _ = run_expert(env, seed=3, expert_seed=5)
    _, others, _, _ = run_expert(env, seed=4, expert_seed=5)
    assert not np.array_equal(states[0], others[0])
    _, again, rewards_again, _ = run_expert(env, seed=3, expert_seed=5)
    np.testing.assert_array_equal(states, again)
    assert rewards == rewards_again
    fresh, _ = make(task, obs="pixels_full").reset(seed=3)
    seen = np.concatenate((states[0][:7], states[0][11:14], states[0][-3:])).astype(np.float32)
    np.testing.assert_array_equal(fresh["agent_pos"], seen)


@pytest.mark.parametrize("task", ["reach-round-wall", "push-either-goal"])
def test_the_expert_of_a_two_sided_task_solves_it_by_either_side(task):
    env = make(task, episode_length=150)
    runs = [run_expert(env, seed, seed) for seed in range(8)]
    assert all(info["is_success"] for info, *_ in runs)
    assert all(info["side"] == expert.side for info, _, _, expert in runs)
    assert set(Counter(info["side"] for info, *_ in runs)) == {"left", "right"}


def test_the_mean_of_both_sides_fails():
    from lerobot_env_metaworld_light.experts import PushEitherGoalExpert, RoundWallExpert

    for task, expert in (("reach-round-wall", RoundWallExpert), ("push-either-goal", PushEitherGoalExpert)):
        env, both = make(task, episode_length=150), [expert("left"), expert("right")]
        env.reset(seed=0)
        ended = False
        while not ended:
            mean = np.mean([one.act(env.state) for one in both], axis=0)
            _, _, terminated, truncated, info = env.step(mean)
            ended = terminated or truncated
        assert (info["is_success"], info["side"]) == (False, "none"), task


def test_touching_the_wall_ends_the_episode():
    env, terminated = make("reach-round-wall", episode_length=40), False
    env.reset(seed=0)
    while not terminated:
        _, _, terminated, truncated, info = env.step(np.array([0, 1, 0, 0], np.float32))
        assert not truncated
    assert (info["is_success"], info["side"]) == (False, "none")


def test_wrong_names_and_options_are_told_in_one_sentence():
    for task, words in (
        ("push-v2", r"no task 'push-v2'.*nearest names are push-v3"),
        (" ,", "names no task"),
    ):
        with pytest.raises(UserError, match=words):
            make_environments(LightMetaworldConfig(task=task), 1)
    for options, words in (
        ({"obs": "state"}, "env.obs=state: it must be one of pixels_agent_pos, pixels_full"),
        ({"episode_length": 501}, "env.episode_length=501: give 1 to 500"),
        ({"camera": "corner4"}, "env.camera=corner4: it must be one of corner, corner2"),
        ({"image_size": 8}, "env.image_size=8: give 16 to 2048"),
    ):
        with pytest.raises(ValueError, match=words):
            LightMetaworldConfig(**options)


def test_groups_and_lists_of_tasks_are_lerobots():
    from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS

    made = make_environments(LightMetaworldConfig(task="hard, metaworld-reach-v3,push-either-goal"), 1)
    hard = DIFFICULTY_TO_TASKS["hard"]
    assert Counter(group for group, _ in made) == {"hard": len(hard), "reach-v3": 1, "push-either-goal": 1}
    assert made["hard", 1].envs[0].task == hard[1]


def test_a_machine_that_cannot_do_it_is_told_at_the_start(monkeypatch):
    monkeypatch.setattr(machine, "WELD_NUMBERS", 12)
    machine.check_mujoco.cache_clear()
    with pytest.raises(UserError, match=r"metaworld does not work with MuJoCo 3.*mujoco==3\.3\.7"):
        make_environments(LightMetaworldConfig(), 1)
    monkeypatch.undo()
    machine.check_mujoco.cache_clear()
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    machine.backend.cache_clear()
    with pytest.raises(RuntimeError, match=r"libegl1 libgl1-mesa-dri.*libosmesa6"):
        machine.backend()
    monkeypatch.undo()
    machine.backend.cache_clear()


@pytest.mark.parametrize("wanted", ["glfw", "bogus"])
def test_what_cannot_render_is_told_in_one_sentence(wanted):
    """In a process of its own: MuJoCo reads MUJOCO_GL when it is imported."""
    # The module alone: its package imports LeRobot, which takes seconds.
    code = (
        f"import runpy\ncheck_machine = runpy.run_path({machine.__file__!r})['check_machine']\n"
        "try:\n    check_machine()\nexcept RuntimeError as error:\n    print('told:', error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    environment["MUJOCO_GL"] = wanted
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("told: Meta-World cannot render here (MUJOCO_GL="), done.stdout
    assert "libegl1 libgl1-mesa-dri" in done.stdout


def test_all_cameras_are_named():
    env = make("reach-v3")
    env.reset(seed=0)
    model = env.unwrapped._env.model
    assert {model.camera(number).name for number in range(model.ncam)} == set(CAMERAS)


def test_registering_imports_neither_metaworld_nor_mujoco():
    """LeRobot's commands import the package whatever they do."""
    for name in ("__init__.py", "config.py", "machine.py"):
        for node in ast.parse((PACKAGE / name).read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {part.split(".")[0] for part in names} & {"metaworld", "mujoco"}
            assert "lerobot.envs.metaworld" not in names
