"""What chordflow imports beside what the contracts say."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def test_whatever_chordflow_imports_is_declared() -> None:
    names = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # Of extras those that a part of chordflow imports, and says where they are missing.
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["peft"], *extras["export"]]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    providers = packages_distributions()
    # These come with the repository, and PEFT by LeRobot's extra of that name.
    ours = {"chordflow", "chordflow_runtime", "lerobot_env_detour", "peft"}
    for name in names - ours - sys.stdlib_module_names:
        of = {canonicalize_name(provider) for provider in providers[name]}
        assert of & declared, f"{name} is imported, but {' or '.join(of)} is not among the dependencies"
