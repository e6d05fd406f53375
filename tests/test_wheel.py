"""The wheel holds all that runs without this repository: demo, teacher, runner, tables of options."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from script_files import ROOT

PACKAGES = (
    "src/chordflow",
    "packages/chordflow_runtime/src/chordflow_runtime",
    "packages/lerobot_env_detour/src/lerobot_env_detour",
)


def test_the_wheel_holds_every_file_of_its_packages_and_the_command(tmp_path: Path) -> None:
    # Built as pip does, but without the network.
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
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
