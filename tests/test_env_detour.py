"""The demo's environment: repeatable, solved by its expert, found by LeRobot, independent of chordflow."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import lerobot_env_detour
from lerobot_env_detour import INSTRUCTIONS, DetourEnv, DetourExpert
from lerobot_env_detour.scene import AGENT_RADIUS, MAX_STEP, OBSTACLE_RADIUS, hits_obstacle, passed_side


def run_expert(
    env: DetourEnv, seed: int, expert_seed: int, instruction: str | None = None
) -> tuple[dict, list]:
    options = None if instruction is None else {"instruction": instruction}
    observation, info = env.reset(seed=seed, options=options)
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
    env = DetourEnv()
    scenes = {seed: (env.reset(seed=seed), env.scene)[1] for seed in range(20)}
    assert len(set(scenes.values())) == 20


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
    env = DetourEnv(instruction="go any way")
    sides = {seed: [] for seed in range(8)}
    for layout in range(30):
        env.reset(seed=layout)
        for seed, taken in sides.items():
            taken.append(DetourExpert(env.scene, seed).side)
    assert all(len(set(taken)) == 1 for taken in sides.values())
    assert {taken[0] for taken in sides.values()} == {"left", "right"}


def test_instructions_are_drawn_as_announced_and_can_be_set():
    env = DetourEnv()
    drawn = Counter()
    for seed in range(1000):
        env.reset(seed=seed)
        drawn[env.task_description] += 1
    expected = dict(zip(INSTRUCTIONS, (250, 250, 500), strict=True))
    for instruction, count in expected.items():
        assert abs(drawn[instruction] - count) < 80
    env.reset(seed=7)
    free = env.scene
    env.reset(seed=7, options={"instruction": "go left"})
    assert env.task_description == "go left"
    assert (env.scene.start, env.scene.goal, env.scene.obstacle) == (free.start, free.goal, free.obstacle)
    with pytest.raises(ValueError, match="go back"):
        env.reset(seed=7, options={"instruction": "go back"})


def test_the_wrong_side_and_the_obstacle_are_failures():
    env = DetourEnv()
    env.reset(seed=0, options={"instruction": "go any way"})
    right = next(seed for seed in range(50) if DetourExpert(env.scene, seed).side == "right")
    expert = DetourExpert(env.scene, right)
    env.reset(seed=0, options={"instruction": "go left"})
    info, ended = {}, False
    while not ended:
        _, _, ended, _, info = env.step(expert.act(env.position))
    assert (info["outcome"], info["side"], info["is_success"]) == ("wrong side", "right", False)

    env.reset(seed=0, options={"instruction": "go any way"})
    ended = False
    while not ended:
        aim = np.array(env.scene.obstacle) - env.position
        _, reward, ended, _, info = env.step(aim / np.abs(aim).max())
    assert (info["outcome"], reward, info["is_success"]) == ("collision", 0.0, False)


def test_a_fast_move_does_not_jump_over_the_obstacle():
    env = DetourEnv()
    env.reset(seed=0)
    scene = env.scene
    centre = np.array(scene.obstacle)
    reach = np.array([0.0, 0.9])
    below, above = centre - reach, centre + reach
    assert hits_obstacle(below, above, scene)
    aside = np.array([OBSTACLE_RADIUS + AGENT_RADIUS + 1e-6, 0.0])
    assert not hits_obstacle(below + aside, above + aside, scene)
    assert passed_side(below + aside, above + aside, scene) == "right"
    assert passed_side(below - aside, above - aside, scene) == "left"
    assert passed_side(above, below, scene) == "none"


def test_actions_are_moves_in_units_of_the_largest_step():
    env = DetourEnv()
    env.reset(seed=0)
    before = env.position
    env.step(np.array([0.5, -0.25], dtype=np.float32))
    np.testing.assert_allclose(env.position - before, [0.5 * MAX_STEP, -0.25 * MAX_STEP])
    before = env.position
    env.step(np.array([9.0, 0.0], dtype=np.float32))
    np.testing.assert_allclose(env.position - before, [MAX_STEP, 0.0])


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


def test_lerobot_finds_it_without_being_told(tmp_path):
    """LeRobot imports installed plugins by name; the process below never names the package."""
    script = (
        "import sys, logging\n"
        "sys.modules['chordflow'] = None\n"
        "logging.disable(logging.CRITICAL)\n"
        "from lerobot.utils.import_utils import register_third_party_plugins\n"
        "from lerobot.envs.factory import make_env, make_env_config\n"
        "register_third_party_plugins()\n"
        "config = make_env_config('detour', episode_length=25)\n"
        "env = make_env(config, n_envs=3)['detour'][0]\n"
        "env.reset(seed=[0, 1, 2], options={'lerobot_new_rollout': True})\n"
        "print(*env.call('task_description'), env.call('_max_episode_steps')[0], sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    *instructions, length = done.stdout.strip().splitlines()[-1].split("|")
    assert len(instructions) == 3
    assert set(instructions) <= set(INSTRUCTIONS)
    assert length == "25"


def test_it_does_not_import_chordflow():
    sources = list(Path(lerobot_env_detour.__file__).parent.rglob("*.py"))
    assert len(sources) >= 5
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            roots = {name.split(".")[0] for name in names}
            assert roots <= {"gymnasium", "numpy", "lerobot", "lerobot_env_detour", "dataclasses", "typing"}
