"""Fill the tables of docs/findings.md, in both languages, from the results of benchmarks/metaworld.

usage: python scripts/findings_tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
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


def metaworld(results: Iterable[dict[str, Any]]) -> str:
    """Success of every task and policy of the benchmark's sizes, untrained steps beside the student."""
    rows = [
        (
            "size",
            "task",
            "sees",
            "paired episodes",
            "teacher at 10, %",
            "untrained at 2: points",
            "untrained at 1: points",
            "student at 1: points",
        )
    ]
    for result in results:
        groups = [row["group"] for row in result["success"] if row["policy"] == "student"]
        several = len(groups) > 1
        groups = [group for group in groups if "/" not in group and not (several and group == "all")]
        for group in groups:
            found = {
                (row["policy"], row["num_steps"]): row
                for row in result["success"]
                if row["group"] == group and (row["solver"], row.get("grid_power", 1)) == ("euler", 1)
            }
            deployed = found["teacher", 10]
            task = result["settings"]["tasks"][0] if group == "all" else group
            sees = "positions" if result["settings"]["obs"] == "pixels_full" else "picture"
            rows.append(
                (
                    result["size"],
                    task,
                    sees,
                    str(deployed["episodes"]),
                    f"{100 * deployed['rate']:.1f}",
                    *(_points(found.get(key)) for key in (("teacher", 2), ("teacher", 1), ("student", 1))),
                )
            )
    return _table(rows)


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
            "gap to that of one untrained step",
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


def read(files: Iterable[Path]) -> list[dict[str, Any]]:
    """Result files, in the order of their names."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(files)]


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


def tables() -> dict[str, str]:
    """The tables by the names of their marks."""
    return {"metaworld": metaworld(read(METAWORLD.glob("*.json"))), "recordings": recordings(METAWORLD)}


if __name__ == "__main__":
    for document in FINDINGS:
        for name, table in tables().items():
            put_between(document, name, table)
