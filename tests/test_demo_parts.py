"""The demo's parts: the tiny VLM folder, the recorded dataset, the training recipe, the shipped teacher."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from chordflow.demo.cached_train import DecodedTable
from chordflow.demo.teacher import (
    ASSETS,
    CAMERA,
    FIRST_SEED,
    TeacherRecipe,
    make_teacher,
    place_teacher,
    record_demonstrations,
)
from chordflow.demo.tiny_vlm import TinyVLMSize, build_tiny_vlm
from chordflow.errors import UserError
from chordflow.policies import load_flow_policy
from chordflow.rollouts.acting import Actor
from chordflow.rollouts.runner import run_episodes
from lerobot_env_detour import INSTRUCTIONS, DetourEnv, DetourEnvConfig

TINY = TinyVLMSize(
    patch_size=16, scale_factor=4, vision_width=16, vision_layers=1, text_width=16, text_layers=2
)


def test_the_vlm_folder_is_a_real_one_without_weights(tmp_path):
    folder = build_tiny_vlm(tmp_path / "vlm", INSTRUCTIONS, TINY)
    assert not list(folder.glob("*.safetensors"))
    assert not [file for file in folder.iterdir() if str(tmp_path) in file.read_text()]
    config = AutoConfig.from_pretrained(folder)
    assert config.text_config.hidden_size == TINY.text_width
    model = AutoModelForImageTextToText.from_config(config)
    pixels = torch.zeros(1, 3, 64, 64)
    features = model.model.vision_model(pixel_values=pixels, patch_attention_mask=None).last_hidden_state
    assert model.model.connector(features).shape == (1, TINY.image_tokens, TINY.text_width)
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    assert tokenizer.fake_image_token_id != tokenizer.unk_token_id
    # Instructions are short, and other text survives.
    ids = [tokenizer(f"{instruction}\n").input_ids for instruction in INSTRUCTIONS]
    assert max(map(len, ids)) <= 4
    assert len({tuple(one) for one in ids}) == 3
    for text in ("pick up the ünlikely möhre\n", "向左走"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.fixture(scope="module")
def dataset_folder(tmp_path_factory):
    seen, root = [], tmp_path_factory.mktemp("demo") / "dataset"
    record_demonstrations(root, 5, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]
    return root


def test_demonstrations_are_a_lerobot_dataset_of_solved_episodes(dataset_folder):
    dataset = LeRobotDataset("chordflow/detour", root=dataset_folder)
    assert dataset.num_episodes == 5
    env = DetourEnv()
    start = 0
    # The recorded actions, run again from the recorded seeds, give the recorded frames and end in success.
    for episode in range(5):
        observation, info = env.reset(seed=FIRST_SEED + episode)
        assert dataset[start]["task"] == env.task_description
        end = start + dataset.meta.episodes[episode]["length"]
        for index in range(start, end):
            item = dataset[index]
            torch.testing.assert_close(item["observation.state"], torch.from_numpy(observation["agent_pos"]))
            pixels = (item[CAMERA] * 255).round().byte().permute(1, 2, 0).numpy()
            np.testing.assert_array_equal(pixels, observation["pixels"])
            observation, _, _, _, info = env.step(item["action"].numpy())
        assert info["is_success"]
        start = end
    assert start == dataset.num_frames


def test_a_decoded_table_gives_the_items_that_lerobot_gives(dataset_folder):
    dataset = LeRobotDataset(
        "chordflow/detour", root=dataset_folder, delta_timestamps={"action": [i / 10 for i in range(4)]}
    )
    expected = [dataset[index] for index in range(len(dataset))]
    dataset.reader.hf_dataset = DecodedTable(dict(dataset.reader.hf_dataset[:]))
    assert len(dataset.reader.hf_dataset) == len(expected)
    for index, item in enumerate(expected):
        for name, value in dataset[index].items():
            assert value == item[name] if isinstance(value, str) else torch.equal(value, item[name])


@pytest.mark.slow
def test_a_teacher_is_made_from_nothing_and_equals_stock_training(tmp_path):
    recipe = TeacherRecipe(num_episodes=3, steps=3, batch_size=4, vlm=TINY)
    seen = []
    teacher = make_teacher(tmp_path / "made", recipe, train_progress=lambda done, total: seen.append(done))
    assert seen[-1] == 3
    trained = tmp_path / "made" / "teacher_training/checkpoints/last/pretrained_model"
    for file in trained.glob("*.json"):
        assert str(tmp_path) not in file.read_text()

    stock = tmp_path / "stock"
    stock.mkdir()
    for name in ("vlm", "dataset"):
        (stock / name).symlink_to(tmp_path / "made" / name)
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *recipe.train_arguments()]
    done = subprocess.run(command, cwd=stock, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = load_file(teacher / "model.safetensors")
    theirs = load_file(stock / "teacher_training/checkpoints/last/pretrained_model/model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_shipped_teacher_is_small_names_no_machine_and_is_placed_with_paths_that_resolve(tmp_path):
    files = [file for file in ASSETS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 8_000_000
    for content in (file.read_text() for file in files if file.suffix == ".json"):
        assert not any(root in content for root in ('"/home', '"/tmp', '"/root', '"/work', '"/Users'))
    teacher = place_teacher(tmp_path / "out")
    config = json.loads((teacher / "config.json").read_text())
    steps = json.loads((teacher / "policy_preprocessor.json").read_text())["steps"]
    tokenizer = next(step["config"]["tokenizer_name"] for step in steps if "tokenizer_name" in step["config"])
    for path in (config["vlm_model_name"], tokenizer):
        assert Path(path).is_absolute()
        assert (Path(path) / "tokenizer.json").is_file()
    with pytest.raises(FileExistsError):
        place_teacher(tmp_path / "out")


def test_a_teacher_that_knows_the_camera_by_its_old_name_acts_the_same(tmp_path):
    old, teacher = "observation.image", place_teacher(tmp_path)
    new = load_flow_policy(teacher, device="cpu")
    for file in teacher.glob("*.json"):
        file.write_text(file.read_text().replace(f'"{CAMERA}"', f'"{old}"'))
    for file in teacher.glob("policy_*.safetensors"):
        save_file({name.replace(CAMERA, old): value for name, value in load_file(file).items()}, file)
    renaming = load_flow_policy(teacher, device="cpu", rename_map={CAMERA: old})
    own = load_flow_policy(teacher, device="cpu")
    runs = [
        run_episodes(Actor(policy, DetourEnvConfig(camera=camera), 2), range(2))
        for policy, camera in ((new, "front"), (renaming, "front"), (own, None))
    ]
    for run in runs[1:]:
        for first, second in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first.actions, second.actions)
    with pytest.raises(UserError, match=rf"--rename_map='{{\"{CAMERA}\": \"{old}\"}}'"):
        run_episodes(Actor(own, DetourEnvConfig(), 1), range(1))
