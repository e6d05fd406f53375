"""Results as a run on the demo's task could have them: drawn, not measured, but with the right shapes."""

import base64
import functools
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from chordflow.results.actions import (
    ChunkTime,
    CurvatureRow,
    FreeWays,
    GapRow,
    HeldOut,
    Latency,
    PolicyName,
    Reference,
)
from chordflow.results.episodes import Clip, Rollouts, SequentialRow, SuccessRow
from chordflow.results.schema import CouplingSummary, ExportedInfo, Finding, LossCurve, PolicyInfo, Results
from chordflow.results.sequential import SequentialDecision
from chordflow.results.statistics import Estimate, Interval, PairedSuccess, Percentiles
from script_files import ROOT

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
        latency=Latency(0.009, 0.004, 1, 50, 10, 1), success=rows, trajectories=published("demo").trajectories,
        trajectory_axes=[0.61, 0.22], couplings=CouplingSummary(2048, 4, "midpoint", 10, 61_000_000),
        loss=LossCurve([*range(10, 610, 10)], [0.001 + 0.02 * 0.98**i for i in range(0, 600, 10)]), training_s=58.0,
    )  # fmt: skip
    return replace(value, **changes)


# ---- What diagnose and evaluate write -------------------------------------------------------------------


@functools.cache
def published(name: str) -> Results:
    """Results that a document shows."""
    return Results.load(ROOT / "docs" / name / "results.json")


def diagnosis(**changes: Any) -> Results:
    """What diagnose writes of a teacher alone: the teacher's part of the published evaluation."""
    base = published("evaluate")
    alone = {"success": [], "motion": [], "delays": [], "timing": [], "clips": [], "findings": []}
    own = {
        name: [row for row in getattr(base, name) if row.policy == "teacher"]
        for name in ("curvature", "gaps", "trajectories")
    }
    free = base.free and replace(base.free, others=[r for r in base.free.others if r.policy == "teacher"])
    value = replace(
        base, kind="diagnose", student=None, policies=base.policies[:1], rollouts=None, free=free, **alone, **own
    )  # fmt: skip
    return replace(value, **changes)


OTHERS = ("one_step_endpoint", "reflow round 2")


def evaluation(**changes: Any) -> Results:
    """What evaluate writes: the published one, with the student under two more names and where the run stopped."""
    base = published("evaluate")

    def also(rows: Sequence[Any]) -> list[Any]:
        return [
            *rows,
            *(replace(row, policy=name) for name in OTHERS for row in rows if row.policy == "student"),
        ]

    rows = {
        name: also(getattr(base, name)) for name in ("curvature", "gaps", "motion", "timing", "trajectories")
    }
    infos = [*base.policies, *(replace(base.policies[1], name=name) for name in OTHERS)]
    decided = SequentialDecision("betting", 0.02, 0.05, 380, "non-inferior", -0.01, 0.03, 45.0, 0.1, 17, True)
    sequential = [SequentialRow(name, 1, decided) for name in ("student", *OTHERS)]
    success = also(base.success)
    success += [replace(row, group="go left") for row in success]
    clip = Clip("clip.gif", ["teacher", "student"], [0, 1, 2], [[True, True], [True, False], [True, True]])
    value = replace(base, policies=infos, success=success, sequential=sequential, clips=[clip], **rows)
    return replace(value, **changes)


def exported() -> Results:
    """What evaluate writes of an exported folder with two steps of a solver, three evaluations, of its own time."""
    base, how = sample(), {"solver": "adams_bashforth", "grid_power": 1.4}
    gaps = [row for row in base.gaps if row.policy == "teacher"]
    own = gap("student", 2, "deployed", 0.0945, nfe=3, ratio_to_untrained=ratio(0.93, 0.83, 0.97), **how)
    far = replace(own, reference="converged", rms=0.0964)
    best = [gap("teacher", n, "converged", 0.2, grid_power=2.0) for n in (2, 3)]
    times = Latency(0.1, 0.1, 1, 50, 10, 2, exported={"student": ChunkTime(2, Percentiles(*[0.055] * 4))})
    made = ExportedInfo("me/checkpoint", precision="float32", backend="onnx", **how)
    return replace(
        base, kind="evaluate", student="outputs/robot", gaps=[*gaps, own, far], latency=times,
        success=[*base.success, replace(success("student", 2, 0.9, (-0.02, -0.04, 0.0)), **how)],
        policies=[PolicyInfo("student", "outputs/robot", "smolvla", 2, 1, "0" * 64, exported=made)],
        free=FreeWays([0], [1], best, [far]),
    )  # fmt: skip


def picture_of(red: int, size: int = 48) -> str:
    """A small PNG in base64."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (red, 0, 0)).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def write_clip(path: Path, frames: int = 6) -> None:
    """A moving picture."""
    pictures = [Image.new("RGB", (246, 80), (40 * index, 114, 178)) for index in range(frames)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=120, loop=0)


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
