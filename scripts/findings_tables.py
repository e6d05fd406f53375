"""Fill docs/studies.md and docs/findings.md, in both languages, with what the studies and benchmarks measured.

usage: python scripts/findings_tables.py [NAME STUDY.JSON]

With a name (init, rounds, and each with _metaworld or _rates behind it) and a file it is copied to
docs/studies/NAME.json first.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from chordflow.reporting.init_study_table import markdown as init_markdown
from chordflow.reporting.rounds_table import markdown as rounds_markdown
from chordflow.results.compare_summary import Spread
from chordflow.results.files import put_between
from chordflow.results.init_study import InitStudy
from chordflow.results.init_study_summary import gap, level, loss, rates, reached, told_gap
from chordflow.results.rounds_study import RoundsStudy
from chordflow.results.rounds_summary import (
    curvature_of,
    gap_of,
    judged,
    modes_at_one,
    over_seeds,
    spread_at_one,
)
from chordflow.results.rounds_summary import success as success_of_round

ROOT = Path(__file__).resolve().parents[1]
STUDIES = ROOT / "docs" / "studies"
DOCUMENT = ROOT / "docs" / "studies.md"
FINDINGS = (ROOT / "docs" / "findings.md", ROOT / "docs" / "findings.zh.md")
METAWORLD = ROOT / "benchmarks" / "metaworld" / "results"
RECORDINGS = {
    "earlier/stale_pictures": "the episode before",
    "earlier/undisturbed": "this one",
    "earlier/shorter_student": "this one",
    ".": "this one",
}
"""Folders of runs of the benchmark, in their order, and what the first picture of an episode showed in them."""
TOLD_CURVATURES = (30, 5, 1)
"""Percent: before, after the first and after the second round, as it is told."""


def studies() -> dict[str, InitStudy | RoundsStudy]:
    """The published studies, by name."""
    found: dict[str, InitStudy | RoundsStudy] = {}
    for file in sorted(STUDIES.glob("*.json")):
        kind = InitStudy if file.stem.startswith("init") else RoundsStudy
        found[file.stem] = kind.load(file)
    return found


def whole(study: InitStudy | RoundsStudy) -> str:
    """All that a study measured, for docs/studies.md."""
    return (init_markdown(study) if isinstance(study, InitStudy) else rounds_markdown(study)).rstrip()


def told(study: InitStudy | RoundsStudy) -> str:
    """What is told, beside what a study measured, for the findings."""
    return beginnings(study) if isinstance(study, InitStudy) else rounds(study)


def beginnings(study: InitStudy) -> str:
    """What is told of what a student begins with, beside what was measured."""
    last = study.at[-1]
    episodes = any(checkpoint.success for run in study.runs for checkpoint in run.checkpoints)
    rows = [
        (
            "student begins with",
            "told, %",
            f"gap at one step after {last:,} steps, RMS %",
            "least to largest",
            "loss at the first step",
            "at the last",
            f"steps to {level(study)} (by the median gap)",
            *(["success at one step, %", "least to largest"] if episodes else []),
        )
    ]
    for steps, distance, acted in _untrained(study):
        rows.append(
            (f"untrained, at {steps}", "-", distance, *["-"] * 4, *([acted, "-"] if episodes else [])),
        )
    for arm in study.arms:
        at_end, solved = gap(study, arm, last), rates(study, arm, last)
        within, by_median = reached(study, arm), reached(study, arm, "median")
        rows.append(
            (
                f"`{arm.name}`",
                told_gap(arm.init) or "-",
                _percent(at_end),
                _range(at_end),
                _small(loss(study, arm, study.at[0])),
                _small(loss(study, arm, last)),
                f"{within.text} ({by_median.text})" if within and by_median else "-",
                *([_percent(solved), _range(solved)] if episodes else []),
            )
        )
    return _table(rows)


def rounds(study: RoundsStudy) -> str:
    """What is told of rounds, beside what was measured."""
    episodes = any(run.success for run in study.runs)
    rows = [
        (
            "arm",
            "round",
            "told curvature, %",
            "curvature, %",
            "gap to the first teacher at one step, RMS %",
            "least to largest",
            "spread, %",
            "modes kept, %",
            *(["success at one step, %"] if episodes else []),
            "pays (seeds)",
        )
    ]
    diverse = {row.num_steps: row for row in study.diversity}
    for steps, distance, acted in _untrained(study):
        found = diverse.get(steps)
        first = study.untrained if steps == 1 else None
        rows.append(
            (
                f"untrained, at {steps}",
                "0",
                str(TOLD_CURVATURES[0]) if first else "-",
                f"{100 * first.figures.curvature:.1f}" if first else "-",
                distance,
                "-",
                f"{100 * found.spread:.0f}" if found else "-",
                f"{100 * found.modes_kept:.0f}" if found and found.modes_kept is not None else "-",
                *([acted] if episodes else []),
                "-",
            )
        )
    for arm in study.arms:
        for number in range(1, arm.rounds_of(study.rounds) + 1):
            spread = over_seeds(study, arm, number, gap_of("rms"))
            verdict = judged(study, arm, number)
            solved = success_of_round(study, arm, number)
            is_told = arm.start == "last" and number < len(TOLD_CURVATURES)
            rows.append(
                (
                    f"`{arm.name}`",
                    str(number),
                    str(TOLD_CURVATURES[number]) if is_told else "-",
                    _percent(over_seeds(study, arm, number, curvature_of)),
                    _percent(spread),
                    _range(spread),
                    _percent(over_seeds(study, arm, number, spread_at_one), 0),
                    _percent(over_seeds(study, arm, number, modes_at_one), 0),
                    *([f"{100 * solved.rate:.1f}" if solved else "-"] if episodes else []),
                    f"{'yes' if verdict.gain.pays else 'no'} ({verdict.pays} of {verdict.count})"
                    if verdict
                    else "-",
                )
            )
    return _table(rows)


def _untrained(study: InitStudy | RoundsStudy) -> Iterator[tuple[int, str, str]]:
    """The first teacher at one, two and as many steps as it is deployed at: steps, gap and success, percent."""
    teacher = study.untrained
    if teacher is None:
        return
    acted = {row.num_steps: row for row in teacher.success if row.group == "all"}
    for steps in sorted({1, 2, teacher.num_steps}):
        found, row = teacher.figures.gap(steps), acted.get(steps)
        yield (
            steps,
            f"{100 * found.rms:.1f}" if found else "-",
            f"{100 * row.rate:.1f}" if row else "-",
        )


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


def round_wall(results: Iterable[dict[str, Any]]) -> str:
    """One two-sided task: what more steps of the solver and shorter execution do for the teacher."""
    return _evaluated(
        "actions executed of 16", ((str(r["settings"]["eval"]["n_action_steps"] or 16), r) for r in results)
    )


def more_episodes(results: Iterable[dict[str, Any]]) -> str:
    """Tasks on which 200 episodes do not decide whether the student is within two points."""
    return _evaluated("task", ((r["settings"]["env"]["task"], r) for r in results))


def _evaluated(head: str, named: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """Success of teacher and student in results of `chordflow evaluate`, each under its name."""
    rows = [(head, "policy", "solver steps", "paired episodes", "success, %", "points")]
    for name, result in named:
        shown = [
            r for r in result["success"] if r["group"] == "all" and r["policy"] in ("teacher", "student")
        ]
        shown.sort(key=lambda row: (row["policy"] != "teacher", -row["num_steps"]))
        for row in shown:
            rows.append(
                (
                    name,
                    row["policy"],
                    str(row["num_steps"]),
                    str(row["episodes"]),
                    f"{100 * row['rate']:.1f}",
                    _points(row),
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


def _percent(spread: Spread | None, digits: int = 1) -> str:
    return f"{100 * spread.middle:.{digits}f}" if spread is not None else "-"


def _range(spread: Spread | None) -> str:
    return f"{100 * spread.low:.1f} to {100 * spread.high:.1f}" if spread is not None else "-"


def _small(spread: Spread | None) -> str:
    return f"{spread.middle:.3g}" if spread is not None else "-"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def main() -> None:
    """Copies a study where one is given, and fills the documents."""
    if len(sys.argv) == 3:
        shutil.copyfile(sys.argv[2], STUDIES / f"{sys.argv[1]}.json")
    found = studies()
    for name, study in found.items():
        put_between(DOCUMENT, name, whole(study))
    results, walls, more = (
        read(METAWORLD.glob(files)) for files in ("*.json", "round_wall/*.json", "more_episodes/*.json")
    )
    for document in FINDINGS:
        for name, study in found.items():
            put_between(document, name, told(study))
        put_between(document, "metaworld", metaworld(results))
        put_between(document, "round_wall", round_wall(walls))
        put_between(document, "more_episodes", more_episodes(more))
        put_between(document, "recordings", recordings(METAWORLD))


if __name__ == "__main__":
    main()
