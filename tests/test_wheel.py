"""The wheel by itself, without this repository and the distributions that `make setup` installs from it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import gymnasium as gym
import pytest
from lerobot.envs import EnvConfig

ROOT = Path(__file__).parent.parent
ALONE = """
import importlib.metadata as metadata, sys
# What setup installs from the repository, LeRobot would find.
metadata.packages_distributions = lambda: {}
metadata.distributions = lambda **_: iter(())
"""
LEROBOT_FINDS_IT = """
from lerobot.configs.parser import load_plugin
from lerobot.envs import EnvConfig
load_plugin("lerobot_env_detour")
assert "detour" in EnvConfig.get_known_choices()
"""
CHORDFLOW_FINDS_IT = """
from chordflow.rollouts.environments import register_environments
from lerobot.envs import EnvConfig
register_environments()
assert "detour" in EnvConfig.get_known_choices()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as pip does, but without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def python(folder: Path, *arguments: str, executable: str = sys.executable) -> subprocess.Popen[str]:
    """Python with what is installed, less what is of this repository: .pth files are not followed."""
    paths = os.pathsep.join([str(folder), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [executable, "-S", *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def test_the_wheel_holds_the_runner_and_the_demos_environment(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    for name in ("chordflow_runtime", "lerobot_env_detour"):
        for file in (ROOT / "packages" / name / "src" / name).glob("*.py"):
            assert (tmp_path / name / file.name).read_bytes() == file.read_bytes()
    tops = {path.name for path in tmp_path.iterdir() if path.suffix != ".dist-info"}
    assert tops == {"chordflow", "chordflow_runtime", "lerobot_env_detour"}
    # In this process, where LeRobot is imported already and knows the environment.
    for name in [name for name in sys.modules if name.split(".")[0] == "lerobot_env_detour"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(EnvConfig, "register_subclass", lambda name: lambda cls: cls)
    monkeypatch.setattr(gym, "register", lambda *_, **__: None)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("lerobot_env_detour")
    assert Path(module.__file__ or "").is_relative_to(tmp_path)
    observation, _ = module.DetourEnv().reset(seed=0)
    assert observation["pixels"].dtype == "uint8"


@pytest.mark.slow
def test_the_wheel_alone_runs_the_demo_to_its_first_checkpoint(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    purelib = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    command = ["pip", f"--python={tmp_path / 'venv'}", "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for code in (LEROBOT_FINDS_IT, CHORDFLOW_FINDS_IT):
        found = python(Path(purelib), "-c", ALONE + code)
        _, err = found.communicate(timeout=300)
        assert found.returncode == 0, err
    output = tmp_path / "demo" / "student"
    options = [f"--output_dir={output.parent}", "--demonstrations=12", "--steps=3", "--episodes=6"]
    demo = python(Path(purelib), "-m", "chordflow", "demo", *options)
    try:
        began = time.monotonic()
        while not (output / "checkpoints" / "last").exists():
            assert demo.poll() in (None, 0), demo.communicate()
            assert time.monotonic() - began < 900
            time.sleep(0.2)
    finally:
        demo.kill()
        demo.communicate()
    saved = output / "checkpoints" / "last" / "pretrained_model" / "model.safetensors"
    assert saved.stat().st_size > 0
