"""Is a policy undecided between two ways to act? The first chunks of two-sided tasks, at many noises of each start.

At a start the teacher's converged flow carries noises to one mode or to several (`chordflow.evaluation.modes`).
A chunk is undecided where it lies in the middle half of the way from one mode to another: on the line between the
centres of its nearest mode and of the second nearest, more than a quarter of the way.

    python benchmarks/metaworld/first_chunks.py --size=small --output_dir=outputs/metaworld

Shapes: K noises, F features (rows of the chunk times real action dimensions).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from commands import FIRST_SEED, STUDENT
from numpy.typing import NDArray
from sizes import SIZES, TWO_SIDED, Size

from chordflow.evaluation.gap import flatten
from chordflow.evaluation.modes import mode_centres, nearest_mode
from chordflow.policies import Context, FlowPolicy, load_flow_policy
from chordflow.policies.sampling import Sampler, seeded_noise
from chordflow.results.files import write_whole
from chordflow.rollouts.acting import Actor, Request
from lerobot_env_metaworld_light import LightMetaworldConfig

if TYPE_CHECKING:
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

FILE = "first_chunks.json"
NOISES = 48
STARTS = 100
BETWEEN = 0.25
"""Part of the way to the second nearest mode from which on a chunk is undecided; 0.5 is as near to either."""
LEAST_SHARE = 0.05
"""Share of the noises that has to go to a mode, decided, for the mode to be still there."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Acting:
    """Somebody whose first chunks are looked at.

    Attributes:
        policy: `teacher` or `student`.
        solver: as `chordflow.policies.sampling.Sampler` has it.
        num_steps: of the solver.
        grid_power: of the solver.
    """

    policy: str
    solver: str
    num_steps: int
    grid_power: float = 1.0


CONVERGED = Acting("teacher", "adams_bashforth", 32, 1.4)
ACTING = (
    Acting("teacher", "euler", 10),
    Acting("teacher", "euler", 2),
    Acting("teacher", "euler", 1),
    Acting("student", "euler", 1),
    Acting("student", "euler", 2),
)


def undecided(points: Array, centres: Array) -> NDArray[np.bool_]:
    """Which of the points (K, F) lie in the middle half between two of the centres (M, F), M at least 2.

    Returns:
        (K,)
    """
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    first, second = np.argsort(distances, axis=1)[:, :2].T
    way = centres[second] - centres[first]
    along = np.sum((points - centres[first]) * way, axis=1) / np.sum(way**2, axis=1)
    return np.asarray(along > BETWEEN)


def modes_left(points: Array, centres: Array) -> int:
    """At how many of the centres (M, F) the decided ones of the points (K, F) are."""
    decided = points[~undecided(points, centres)]
    if not len(decided):
        return 0
    counts = np.bincount(nearest_mode(decided, centres), minlength=len(centres))
    return int(np.sum(counts >= LEAST_SHARE * len(points)))


def measure(size: Size, output: Path) -> dict[str, Any]:
    """First chunks of teacher and student at the starts of the evaluated episodes; also written to `FILE`.

    Args:
        size: of the run.
        output: its folder, with teacher and student.

    Returns:
        For each task how many starts there were and at how many the converged teacher has several modes, and for each
        of `ACTING` the share of chunks that is undecided there and the share of starts at which it has all modes.
    """
    policies = {
        "teacher": load_flow_policy(output / "teacher", device=size.device),
        "student": load_flow_policy(output / STUDENT, device=size.device),
    }
    tasks = {task: _task(task, size, policies) for task in size.tasks if task in TWO_SIDED}
    found = {"noises": NOISES, "between": BETWEEN, "least_share": LEAST_SHARE, "tasks": tasks}
    write_whole(output / FILE, (json.dumps(found, indent=2) + "\n").encode())
    return found


def _task(task: str, size: Size, policies: dict[str, FlowPolicy]) -> dict[str, Any]:
    config = LightMetaworldConfig(task=task, obs=size.obs, image_size=size.image_size)
    # Meta-World is imported only where it is used, so that what the machine lacks can be told first.
    from lerobot_env_metaworld_light.env import LightMetaworldEnv

    env = LightMetaworldEnv(task, **config.gym_kwargs)
    actors = {name: Actor(policy, config, 1) for name, policy in policies.items()}
    found: dict[Acting, list[tuple[float, float]]] = {acting: [] for acting in ACTING}
    starts = min(STARTS, size.episodes)
    for seed in range(FIRST_SEED, FIRST_SEED + starts):
        observation, _ = env.reset(seed=seed)
        request = Request(seed, 0, 0, (observation,), env.task_description)
        contexts = {name: _context(actor, request, env) for name, actor in actors.items()}
        noise = torch.stack(
            [seeded_noise(policies["teacher"], seed, "first_chunks", number) for number in range(NOISES)]
        )
        centres = mode_centres(_endpoints(CONVERGED, policies, contexts, noise))
        if len(centres) < 2:
            continue
        for acting in ACTING:
            points = _endpoints(acting, policies, contexts, noise)
            found[acting].append(
                (float(undecided(points, centres).mean()), float(modes_left(points, centres) == len(centres)))
            )
    env.close()
    several = len(found[ACTING[0]])
    rows = []
    for acting, shares in found.items():
        between, kept = np.mean(shares, axis=0).tolist() if several else (None, None)
        rows.append(dataclasses.asdict(acting) | {"undecided": between, "all_modes": kept})
    return {"starts": starts, "several_modes": several, "rows": rows}


@torch.no_grad()
def _context(actor: Actor, request: Request, env: LightMetaworldEnv) -> Context:
    policy = actor.policy
    return policy.encode(policy.preprocess(actor.observe([request], env.observation_space))).repeat(NOISES)


def _endpoints(
    acting: Acting, policies: dict[str, FlowPolicy], contexts: dict[str, Context], noise: torch.Tensor
) -> Array:
    """Endpoints of the noises, (K, F)."""
    policy = policies[acting.policy]
    sampler = Sampler(policy, acting.num_steps, acting.solver, acting.grid_power)
    return flatten(sampler(contexts[acting.policy], noise.to(policy.device)).cpu()[None], policy.chunk)[0]


def table(result: dict[str, Any]) -> list[str]:
    """What was measured, as lines of markdown."""
    lines = [
        "| task | starts with several ways | policy | steps | undecided % | starts with all ways left % |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    for task, found in result["tasks"].items():
        for row in found["rows"]:
            shares = [
                "-" if row[key] is None else f"{100 * row[key]:.0f}" for key in ("undecided", "all_modes")
            ]
            lines.append(
                f"| {task} | {found['several_modes']} of {found['starts']} | {row['policy']} | {row['num_steps']} | "
                + " | ".join(shares)
                + " |"
            )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the first chunks of a run that has a teacher and a student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="smoke")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/metaworld"))
    options = parser.parse_args(arguments)
    print("\n".join(table(measure(SIZES[options.size], options.output_dir))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
