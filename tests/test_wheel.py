"""The wheel holds all that runs without this repository: demo, teacher, runner, tables of options."""

import os
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import pytest

from script_files import ROOT

PACKAGES = (
    "src/chordflow",
    "packages/chordflow_runtime/src/chordflow_runtime",
    "packages/lerobot_env_detour/src/lerobot_env_detour",
)


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


def test_the_wheel_holds_every_file_of_its_packages_and_the_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    (entry_points,) = (text for name, text in held.items() if name.endswith("dist-info/entry_points.txt"))
    assert "chordflow = chordflow.cli.main:main" in entry_points.decode()
    sources = {
        file.relative_to((ROOT / package).parent).as_posix(): file.read_bytes()
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name: data for name, data in held.items() if ".dist-info/" not in name} == sources


def python(folder: Path, *arguments: str, executable: str = sys.executable) -> subprocess.Popen[str]:
    """Python with what is installed, less what is of this repository: .pth files are not followed."""
    paths = os.pathsep.join([str(folder), sysconfig.get_path("purelib")])
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [executable, "-S", *arguments], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


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
