"""The demo's environment: repeatable, and solved by its expert."""

from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from chordflow.rollouts.environments import make_environments
from lerobot_env_detour import INSTRUCTIONS, DetourEnv, DetourEnvConfig, DetourExpert
from lerobot_env_detour.scene import AGENT_RADIUS, MAX_STEP, OBSTACLE_RADIUS, hits_obstacle, passed_side


def begun(seed: int, instruction: str | None = None) -> DetourEnv:
    env = DetourEnv()
    env.reset(seed=seed, options=instruction and {"instruction": instruction})
    return env


def run_expert(env: DetourEnv, seed: int, expert_seed: int) -> tuple[dict, list]:
    observation, info = env.reset(seed=seed)
    expert = DetourExpert(env.scene, seed=expert_seed)
    frames, ended = [observation], False
    while not ended and len(frames) < 40:
        observation, reward, ended, truncated, info = env.step(expert.act(env.position))
        assert not truncated
        assert reward == float(info["is_success"])
        frames.append(observation)
    return info, frames


def test_gymnasium_accepts_the_environment():
    check_env(gym.make("lerobot_env_detour/Detour-v0").unwrapped, skip_render_check=False)


def test_an_episode_is_a_function_of_its_seed():
    first, second = (run_expert(DetourEnv(), seed=3, expert_seed=5)[1] for _ in range(2))
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one["pixels"], other["pixels"])
        np.testing.assert_array_equal(one["agent_pos"], other["agent_pos"])
    assert len({begun(seed).scene for seed in range(20)}) == 20


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_the_expert_solves_what_is_asked(instruction):
    env = DetourEnv(instruction=instruction)
    infos = [run_expert(env, seed, expert_seed=10_000 + seed)[0] for seed in range(200)]
    assert np.mean([info["is_success"] for info in infos]) >= 0.99
    sides = Counter(info["side"] for info in infos if info["is_success"])
    if instruction == "go any way":
        # Five standard errors of a fair coin.
        assert abs(sides["left"] - sides["right"]) < 5 * np.sqrt(200)
    else:
        assert set(sides) == {instruction.removeprefix("go ")}


def test_the_side_depends_on_the_experts_seed_alone():
    scenes = [begun(layout, "go any way").scene for layout in range(30)]
    sides = [{DetourExpert(scene, seed).side for scene in scenes} for seed in range(8)]
    assert all(len(taken) == 1 for taken in sides)
    assert set.union(*sides) == {"left", "right"}


def test_instructions_are_drawn_as_announced_and_can_be_set():
    drawn = Counter(begun(seed).task_description for seed in range(1000))
    for instruction, count in zip(INSTRUCTIONS, (250, 250, 500), strict=True):
        assert abs(drawn[instruction] - count) < 80
    free, told = begun(7), begun(7, "go left")
    assert told.task_description == "go left"
    for name in ("start", "goal", "obstacle"):
        assert getattr(told.scene, name) == getattr(free.scene, name)
    with pytest.raises(ValueError, match="go back"):
        begun(7, "go back")


def test_the_wrong_side_and_the_obstacle_are_failures():
    scene = begun(0, "go any way").scene
    expert = next(e for e in (DetourExpert(scene, seed) for seed in range(50)) if e.side == "right")
    env, ended = begun(0, "go left"), False
    while not ended:
        _, _, ended, _, info = env.step(expert.act(env.position))
    assert (info["outcome"], info["side"], info["is_success"]) == ("wrong side", "right", False)
    env, ended = begun(0, "go any way"), False
    while not ended:
        aim = np.array(env.scene.obstacle) - env.position
        _, reward, ended, _, info = env.step(aim / np.abs(aim).max())
    assert (info["outcome"], reward, info["is_success"]) == ("collision", 0.0, False)


def test_a_fast_move_does_not_jump_over_the_obstacle():
    scene, reach = begun(0).scene, np.array([0.0, 0.9])
    below, above = np.array(scene.obstacle) - reach, np.array(scene.obstacle) + reach
    assert hits_obstacle(below, above, scene)
    aside = np.array([OBSTACLE_RADIUS + AGENT_RADIUS + 1e-6, 0.0])
    assert not hits_obstacle(below + aside, above + aside, scene)
    assert passed_side(below + aside, above + aside, scene) == "right"
    assert passed_side(below - aside, above - aside, scene) == "left"
    assert passed_side(above, below, scene) == "none"


def test_actions_are_moves_in_units_of_the_largest_step():
    env = begun(0)
    for action, moved in (([0.5, -0.25], [0.5, -0.25]), ([9.0, 0.0], [1.0, 0.0])):
        before = env.position
        env.step(np.array(action, dtype=np.float32))
        np.testing.assert_allclose(env.position - before, np.array(moved) * MAX_STEP)


def test_the_picture_shows_where_things_are():
    env = DetourEnv()
    observation, _ = env.reset(seed=1)
    image = observation["pixels"].astype(int)
    redness = image[..., 0] - image[..., 1:].mean(axis=-1)
    rows, columns = np.nonzero(redness > 60)
    x, y = (columns.mean() + 0.5) / 32 - 1, 1 - (rows.mean() + 0.5) / 32
    np.testing.assert_allclose([x, y], env.position, atol=0.03)
    dark = np.argwhere(image.sum(axis=-1) < 280).mean(axis=0) + 0.5
    np.testing.assert_allclose([dark[1] / 32 - 1, 1 - dark[0] / 32], env.scene.obstacle, atol=0.03)


def test_lerobot_makes_several_with_instructions_and_a_limit():
    (vector,) = make_environments(DetourEnvConfig(episode_length=25), 3).values()
    vector.reset(seed=[0, 1, 2], options={"lerobot_new_rollout": True})
    assert list(vector.call("task_description")) == [begun(seed).task_description for seed in range(3)]
    assert set(vector.call("_max_episode_steps")) == {25}
    vector.close()
