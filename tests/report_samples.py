"""Results as a run on the demo's task could have them: drawn, not measured, but with the right shapes."""

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from chordflow.results.actions import (
    ChunkTime,
    CurvatureRow,
    GapRow,
    HeldOut,
    Latency,
    Memory,
    ObservationSpread,
    PolicyName,
    Reference,
    TrajectoryRow,
    WideObservation,
)
from chordflow.results.episodes import (
    Clip,
    DelayRow,
    MotionRow,
    Rollouts,
    SequentialRow,
    SuccessRow,
    TimingRow,
)
from chordflow.results.schema import CouplingSummary, Finding, LossCurve, PolicyInfo, Results
from chordflow.results.sequential import SequentialDecision
from chordflow.results.statistics import Estimate, Interval, NonInferiority, PairedSuccess, Percentiles

VERSIONS = {"python": "3.12.3", "torch": "2.11.0", "lerobot": "0.6.1", "chordflow": "0.1.0"}
GROUPS = {"all": 500, "go any way": 250, "go left": 125, "go right": 125}


def gap(
    policy: PolicyName, steps: int, reference: Reference, rms: float, median: float = 0.0, **changes: Any
) -> GapRow:
    """An Euler gap row; the median is four fifths of the RMS unless given."""
    row = GapRow(
        policy, "euler", steps, steps, reference, 10 if reference == "deployed" else 100,
        rms, median or 0.8 * rms, 0.016, 41 * rms, 3 * rms, 200, 3200,
    )  # fmt: skip
    return replace(row, **changes)


def ratio(value: float, low: float, high: float) -> Estimate:
    return Estimate(value, Interval(low, high))


def success(
    policy: PolicyName, steps: int, rate: float, versus: tuple[float, float, float] | None, group: str = "all",
    episodes: int = 500,
) -> SuccessRow:  # fmt: skip
    """A success row; ``versus`` is the paired difference to the teacher and its interval."""
    paired = None
    if versus is not None:
        won = 20 + max(0, round(versus[0] * episodes))
        lost = won - round(versus[0] * episodes)
        paired = PairedSuccess(Estimate(versus[0], Interval(*versus[1:])), 0.2, won, lost, episodes)
    return SuccessRow(policy, "euler", steps, group, round(rate * episodes), episodes, paired)


def curvature(policy: PolicyName, value: float) -> CurvatureRow:
    times = [1 - i / 100 for i in range(100)]
    return CurvatureRow(policy, 100, 800, value**2, value, value**2, value, times, [value**2] * 100, [value])


def trajectories(seed: int = 0) -> list[TrajectoryRow]:
    """Arcs of a teacher to one of two modes, and the student's nearly straight ways to the same ends."""
    draw = np.random.default_rng(seed)
    t = np.linspace(0, 1, 101)
    rows = []
    for observation in range(3):
        for _ in range(5):
            start = draw.normal(size=2) * 2.2
            side = np.sign(start[1] + 0.2)
            end = np.array([4.5 - observation, 2.4 * side]) + draw.normal(size=2) * 0.25
            chord = np.outer(1 - t, start) + np.outer(t, end)
            bend = np.outer(np.sin(np.pi * t) * (1 - 0.6 * t), [0.4, -1.3 * side])
            for policy, size in (("teacher", 1.0), ("student", 0.12)):
                x, y = (chord + size * bend).T
                rows.append(TrajectoryRow(policy, observation, x.tolist(), y.tolist()))
    return rows


def sample(**changes: Any) -> Results:
    """Results with everything in them."""
    gaps = []
    near = {1: (0.231, 0.091), 2: (0.134, 0.082), 4: (0.068, 0.075), 10: (0.0, 0.071)}
    for steps, (untrained, student) in near.items():
        ends = [share * student / untrained if untrained else 0.0 for share in (1, 0.85, 1.15)]
        own = ratio(*ends) if untrained else None
        gaps += [
            gap("teacher", steps, "deployed", untrained, flip_rate=untrained / 4),
            gap("student", steps, "deployed", student, student / 2.1, ratio_to_untrained=own),
        ]
    far = {1: (0.256, 0.099), 2: (0.166, 0.088), 4: (0.103, 0.081), 10: (0.043, 0.078)}
    gaps += [gap("teacher", steps, "converged", rms) for steps, (rms, _) in far.items()]
    gaps += [gap("student", steps, "converged", rms, rms / 2.1) for steps, (_, rms) in far.items()]
    gaps += [gap("teacher", 1, "deployed", 0.164, solver="midpoint", nfe=2)]
    gaps += [gap("teacher", 1, "converged", 0.182, solver="midpoint", nfe=2)]
    acts = [("teacher", 10, 0.922, None), ("teacher", 2, 0.858, (-0.064, -0.092, -0.036)),
            ("teacher", 1, 0.712, (-0.21, -0.25, -0.17)), ("student", 1, 0.91, (-0.012, -0.03, 0.006))]  # fmt: skip
    rows = [
        success(policy, steps, 0.99 if group.startswith(("go l", "go r")) else rate, versus, group, episodes)
        for group, episodes in GROUPS.items()
        for policy, steps, rate, versus in acts
    ]
    value = Results(
        command=["chordflow", "reflow", "--teacher.path=outputs/teacher", "--steps=600"], settings={"steps": 600},
        versions=VERSIONS, device="a processor with two cores", seeds={"training": 0}, teacher="outputs/teacher",
        student="outputs/student", teacher_num_steps=10, held_out=HeldOut([0, 1, 2], 200, 16, False),
        curvature=[curvature("teacher", 0.15), curvature("student", 0.045)], gaps=gaps,
        latency=Latency(0.009, 0.004, 1, 50, 10, 1), success=rows, trajectories=trajectories(),
        trajectory_axes=[0.61, 0.22], couplings=CouplingSummary(2048, 4, "midpoint", 10, 61_000_000),
        loss=LossCurve([*range(10, 610, 10)], [0.001 + 0.02 * 0.98**i for i in range(0, 600, 10)]), training_s=58.0,
    )  # fmt: skip
    return replace(value, **changes)


# ---- What diagnose and evaluate write -------------------------------------------------------------------


def curved(policy: PolicyName, value: float) -> CurvatureRow:
    """Curvature that grows towards the action, by time and dimension, with an interval."""
    times = [1 - i / 100 for i in range(100)]
    profile = np.array([0.3 + 3 * (1 - t) ** 6 for t in times])
    weight = np.array([0.5, 0.3, 0.15, 0.05])
    grid = np.outer(profile / profile.mean(), weight) * value**2
    by_dim = [*(grid.mean(0)).tolist(), *[1e-4] * 28]
    return CurvatureRow(
        policy, 100, 800, value**2, value, 2 * value**2, 1.2 * value, times, grid.sum(1).tolist(), by_dim,
        grid.tolist(), Interval(0.9 * value, 1.1 * value),
    )  # fmt: skip


def gaps_of(policy: PolicyName, size: float) -> list[GapRow]:
    """Gaps at 1 to 10 steps by two solvers to both references, with intervals."""
    rows = []
    for solver, order, cost in (("euler", 1.0, 1), ("midpoint", 1.6, 2)):
        for steps in (1, 2, 3, 4, 5, 8, 10):
            if steps * cost > 10:
                continue
            for reference, far in (("deployed", 0.0), ("converged", 0.02)):
                same = (policy, solver, steps, reference) == ("teacher", "euler", 10, "deployed")
                rms = 0.0 if same else size / (steps * cost) ** order + far
                interval = None if same else Interval(0.85 * rms, 1.2 * rms)
                more: dict[str, Any] = {"solver": solver, "nfe": steps * cost, "interval": interval}
                rows.append(gap(policy, steps, reference, rms, **more))
    return rows


def picture_of(red: int, size: int = 48) -> str:
    """A small PNG in base64."""
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    across = np.tile(ramp, (size, 1))
    pixels = np.stack([np.full((size, size), red, np.uint8), across, across.T], -1)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_clip(path: Path, frames: int = 6) -> None:
    """A moving picture of three columns."""
    pictures = []
    for index in range(frames):
        pixels = np.full((80, 246, 3), 235, np.uint8)
        for column in range(3):
            left = column * 82 + 8 + index * 8
            pixels[20:40, left : left + 14] = ((0, 114, 178), (120, 120, 120), (213, 94, 0))[column]
        pictures.append(Image.fromarray(pixels))
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=120, loop=0)


def latency_with_percentiles(encode_s: float, step_s: float, student_num_steps: int) -> Latency:
    def around(middle: float) -> Percentiles:
        return Percentiles(middle, 1.08 * middle, 1.15 * middle, 1.6 * middle)

    chunks = [ChunkTime(n, around(encode_s + n * step_s)) for n in (1, 2, 3, 4, 5, 8, 10)]
    parts = (
        around(encode_s),
        around(step_s),
        chunks,
        0.0021,
        Memory(906_712_320, 1_204_000_000, "accelerator"),
    )
    return Latency(encode_s, step_s, 1, 50, 10, student_num_steps, *parts)


def diagnosis(**changes: Any) -> Results:
    """What diagnose writes of a teacher alone."""
    draw = np.random.default_rng(0)
    spreads = []
    for index in range(200):
        modes = 1 + int(index % 4 == 0) + int(index % 40 == 0)
        spread = float(draw.gamma(4, 0.03)) + (0.5 if modes > 1 else 0)
        task = ("go any way", "go left", "go right")[index % 3]
        shares = [[1.0], [0.6, 0.4], [0.5, 0.3, 0.2]][modes - 1]
        spreads.append(ObservationSpread(index, index // 5, 7 * (index % 5), task, spread, modes, shares))
    widest = []
    pictures = {"observation.images.top": picture_of(40), "observation.images.wrist": picture_of(200)}
    for row in sorted(spreads, key=lambda row: -row.spread)[:4]:
        labels = draw.integers(0, row.modes, 64).tolist()
        x = [6.0 * mode + float(noise) for mode, noise in zip(labels, draw.normal(size=64), strict=True)]
        y = draw.normal(size=64).tolist()
        widest.append(WideObservation(row.observation, x, y, labels, [0.7, 0.1], pictures))
    value = Results(
        command=["chordflow", "diagnose", "--policy.path=lerobot/smolvla_base", "--dataset.repo_id=lerobot/svla_so101"],
        settings={"dataset": {"repo_id": "lerobot/svla_so101"}, "measure": {"num_observations": 200}},
        versions=VERSIONS, device="NVIDIA L4", seeds={"measuring": 0}, teacher="lerobot/smolvla_base", student=None,
        teacher_num_steps=10, held_out=HeldOut(list(range(40)), 200, 16, True), curvature=[curved("teacher", 0.17)],
        gaps=gaps_of("teacher", 0.29), latency=latency_with_percentiles(0.031, 0.0145, 1),
        trajectories=[row for row in trajectories() if row.policy == "teacher"], trajectory_axes=[0.61, 0.22],
        verdict="One step loses 31 %: distillation can give at most 3.9x here.", kind="diagnose",
        policies=[PolicyInfo("teacher", "lerobot/smolvla_base", "smolvla", 10, 450_046_176, "ab" * 32)],
        findings=[
            Finding("ceiling", "Encoding takes 68 % of a one-step chunk: fewer steps give 3.9x at most."),
            Finding("two-sided", "A quarter of the observations have two or more modes: one averaged action is wrong."),
        ],
        spreads=spreads, widest=widest,
    )  # fmt: skip
    return replace(value, **changes)


NAMED = ("teacher", "student", "one_step_endpoint", "reflow round 2")


def evaluation(**changes: Any) -> Results:
    """What evaluate writes of four named policies with rollouts."""
    rates = {
        ("teacher", 10): 0.93, ("teacher", 1): 0.71, ("student", 1): 0.92, ("one_step_endpoint", 1): 0.88,
        ("reflow round 2", 2): 0.93,
    }  # fmt: skip
    rows: list[SuccessRow] = []
    motion: list[MotionRow] = []
    delays: list[DelayRow] = []
    timing: list[TimingRow] = []
    sequential: list[SequentialRow] = []
    for place, ((policy, steps), rate) in enumerate(rates.items()):
        lower = rate - 0.93
        deployed = (policy, steps) == ("teacher", 10)
        versus = None if deployed else (lower, lower - 0.016, lower + 0.014)
        for group, episodes in (("all", 1000), ("go any way", 500), ("go left", 500)):
            row = success(policy, steps, rate, versus, group, episodes)
            if versus is not None:
                _, low, high = versus
                decision: Any = "non-inferior" if low > -0.02 else "inferior" if high < -0.02 else "undecided"
                needed = 2400 if decision == "undecided" else None
                said = NonInferiority(0.02, decision, low, high, episodes, needed)
                row = replace(row, noninferiority=said)
            rows.append(replace(row, coverage=0.9506))
        for measure, middle in (
            ("jerk", 0.0123), ("path length", 4.2), ("jump", 0.031), ("length", 61.0), ("seconds", 0.8),
        ):  # fmt: skip
            value = middle * (1 + 0.1 * place)
            away = None if deployed else ratio(0.1 * place * middle, -0.01 * middle, 0.2 * middle)
            mean = ratio(value, 0.95 * value, 1.05 * value)
            motion.append(MotionRow(policy, "euler", steps, measure, mean, away, 1000))  # type: ignore[arg-type]
        timing.append(TimingRow(policy, steps, 40.0 / (place + 1), 55.0, 2.0, 1.5))
        decided = "inferior" if rate < 0.9 else "non-inferior"
        decision = SequentialDecision(
            "betting", 0.02, 0.05, 340 + 40 * place, decided, lower - 0.03, lower + 0.03, 45.0, 0.1, 17, True
        )
        sequential += [] if deployed else [SequentialRow(policy, steps, decision)]
    for policy, steps, heavy in (("teacher", 10, -0.01), ("student", 1, -0.2)):
        modes: list[Any] = [
            ("sync", None, 0.0),
            ("async", None, -0.04),
            ("rtc", 10.0, heavy),
            ("rtc", 1.0, -0.01),
        ]
        delays.append(DelayRow(policy, steps, "none", 0, None, 186, 200))
        for mode, weight, cost in modes:
            for delay in (2, 4):
                paired = PairedSuccess(ratio(cost, cost - 0.03, cost + 0.03), 0.3, 4, 6, 200)
                jump, jerk = ratio(0.04, 0.035, 0.05), ratio(0.02, 0.01, 0.03)
                solved = round(200 * (0.93 + cost))
                delays.append(DelayRow(policy, steps, mode, delay, weight, solved, 200, paired, jump, jerk))
    paths = [*trajectories(), *(replace(r, policy=NAMED[2]) for r in trajectories(0)[1::2])]
    value = Results(
        command=["chordflow", "evaluate", "--teacher.path=outputs/teacher", "--student.path=me/student"],
        settings={"margin": 0.02}, versions=VERSIONS, device="NVIDIA L4", seeds={"rollouts": 0, "measuring": 0},
        teacher="outputs/teacher", student="me/student", teacher_num_steps=10,
        held_out=HeldOut([0, 1, 2], 200, 16, False),
        curvature=[curved(name, 0.17 / (1 + i)) for i, name in enumerate(NAMED)],
        gaps=[row for i, name in enumerate(NAMED) for row in gaps_of(name, 0.29 / (1 + i))],
        latency=latency_with_percentiles(0.031, 0.0145, 1), success=rows, trajectories=paths,
        trajectory_axes=[0.61, 0.22],
        verdict="The student at one step is not worse than the teacher by more than 2 points.", kind="evaluate",
        policies=[
            PolicyInfo(name, f"outputs/{name}", "smolvla", 10 if name == "teacher" else 1, 450_046_176, "cd" * 32)
            for name in NAMED
        ],
        findings=[Finding("delay", "At one step the guidance weight of 10 overshoots; 1 does not.")],
        rollouts=Rollouts("detour, any way", "paired", 0, 50, 2, 0.02), motion=motion, delays=delays,
        sequential=sequential, timing=timing,
        clips=[Clip("clip.gif", list(NAMED[:3]), [0, 1, 2], [[True, True, False], [True] * 3, [True, False, True]])],
    )  # fmt: skip
    return replace(value, **changes)


SCRIPT = "<script>alert(1)</script>"
HOSTILE = (
    f"\"'>{SCRIPT}</script><img src=x onerror=alert(2)> {{{{7*7}}}} &lt;b&gt; `x` %{{x}} "
    "\u2028 שלום עולם 図 \u202e"
)


def hostile() -> Results:
    """Every text that comes from files holds markup, quotes, and writing in other directions."""
    base, other = diagnosis(), evaluation()
    third, link = f"third {HOSTILE}", f"https://example.com/<a href=javascript:alert(3)>{SCRIPT}"
    solvers, groups = {"midpoint": f"heun{SCRIPT}"}, {"go left": HOSTILE}
    renamed = {"one_step_endpoint": third, "reflow round 2": link}

    def rename(rows: list[Any]) -> list[Any]:
        return [replace(row, policy=renamed.get(row.policy, row.policy)) for row in rows]

    return replace(
        other, command=["chordflow", "evaluate", f"--student.path={HOSTILE}", "bad\udcff"],
        settings={HOSTILE: {"inner": HOSTILE, "list": [HOSTILE]}, "dataset": {"repo_id": HOSTILE}},
        versions={HOSTILE: HOSTILE}, device=HOSTILE, seeds={HOSTILE: 3}, teacher=HOSTILE, student=f"out/{HOSTILE}",
        verdict=f"All is well. {HOSTILE}", findings=[Finding(HOSTILE, HOSTILE)],
        policies=[replace(row, name=renamed.get(row.name, row.name), path=HOSTILE) for row in other.policies],
        curvature=rename(other.curvature),
        gaps=[replace(row, solver=solvers.get(row.solver, row.solver)) for row in rename(other.gaps)],
        success=[replace(row, group=groups.get(row.group, row.group)) for row in rename(other.success)],
        motion=rename(other.motion), delays=rename(other.delays), timing=rename(other.timing),
        sequential=rename(other.sequential), trajectories=rename(other.trajectories),
        spreads=[replace(row, task=HOSTILE) for row in base.spreads],
        widest=[replace(row, pictures={HOSTILE: picture_of(9), "bad": f"'\"{SCRIPT}"}) for row in base.widest],
        rollouts=Rollouts(HOSTILE, "paired", 0, 1, 0, 0.02),
        clips=[*(Clip(path, [HOSTILE], [0], [[True]]) for path in ("../outside.gif", f"{SCRIPT}.gif")),
               Clip("clip.gif", [HOSTILE, third], [0], [[True, False]])],
    )  # fmt: skip


MAKERS = {"reflow": sample, "diagnosis": diagnosis, "evaluation": evaluation, "hostile": hostile}
"""What makes results of each kind."""
