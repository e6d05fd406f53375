"""What a run of the benchmark leaves: a summary, its table, and whether LeRobot agrees."""

from __future__ import annotations

import dataclasses
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import first_chunks
import pyarrow.parquet as pq
from sizes import TWO_SIDED, Size

RESULTS = Path(__file__).resolve().parent / "results"
DOCUMENT = RESULTS.with_name("README.md")


def summary(name: str, size: Size, output: Path) -> dict[str, Any]:
    """All figures of a run that was made, with its settings and times; no path of this machine.

    Args:
        name: of the size.
        size: what was run.
        output: folder of the run.
    """
    measured = _read(output / "evaluate" / "results.json")
    dataset = _read(output / "dataset" / "meta" / "info.json")
    seconds = _read(output / "seconds.json")
    result = {
        "size": name,
        "settings": json.loads(json.dumps(dataclasses.asdict(size))),
        "versions": {**measured["versions"], **{name: version(name) for name in ("metaworld", "mujoco")}},
        "device": measured["device"],
        "demonstrations": {"episodes": dataset["total_episodes"], "frames": dataset["total_frames"]},
        "seconds": seconds,
        "wall_s": round(sum(stage["wall"] for stage in seconds.values()), 1),
        "cpu_s": round(sum(stage["cpu"] for stage in seconds.values()), 1),
        "verdict": measured["verdict"],
        **{
            name: measured[name] for name in ("held_out", "success", "gaps", "curvature", "latency", "timing")
        },
        "first_chunks": None,
        "lerobot": None,
    }
    if (output / first_chunks.FILE).exists():
        result["first_chunks"] = _read(output / first_chunks.FILE)
    if (output / "lerobot").exists():
        successes = [episode["success"] for episode in _lerobot(output / "lerobot")]
        result["lerobot"] = {
            "episodes": len(successes),
            "successes": sum(successes),
            "differences": agreement(output / "lerobot"),
        }
    return result


def table(result: dict[str, Any], *, two_sided: bool = False) -> str:
    """Success and gap of every policy, as markdown; `two_sided` leaves out the tasks with one right action."""
    gaps = {
        (row["policy"], row["solver"], row["num_steps"]): row["rms"]
        for row in result["gaps"]
        if row["reference"] == "deployed"
    }
    lines = [
        "| episodes | policy | solver steps | success %, 95 % interval | points to the teacher | "
        "gap to the deployed teacher, RMS % |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    groups = {row["group"] for row in result["success"]}
    for row in sorted(result["success"], key=lambda row: (row["group"] != "all", row["group"])):
        # A task of its own name has a row for the name and one for its instruction, with the same episodes.
        if row["group"].partition("/")[0] in groups - {row["group"]}:
            continue
        if two_sided and row["group"] not in ("all", *TWO_SIDED):
            continue
        power = row.get("grid_power", 1)
        name = row["policy"] + (f", {row['solver']}" if (row["solver"], power) != ("euler", 1) else "")
        name += f" (grid {power:g})" if power != 1 else ""
        difference = "-"
        if row["versus_teacher"] is not None:
            found = row["versus_teacher"]["difference"]
            low, high = found["interval"]["low"], found["interval"]["high"]
            difference = f"{100 * found['value']:+.1f} \\[{100 * low:+.1f}, {100 * high:+.1f}\\]"
        gap = gaps.get((row["policy"], row["solver"], row["num_steps"])) if power == 1 else None
        low, high = row["interval"]["low"], row["interval"]["high"]
        lines.append(
            f"| {row['group']} | {name} | {row['num_steps']} | {100 * row['rate']:.1f} "
            f"\\[{100 * low:.1f}, {100 * high:.1f}\\] | {difference} | "
            f"{'-' if gap is None or row['group'] != 'all' else f'{100 * gap:.1f}'} |"
        )
    return "\n".join(lines)


def published(result: dict[str, Any]) -> str:
    """What the document shows of a run: success over all and on two-sided tasks, how it ended, and what it took."""
    minutes, cpu = (f"{result[key] / 60:.0f}" for key in ("wall_s", "cpu_s"))
    lerobot = result["lerobot"]
    lines = [
        table(result, two_sided=True),
        "",
        *_first_chunks(result["first_chunks"]),
        f"{result['demonstrations']['episodes']} demonstrations; {minutes} minutes on {result['device']}, "
        f"{cpu} of them processor time.",
    ]
    if lerobot is not None:
        lines[-1] += (
            f" `lerobot-eval` solved {lerobot['successes']} of {lerobot['episodes']} episodes with the student, and "
            + ("`--noise=lerobot` the same ones." if not lerobot["differences"] else "not the same ones.")
        )
    return "\n".join(lines)


def _first_chunks(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    return [
        f"First chunks at {found['noises']} noises of each start where the teacher's converged flow has several ways "
        "to act; undecided: in the middle half between two of them:",
        "",
        *first_chunks.table(found),
        "",
    ]


def agreement(folder: Path) -> list[str]:
    """In which of the student's episodes lerobot-eval and chordflow with LeRobot's noise differ; empty if in none.

    Args:
        folder: holds `stock/eval_info.json` and what `chordflow evaluate` left in `chordflow/`.
    """
    stock, own = _lerobot(folder), _chordflow(folder)
    if len(stock) != len(own):
        return [f"{len(stock)} episodes by lerobot-eval, {len(own)} by chordflow"]
    return [
        f"{theirs['task']}, episode {number}: {theirs['success']}, {theirs['sum_reward']:.6g} by lerobot-eval; "
        f"{ours['success']}, {ours['sum_reward']:.6g} by chordflow"
        for number, (theirs, ours) in enumerate(zip(stock, own, strict=True))
        if theirs["success"] != ours["success"]
        or not math.isclose(theirs["sum_reward"], ours["sum_reward"], rel_tol=1e-5, abs_tol=1e-5)
    ]


def _lerobot(folder: Path) -> list[dict[str, Any]]:
    tasks = sorted(
        _read(folder / "stock" / "eval_info.json")["per_task"],
        key=lambda task: (task["task_group"], task["task_id"]),
    )
    return [
        {"task": task["task_group"], "success": bool(success), "sum_reward": reward}
        for task in tasks
        for success, reward in zip(task["metrics"]["successes"], task["metrics"]["sum_rewards"], strict=True)
    ]


def _chordflow(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in sorted((folder / "chordflow" / "episodes").glob("student-*/*.parquet")):
        columns = ["task_group", "task_id", "seed", "success", "sum_reward"]
        rows += pq.read_table(file, columns=columns).to_pylist()
    return sorted(rows, key=lambda row: (row["task_group"], row["task_id"], row["seed"]))


def _read(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result
