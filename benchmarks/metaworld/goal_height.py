"""Does success at `reach-round-wall` depend on how high the goal hangs? From the episodes of a run.

    python benchmarks/metaworld/goal_height.py --size=small --output_dir=outputs/metaworld_small --publish

The episodes are those that `chordflow evaluate` left in OUTPUT/evaluate; the goals are those of their seeds. Episodes
are parted into quarters by height. The result goes to OUTPUT/goal_height.json, and with --publish to
benchmarks/metaworld/results/goal_height/ and README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from results import DOCUMENT, RESULTS
from sizes import SIZES, Size

from chordflow.errors import UserError
from chordflow.results.files import put_between, write_whole
from lerobot_env_metaworld_light import LightMetaworldConfig

TASK = "reach-round-wall"
ARMS = {
    "teacher, ten steps": "teacher-10-euler",
    "teacher, one step": "teacher-1-euler",
    "student, one step": "student-1-euler",
}
"""Whose episodes are looked at, and their folders."""
QUARTERS = 4


def heights(size: Size, seeds: Sequence[int]) -> list[float]:
    """The goals' heights in metres, by the seeds of episodes."""
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    config = LightMetaworldConfig(
        task=TASK, obs=size.obs, image_size=size.image_size, episode_length=size.episode_length
    )
    env = LightMetaworldEnv(TASK, **config.gym_kwargs)
    found = []
    for seed in seeds:
        env.reset(seed=seed)
        found.append(float(env.state[-1]))
    env.close()
    return found


def solved(folder: Path) -> dict[int, bool]:
    """Whether the episode of each seed was solved.

    Raises:
        ValueError: if the folder holds no episodes of the task.
    """
    rows = [
        row
        for file in sorted(folder.glob("*.parquet"))
        for row in pq.read_table(file, columns=["task_group", "seed", "success"]).to_pylist()  # type: ignore[no-untyped-call]
        if row["task_group"] == TASK
    ]
    if not rows:
        raise ValueError(f"{folder} holds no episodes of {TASK}; run the benchmark's size first.")
    return {row["seed"]: row["success"] for row in rows}


def measure(size: Size, output: Path) -> dict[str, Any]:
    """Success by quarters of the goal's height.

    Raises:
        ValueError: if the run has no such episodes.
    """
    arms = {name: solved(output / "evaluate" / "episodes" / folder) for name, folder in ARMS.items()}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in arms.values())))
    height = np.array(heights(size, seeds))
    quarters = np.array_split(np.argsort(height, kind="stable"), QUARTERS)
    return {
        "episodes": len(seeds),
        "quarters": [
            {"low": float(height[part].min()), "high": float(height[part].max()), "episodes": len(part)}
            for part in quarters
        ],
        "success": {
            name: [float(np.mean([by_seed[seeds[i]] for i in part])) for part in quarters]
            for name, by_seed in arms.items()
        },
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """What was measured of each size, in markdown."""
    lines = [
        "| size | policy | lowest quarter of goals, success % | second | third | highest |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for size, result in found.items():
        for name, rates in result["success"].items():
            lines.append(f"| {size} | {name} | " + " | ".join(f"{100 * rate:.0f}" for rate in rates) + " |")
    low = min(result["quarters"][0]["low"] for result in found.values())
    high = max(result["quarters"][-1]["high"] for result in found.values())
    return "\n".join([*lines, "", f"Goals hang {100 * low:.0f} to {100 * high:.0f} cm high."])


def published() -> dict[str, dict[str, Any]]:
    """What is published, by size."""
    return {
        file.stem: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((RESULTS / "goal_height").glob("*.json"))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Looks at the episodes of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--size", choices=[name for name in SIZES if TASK in SIZES[name].tasks], default="smoke"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/metaworld"))
    parser.add_argument("--publish", action="store_true", help="write the result to results/ and README.md")
    options = parser.parse_args(arguments)
    try:
        result = measure(SIZES[options.size], options.output_dir)
        data = f"{json.dumps(result, indent=2)}\n".encode()
        write_whole(options.output_dir / "goal_height.json", data)
        if options.publish:
            (RESULTS / "goal_height").mkdir(parents=True, exist_ok=True)
            write_whole(RESULTS / "goal_height" / f"{options.size}.json", data)
            put_between(DOCUMENT, "goal_height", table(published()))
    except (UserError, ValueError, RuntimeError, OSError) as error:
        print(f"goal_height.py: {error}", file=sys.stderr)
        return 2
    print(table({options.size: result}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
