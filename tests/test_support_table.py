"""The tables of policies in README, in both languages, are those of the registry."""

from __future__ import annotations

import runpy
from pathlib import Path

from chordflow.policies.obstacles import OBSTACLES
from chordflow.policies.registry import own_families

ROOT = Path(__file__).parents[1]


def test_readme_says_what_the_registry_has() -> None:
    made = runpy.run_path(str(ROOT / "scripts" / "support_table.py"))
    assert [path.name for path in made["READMES"]] == ["README.md", "README.zh.md"]
    for path in made["READMES"]:
        readme = path.read_text(encoding="utf-8")
        assert readme == made["document"](readme), f"{path.name}: run python scripts/support_table.py"
        rows = {line.split("`")[1] for line in readme.splitlines() if line.startswith("| `")}
        assert rows >= {*own_families(), *(obstacle.family for obstacle in OBSTACLES)}
