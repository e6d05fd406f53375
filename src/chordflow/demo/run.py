"""The demo: the main job on the tiny teacher, then paired episodes and a moving picture.

OUTPUT/vlm, OUTPUT/teacher    the teacher, shipped or made from scratch
OUTPUT/dataset                the expert's demonstrations
OUTPUT/student                what `chordflow reflow` leaves
OUTPUT/results.json, figures, demo.gif
"""

from __future__ import annotations

import dataclasses
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
import torch
from draccus.utils import deflatten
from lerobot_env_detour import DetourEnv, DetourEnvConfig

from chordflow.console import bar, say
from chordflow.demo.record import DATASET_REPO_ID, record_demonstrations
from chordflow.demo.teacher import DATASET_FOLDER, make_teacher, place_teacher
from chordflow.errors import UserError
from chordflow.evaluation.gap import Modes
from chordflow.evaluation.modes import MIN_ENDPOINTS
from chordflow.experiments.reflow import RESULTS, ReflowJobConfig, reflow
from chordflow.policies import FlowPolicy, load_flow_policy
from chordflow.policies.sampling import Sampler, seeded_noise
from chordflow.report.gif import save_side_by_side
from chordflow.results.schema import FlipCheck, PolicyRole, Results
from chordflow.results.verdict import verdict
from chordflow.rollouts import Episode, chunk_noise, paired, run_episodes, success_rows

ANY_WAY = "go any way"
CHECKED = 200
"""Episodes for which flips are compared with sides."""

SHOWN = 3
"""Episodes in the moving picture."""


@dataclass
class DemoConfig:
    """Run the whole job on a tiny SmolVLA that has to go round an obstacle, by the left or the right.

    Attributes:
        output_dir: new folder for everything.
        from_scratch: record the demonstrations and train the teacher too, by what made the shipped one.
        demonstrations: episodes to record for the shipped teacher's dataset; from scratch takes the recipe's.
        steps: optimiser steps of the student.
        episodes: paired episodes of "go any way"; half as many run under each of "go left" and "go right".
        seed: of training.
    """

    output_dir: Path
    from_scratch: bool = False
    demonstrations: int = 400
    steps: int = 2_000
    episodes: int = 500
    seed: int = 1000

    def __post_init__(self) -> None:
        for name, least in (("demonstrations", 10), ("steps", 1), ("episodes", 2)):
            if getattr(self, name) < least:
                raise UserError(f"{name}={getattr(self, name)}: give at least {least}.")


def run_demo(config: DemoConfig) -> Results:
    """Runs the demo and leaves its pictures and results.

    Raises:
        UserError: if the output folder exists.
    """
    started = time.perf_counter()
    output = config.output_dir
    if output.exists():
        raise UserError(f"output_dir={output} exists already; name a new folder.")
    output.mkdir(parents=True)
    teacher_dir = _teacher_and_data(config)
    options = reflow_options(config, teacher_dir)
    command = ["chordflow", "reflow", *(f"--{name}={value}" for name, value in options.items())]
    say(shlex.join(command))
    job = draccus.decode(ReflowJobConfig, deflatten(options, sep="."))
    finished = reflow(job, command)

    teacher = load_flow_policy(teacher_dir, device="cpu")
    student = load_flow_policy(finished.student, device="cpu", field="student")
    steps = finished.results.teacher_num_steps
    arms = [
        ("teacher", teacher, steps),
        ("teacher", teacher, 2),
        ("teacher", teacher, 1),
        ("student", student, 1),
    ]
    runs = {
        (name, n): _episodes(policy, n, config.episodes, f"{name}, {n} step{'s' * (n > 1)}") for name, policy, n in arms
    }
    deployed = runs["teacher", steps]
    success = [
        row
        for (name, n), episodes in runs.items()
        for row in success_rows(episodes, name, None if episodes is deployed else deployed)
    ]
    checks = [
        flip_check(teacher, deployed, steps, name, policy, n, runs[name, n])
        for name, policy, n in arms
        if (name, n) in (("student", 1), ("teacher", 2))
    ]
    results = dataclasses.replace(finished.results, success=success, flip_checks=checks)
    results = dataclasses.replace(results, verdict=verdict(results))
    results.save(output / RESULTS)
    _moving_picture(output / "demo.gif", runs, steps)
    say(f"The demo took {time.perf_counter() - started:.0f} s.")
    return results


def reflow_options(config: DemoConfig, teacher_dir: Path) -> dict[str, Any]:
    """The main job's options; what differs from its defaults differs because the teacher is tiny."""
    return {
        "teacher.path": str(teacher_dir),
        "dataset.repo_id": DATASET_REPO_ID,
        "dataset.root": str(config.output_dir / DATASET_FOLDER),
        "output_dir": str(config.output_dir / "student"),
        "device": "cpu",
        "steps": config.steps,
        "optimizer.lr": 1e-3,
        "num_workers": 0,
        "seed": config.seed,
    }


def flip_check(
    teacher: FlowPolicy,
    deployed: list[Episode],
    deployed_steps: int,
    name: PolicyRole,
    policy: FlowPolicy,
    num_steps: int,
    episodes: list[Episode],
) -> FlipCheck:
    """Compares flips of the first chunk with the sides on which the obstacle is passed.

    The modes of a start are clusters of the teacher's endpoints from 16 noises of their own; the chunk in
    question is the one that both policies began the paired episode with.

    Args:
        teacher: as deployed.
        deployed: its episodes.
        deployed_steps: its steps.
        name: of the other policy.
        policy: the other policy.
        num_steps: its steps.
        episodes: its episodes, on the same seeds.
    """
    pairs = [(a, b) for a, b in paired(deployed, episodes) if a.task == ANY_WAY][:CHECKED]
    pairs = [(a, b) for a, b in pairs if "none" not in (a.side, b.side)]
    flips = other = agree = 0
    env = DetourEnv(instruction=ANY_WAY)
    for first, second in pairs:
        context = teacher.encode(teacher.preprocess(_observation(env, first.seed)))
        noises = [seeded_noise(teacher, first.seed, "modes", k) for k in range(MIN_ENDPOINTS)]
        noise = torch.stack([*noises, chunk_noise(teacher, first.seed, 0)])
        ends = Sampler(teacher, deployed_steps)(context.repeat(len(noise)), noise)
        mine = Sampler(student, 1)(
            student.encode(student.preprocess(_observation(env, first.seed))), noise[-1:]
        )
        modes = Modes(ends[None], teacher.chunk.action_dim)
        flip = bool(modes.labels(mine[None])[0, 0] != modes.labels(ends[None, -1:])[0, 0])
        changed = first.side != second.side
        flips, other, agree = flips + flip, other + changed, agree + (flip == changed)
    return FlipCheck(name, num_steps, episodes=len(pairs), flips=flips, other_side=other, agree=agree)


def _teacher_and_data(config: DemoConfig) -> Path:
    if config.from_scratch:
        with bar("demonstrations") as recording, bar("teacher") as training:
            return make_teacher(
                config.output_dir, record_progress=recording.update, train_progress=training.update
            )
    teacher_dir = place_teacher(config.output_dir)
    with bar("demonstrations") as progress:
        record_demonstrations(
            config.output_dir / DATASET_FOLDER, config.demonstrations, progress=progress.update
        )
    return teacher_dir


def _episodes(policy: FlowPolicy, num_steps: int, count: int, name: str) -> list[Episode]:
    """`count` episodes of "go any way" and half as many of each side, the same seeds for every policy."""
    plan = [(ANY_WAY, range(count)), ("go left", range(10**4, 10**4 + count // 2)),
            ("go right", range(2 * 10**4, 2 * 10**4 + count // 2))]  # fmt: skip
    total = sum(len(seeds) for _, seeds in plan)
    episodes: list[Episode] = []
    done = 0
    with bar(f"episodes of the {name}") as progress:

        def count_up(_episode: Episode) -> None:
            nonlocal done
            done += 1
            progress.update(done, total)

        for instruction, seeds in plan:
            episodes += run_episodes(
                policy,
                DetourEnvConfig(instruction=instruction),
                list(seeds),
                num_steps=num_steps,
                batch_size=64,
                record_frames=list(seeds)[:SHOWN] if instruction == ANY_WAY else (),
                progress=count_up,
            )
    return episodes


def _moving_picture(path: Path, runs: dict[tuple[str, int], list[Episode]], steps: int) -> None:
    """The same starts side by side, the first ones by seed: the picture shows the run, not a choice from it."""
    columns = {
        f"teacher, {steps} steps": runs["teacher", steps],
        "teacher, 1 step": runs["teacher", 1],
        "student, 1 step": runs["student", 1],
    }
    chosen = {label: [e for e in run if e.frames is not None] for label, run in columns.items()}
    save_side_by_side(
        {label: [list(e.frames) for e in episodes] for label, episodes in chosen.items()},  # type: ignore[arg-type]
        path,
        outcomes={label: [e.success for e in episodes] for label, episodes in chosen.items()},
        # The environment renders at 256 x 256 already.
        scale=1,
    )


def _observation(env: DetourEnv, seed: int) -> dict[str, Any]:
    """The first observation of an episode as the checkpoint's preprocessor takes it."""
    observation, _ = env.reset(seed=seed)
    pixels = torch.from_numpy(observation["pixels"]).permute(2, 0, 1)[None].float() / 255
    state = torch.from_numpy(observation["agent_pos"])[None]
    return {"observation.image": pixels, "observation.state": state, "task": [ANY_WAY]}
