"""The benchmark on Meta-World: demonstrations whole or not at all, LeRobot's split, and the smallest size in full."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from chordflow.couplings.observations import split_episodes
from lerobot_env_metaworld_light import LightMetaworldConfig
from script_files import scripts_of
from test_env_metaworld_light import drawn

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "metaworld"


@pytest.fixture
def load() -> Iterator[Any]:
    with scripts_of(FOLDER) as import_script:
        yield import_script


@drawn
def test_an_interrupted_recording_leaves_no_dataset_and_goes_on(load, tmp_path, monkeypatch):
    recorder = load("record")
    config = LightMetaworldConfig(task="reach-v3,handle-press-v3", obs="pixels_full")
    root = tmp_path / "dataset"
    disturbed = {"handle-press-v3": 2}

    def stop(_task: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorder.record(config, root, 2, 0.3, stop, disturbed=disturbed)
    assert not root.exists()
    # A file that the machine lost a part of is made again.
    lost = next(tmp_path.glob("dataset.episodes/reach-v3*/1000000.npz"))
    lost.write_bytes(lost.read_bytes()[:-100])
    made = []
    demonstrate = recorder.demonstrate

    def watched(env: Any, task: str, seed: int, pushed: bool) -> dict[str, np.ndarray]:
        made.append((task, seed))
        return demonstrate(env, task, seed, pushed)

    monkeypatch.setattr(recorder, "demonstrate", watched)
    dataset = recorder.record(config, root, 2, 0.3, disturbed=disturbed)
    seeds = (3_000_000, 2_000_000, 4_000_000)
    assert made == [("reach-v3", 1_000_000), *(("handle-press-v3", seed) for seed in seeds)]
    assert dataset.num_episodes == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]
    # LeRobot's rule holds out just the episodes of the other ranges of seeds, which come last.
    tasks = [named[0] for named in dataset.meta.episodes["tasks"]]
    train, held_out = split_episodes(tasks, range(6), 0.3)
    assert (sorted(train), sorted(held_out)) == ([0, 1, 2], [3, 4, 5])
    assert dataset.features["observation.image"]["shape"] == (64, 64, 3)
    item = dataset[0]
    assert item["observation.state"].shape == (13,)
    assert abs(item["action"]).max() <= 1
    instructions = {dataset[int(start)]["task"] for start in dataset.meta.episodes["dataset_from_index"]}
    assert instructions == {"Reach a goal position", "Press a handle down"}
    with pytest.raises(ValueError, match="exists already"):
        recorder.record(config, root, 2, 0.3)
    words = "disturbed names push-v3, which is not recorded; it may name reach-v3, handle-press-v3"
    with pytest.raises(ValueError, match=words):
        recorder.record(config, tmp_path / "new", 10, 0.1, disturbed={"push-v3": 1})


@drawn
def test_episodes_that_the_expert_fails_are_left_out(load, tmp_path, monkeypatch):
    recorder = load("record")
    asked: list[int] = []
    demonstrate = recorder.demonstrate

    def every_third(_env: Any, _task: str, seed: int, pushed: bool) -> dict[str, np.ndarray]:
        asked.append(seed)
        return {"action": np.zeros((5 if seed % 3 == 0 else 0, 4), np.float32)}

    monkeypatch.setattr(recorder, "demonstrate", every_third)
    files = list(recorder.solved("reach-v3", LightMetaworldConfig(), tmp_path, 30, 3))
    assert [int(file.stem) for file in files] == [30, 33, 36]
    assert asked == list(range(30, 37))
    monkeypatch.setattr(recorder, "demonstrate", demonstrate)
    hopeless = LightMetaworldConfig(task="reach-v3", episode_length=5)
    monkeypatch.setattr(recorder, "GIVE_UP", 3)
    with pytest.raises(ValueError, match="failed 3 seeds in a row within 5 steps"):
        list(recorder.solved("reach-v3", hopeless, tmp_path, 1_000_000, 1))


@drawn
def test_a_disturbed_episode_begins_off_the_path_and_is_solved(load):
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    recorder = load("record")
    env = LightMetaworldEnv("reach-round-wall", obs="pixels_full", episode_length=200)
    # Of the plain one the hand comes to the goal's height at once and stays there.
    plain = recorder.demonstrate(env, "reach-round-wall", 3_000_001)
    pushed = recorder.demonstrate(env, "reach-round-wall", 3_000_001, pushed=True)
    again = recorder.demonstrate(env, "reach-round-wall", 3_000_001, pushed=True)
    env.close()
    for name, array in pushed.items():
        assert np.array_equal(array, again[name]), name
    goal = plain["agent_pos"][0, 10:]
    assert np.array_equal(pushed["agent_pos"][0, 10:], goal)
    distances = np.linalg.norm(plain["agent_pos"][:, :3] - pushed["agent_pos"][0, :3], axis=1)
    assert distances.min() > 0.02
    last = pushed["agent_pos"][-1, :3] + 0.01 * pushed["action"][-1, :3]
    assert np.linalg.norm(last - goal) < 0.07
    assert len(pushed["action"]) == len(pushed["pixels"]) == len(pushed["agent_pos"]) > 0


@drawn
@pytest.mark.docs
def test_the_experts_hand_is_at_the_goals_height_in_four_frames_of_five(load):
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    env = LightMetaworldEnv("reach-round-wall", obs="pixels_full", image_size=16, episode_length=200)
    episodes = [
        load("record").demonstrate(env, "reach-round-wall", seed) for seed in range(3_000_000, 3_000_012)
    ]
    env.close()
    states = np.concatenate([episode["agent_pos"] for episode in episodes])
    assert 0.75 < np.mean(np.abs(states[:, 2] - states[:, 12]) < 0.01) < 0.85


def test_differences_to_lerobot_eval_are_named(load, tmp_path):
    results = load("results")
    episodes = tmp_path / "chordflow" / "episodes" / "student-1-euler-lerobot"
    episodes.mkdir(parents=True)
    (tmp_path / "stock").mkdir()
    metrics = {"successes": [True, False], "sum_rewards": [5.0, 2.0]}
    (tmp_path / "stock" / "eval_info.json").write_text(
        json.dumps({"per_task": [{"task_group": "reach-v3", "task_id": 0, "metrics": metrics}]})
    )

    def agreement(successes: list[bool], rewards: list[float]) -> list[str]:
        count = len(successes)
        columns = {"task_group": ["reach-v3"] * count, "task_id": [0] * count, "seed": list(range(count))}
        table = pa.table({**columns, "success": successes, "sum_reward": rewards})
        pq.write_table(table, episodes / "episodes.parquet")
        return results.agreement(tmp_path)

    assert agreement([True, False], [5.0, 2.0]) == []
    assert "reach-v3, episode 1" in agreement([True, True], [5.0, 2.0])[0]
    assert "2.1 by chordflow" in agreement([True, False], [5.0, 2.1])[0]
    assert agreement([True], [5.0]) == ["2 episodes by lerobot-eval, 1 by chordflow"]


def test_what_cannot_be_run_is_said_at_the_start(load, monkeypatch, tmp_path):
    run, sizes = load("run"), load("sizes").SIZES
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="size=full runs on a GPU"):
        run.check_device("full", sizes["full"])
    run.check_device("smoke", sizes["smoke"])
    made = run.Run(sizes["smoke"], tmp_path)
    assert made._spent() == {}
    made.seconds.write_text("{")
    with pytest.raises(ValueError, match=r"seconds\.json is broken .*remove it to go on"):
        made._spent()
    for share, disturbed, words in (
        (0.1, -1, "disturbed=-1: give a number of episodes, 0 or more"),
        (math.nan, 0, "eval_split=nan: give a share between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            load("record").record(None, tmp_path / "new", 10, share, disturbed=disturbed)


def test_commands_are_understood(load, monkeypatch, tmp_path):
    from builders import parse_evaluate, parse_reflow
    from lerobot_env_metaworld_light.tasks import tasks_of

    monkeypatch.chdir(tmp_path)
    commands = load("commands")
    for size in load("sizes").SIZES.values():
        assert len(tasks_of(",".join(size.tasks))) == len(size.tasks)
        config, _ = parse_reflow(commands.reflow(size))
        assert config.steps == size.reflow["steps"]
        like_lerobot = [commands.evaluate_like_lerobot(size)] if size.lerobot_episodes else []
        for arguments in (commands.evaluate(size), *like_lerobot):
            assert parse_evaluate(arguments).env.image_size == size.image_size


@drawn
def test_success_is_told_by_the_height_of_goals(load, tmp_path, capsys):
    script, size = load("goal_height"), load("sizes").SIZES["smoke"]
    by_seed = dict(enumerate(script.heights(size, range(8))))
    assert len(set(by_seed.values())) == 8
    assert all(0.1 <= height <= 0.2 for height in by_seed.values())
    for place, folder in enumerate(script.ARMS.values()):
        # The first solves what hangs low, the others what hangs high.
        rows = [
            {"task_group": script.TASK, "seed": seed, "success": (height < 0.15) == (place == 0)}
            for seed, height in by_seed.items()
        ]
        rows.append({"task_group": "reach-v3", "seed": 3, "success": True})
        episodes = tmp_path / "evaluate" / "episodes" / folder
        episodes.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), episodes / "part-000000.parquet")
    result = script.measure(size, tmp_path)
    first, second, _ = result["success"].values()
    assert result["episodes"] == 8
    assert [part["episodes"] for part in result["quarters"]] == [2, 2, 2, 2]
    low = [sum(height < 0.15 for height in sorted(by_seed.values())[i : i + 2]) / 2 for i in (0, 2, 4, 6)]
    assert first == low
    assert second == [1 - rate for rate in low]
    assert script.main(["--size=smoke", f"--output_dir={tmp_path / 'nothing'}"]) == 2
    assert "holds no episodes of reach-round-wall" in capsys.readouterr().err


@pytest.mark.docs
def test_the_document_shows_what_the_height_of_goals_does(load):
    script = load("goal_height")
    mark = f"<!-- goal_height -->\n{script.table(script.published())}\n<!-- /goal_height -->"
    assert mark in (FOLDER / "README.md").read_text(encoding="utf-8")


@drawn
def test_first_pictures_of_metaworld_may_show_the_episode_before(load, capsys):
    script = load("first_pictures")
    found = script.measure(["reach-v3", "basketball-v3"])
    assert found["pixels_that_differ"]["reach-v3"] > 0
    assert (found["tasks"], found["tasks_that_differ"]) == (2, 1)
    for option, words in (
        ("--publish", "task=reach-v3: what is published is of all tasks"),
        ("--task=reach-round-wall", "task=reach-round-wall: only Meta-World's own tasks"),
        ("--task=reech-v3", "the nearest names are reach-v3"),
    ):
        assert script.main(["--task=reach-v3", option]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.docs
@pytest.mark.parametrize("file", sorted((FOLDER / "results").glob("*.json")), ids=lambda file: file.stem)
def test_the_document_shows_the_published_results(load, file):
    result = json.loads(file.read_text(encoding="utf-8"))
    mark = f"<!-- {file.stem} -->\n{load('results').published(result)}\n<!-- /{file.stem} -->"
    assert mark in (FOLDER / "README.md").read_text(encoding="utf-8")
    assert result["lerobot"]["differences"] == []
    assert str(Path.home()) not in json.dumps(result)


@drawn
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_smallest_size_runs_from_nothing(tmp_path):
    command = [sys.executable, str(FOLDER / "run.py"), "--size=smoke", f"--output_dir={tmp_path / 'run'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=3600)
    result = json.loads((tmp_path / "run" / "smoke.json").read_text(encoding="utf-8"))
    everything = [row for row in result["success"] if row["group"] == "all"]
    rate = {(row["policy"], row["solver"], row["num_steps"]): row["rate"] for row in everything}
    assert rate["teacher", "euler", 10] >= 0.6
    assert rate["student", "euler", 1] >= 0.6
    assert result["lerobot"]["differences"] == []
    # What is done is not done again.
    again = subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.stdout.count("done before") == len(list((tmp_path / "run").glob("*.done"))) == 7


def test_chunks_between_two_ways_are_undecided(load):
    chunks = load("first_chunks")
    centres = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, 9.0]])
    points = np.array(
        [[-1.0, 0.0], [-0.6, 0.5], [-0.4, 0.5], [0.0, -3.0], [0.7, 0.0], [5.0, 1.0], [0.5, 5.0]]
    )
    # A quarter of the way lies at -0.5; far beyond a centre is decided as well.
    assert chunks.undecided(points, centres).tolist() == [False, False, True, True, False, False, True]
    assert chunks.modes_left(np.repeat(points[[0, 4]], 10, axis=0), centres) == 2
    assert chunks.modes_left(np.repeat(points[[2, 3]], 10, axis=0), centres) == 0
    # One chunk of forty is no mode.
    lonely = np.concatenate([np.repeat(points[[0]], 39, axis=0), points[[4]]])
    assert chunks.modes_left(lonely, centres) == 1
