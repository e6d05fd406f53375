"""Fill the table of docs/findings.md, in both languages, from the results of benchmarks/metaworld.

usage: python scripts/findings_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chordflow.results.files import put_between

ROOT = Path(__file__).resolve().parents[1]
FINDINGS = (ROOT / "docs" / "findings.md", ROOT / "docs" / "findings.zh.md")
METAWORLD = ROOT / "benchmarks" / "metaworld" / "results"
RECORDINGS = {
    "earlier/stale_pictures": "the episode before",
    "earlier/undisturbed": "this one",
    "earlier/shorter_student": "this one",
    ".": "this one",
}
"""Folders of runs of the benchmark, in their order, and what the first picture of an episode showed in them."""


def recordings(folder: Path) -> str:
    """What first pictures and demonstrations do for the sizes of which there are several runs, in their order.

    Args:
        folder: holds the last runs, and others in folders of it.
    """
    rows = [
        (
            "size",
            "first pictures show",
            "disturbed demonstrations",
            "steps of teacher and student",
            "reach-round-wall: teacher at 10, %",
            "untrained at 1: points",
            "student at 1: points",
            "all tasks, student at 1: points",
            "gap to the deployed teacher, of one untrained step's",
        )
    ]
    for size in ("small", "small_images"):
        for name, shown in RECORDINGS.items():
            file = folder / name / f"{size}.json"
            if not file.exists():
                continue
            result = json.loads(file.read_text(encoding="utf-8"))
            settings = result["settings"]
            success = {
                (row["group"], row["policy"], row["num_steps"]): row
                for row in result["success"]
                if (row["solver"], row.get("grid_power", 1)) == ("euler", 1)
            }
            ratio = next(
                row["ratio_to_untrained"]
                for row in result["gaps"]
                if (row["policy"], row["num_steps"], row["reference"]) == ("student", 1, "deployed")
            )
            low, high = ratio["interval"]["low"], ratio["interval"]["high"]
            rows.append(
                (
                    size,
                    shown,
                    str(settings.get("disturbed", {}).get("reach-round-wall", 0)),
                    f"{settings['train_steps']:,}, {settings['reflow']['steps']:,}",
                    f"{100 * success['reach-round-wall', 'teacher', 10]['rate']:.1f}",
                    _points(success["reach-round-wall", "teacher", 1]),
                    _points(success["reach-round-wall", "student", 1]),
                    _points(success["all", "student", 1]),
                    f"{ratio['value']:.2f} \\[{low:.2f}, {high:.2f}\\]",
                )
            )
    return _table(rows)


def _points(row: dict[str, Any] | None) -> str:
    if row is None or row["versus_teacher"] is None:
        return "-"
    found = row["versus_teacher"]["difference"]
    low, high = found["interval"]["low"], found["interval"]["high"]
    return f"{100 * found['value']:+.1f} \\[{100 * low:+.1f}, {100 * high:+.1f}\\]"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    for document in FINDINGS:
        put_between(document, "recordings", recordings(METAWORLD))
