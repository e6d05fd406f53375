"""What the lowest floors may import: the contracts name what is forbidden, these name all that is allowed."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "src" / "chordflow"


def imported(folder: Path) -> set[str]:
    """The top-level names of all that the modules under `folder` import from outside the standard library."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    assert names, f"{folder} holds no module"
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        (SOURCES / "flow", {"chordflow", "torch"}),
        (SOURCES / "results", {"chordflow", "numpy", "pydantic", "pydantic_core", "scipy", "statsmodels"}),
        (
            ROOT / "packages" / "chordflow_runtime" / "src",
            {"chordflow_runtime", "numpy", "onnxruntime", "tokenizers"},
        ),
        (
            ROOT / "packages" / "lerobot_env_detour" / "src",
            {"gymnasium", "lerobot", "lerobot_env_detour", "numpy"},
        ),
        (
            ROOT / "packages" / "lerobot_env_metaworld_light" / "src",
            {"gymnasium", "lerobot", "lerobot_env_metaworld_light", "metaworld", "mujoco", "numpy"},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_a_lowest_floor_imports_only_what_it_may(folder: Path, allowed: set[str]) -> None:
    assert imported(folder) <= allowed


def test_whatever_chordflow_imports_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    providers = packages_distributions()
    # The demo's environment comes with the repository, not from a registry; PEFT by the extra of its name.
    assert project["optional-dependencies"]["peft"]
    for name in imported(SOURCES) - {"chordflow", "lerobot_env_detour", "peft"}:
        of = {canonicalize_name(provider) for provider in providers[name]}
        assert of & declared, f"{name} is imported, but {' or '.join(of)} is not among the dependencies"
