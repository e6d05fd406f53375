"""Puts what a demo measured into the repository's documents.

    .venv/bin/python scripts/publish_demo.py outputs/demo

Copies results, pictures and table to docs/demo and writes table and verdict into README.md, between
markers. A test holds README.md to docs/demo/results.json.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from chordflow.report.table import markdown
from chordflow.results.schema import Results

ROOT = Path(__file__).parent.parent
TARGET = ROOT / "docs" / "demo"
FILES = (
    "results.json",
    "table.md",
    "demo.gif",
    "figures/trajectories.png",
    "figures/gap.png",
    "figures/loss.png",
)

README_TABLES = ("gap", "success", "noninferiority")
"""All others are in docs/demo/table.md."""


def fill(text: str, results: Results) -> str:
    """README.md with the measured parts in their places.

    Raises:
        ValueError: if a marker is missing.
    """
    parts = {"table": markdown(results, keys=README_TABLES)}
    for name, content in parts.items():
        pattern = re.compile(rf"(<!-- demo {name} -->\n)[^<]*(?:<(?!!--)[^<]*)*(<!-- end -->)")
        text, count = pattern.subn(lambda m, c=content: f"{m[1]}{c}\n{m[2]}", text)
        if count != 1:
            raise ValueError(f"README.md has {count} places for the demo's {name}; it needs one")
    return text


def main(output: Path) -> None:
    """Copies and fills."""
    TARGET.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(output / name, TARGET / Path(name).name)
    readme = ROOT / "README.md"
    readme.write_text(
        fill(readme.read_text(encoding="utf-8"), Results.load(TARGET / "results.json")), encoding="utf-8"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
