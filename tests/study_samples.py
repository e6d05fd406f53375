"""Studies with figures that are made up: of methods, of beginnings with looks, and of rounds."""

from dataclasses import replace
from typing import Any

from chordflow.results.schema import GapRow, HeldOut, LossCurve, SuccessRow
from chordflow.results.statistics import Estimate, compare_success
from chordflow.results.study import (
    STEP_COUNTS,
    Arm,
    Diversity,
    Figures,
    LeftOut,
    Look,
    Study,
    Trial,
    Untrained,
)

TEACHER_SOLVES = [True] * 36 + [False] * 4


def figures(
    *rms: float, curvature: float = 0.1, spread: float | None = None, kept: float | None = 0.5
) -> Figures:
    """Figures of a policy with these gaps at one, two and ten steps."""
    gaps = [
        GapRow("student", "euler", n, n, "converged", 100, value, value / 2, value / 100, 1.0, 0.1, 8, 32,
               ratio_to_floor=Estimate(value / 0.05, None), nearer_than_deployed=1 - value)
        for n, value in zip(STEP_COUNTS, rms, strict=True)
    ]  # fmt: skip
    diverse = [] if spread is None else [Diversity(n, spread, kept, 4) for n in STEP_COUNTS]
    return Figures(0.1, curvature, None, gaps, diverse)


def acted(solved: int, num_steps: int = 1, paired: bool = True) -> SuccessRow:
    own = [True] * solved + [False] * (40 - solved)
    versus = compare_success(own, TEACHER_SOLVES) if paired else None
    return SuccessRow("student", "euler", num_steps, "all", solved, 40, versus_teacher=versus)


def trial(
    arm: str, seed: int, *looks: Figures, at: tuple[int, ...] = (5,), solved: int | None = None
) -> Trial:
    """A trial with a look at each mark; success is that at the end."""
    path = f"{arm}/seed_{seed}/pretrained_model"
    rows = {at[-1]: [acted(solved)]} if solved is not None else {}
    seen = [
        Look(mark, mark, None, path, "0" * 64, found, rows.get(mark, []))
        for mark, found in zip(at, looks, strict=True)
    ]
    return Trial(arm, seed, 10.0 + seed, 1.0, at[-1], 20, 0.1, None, 99, seen)


def arm(name: str, way: str = "", teacher: str | None = None, **more: Any) -> Arm:
    own = {"method": {"type": name}}
    kept = {"stock_checkpoint": True, "step_counts": [1] if name == "one" else None}
    return Arm(name, way or name, {}, own, "reflow", teacher=teacher, **kept | more)


def study(*trials: Trial, **more: Any) -> Study:
    names = dict.fromkeys(one.arm for one in trials)
    made: dict[str, Any] = {
        "preset": "methods", "command": ["chordflow", "study", "methods"], "settings": {}, "versions": {"torch": "2"},
        "device": "cpu, 1 threads", "teacher": "a/b", "teacher_sha256": "1" * 64, "arms": [arm(name) for name in names],
        "seeds": sorted({one.seed for one in trials}), "steps": 5, "seconds": None, "looks": [5],
        "held_out": HeldOut([3], 8, 16, False), "untrained": Untrained(10, figures(0.3, 0.2, 0.05)),
    }  # fmt: skip
    return Study(**made | more, trials=list(trials))


CLEAR = [
    trial("one", 0, figures(0.04, 0.5, 0.9), solved=38), trial("one", 1, figures(0.05, 0.5, 0.9), solved=40),
    trial("all", 0, figures(0.08, 0.07, 0.06), solved=35), trial("all", 1, figures(0.09, 0.07, 0.06), solved=35),
    trial("bad", 0, figures(0.4, 0.3, 0.2), solved=2), trial("bad", 1, figures(0.6, 0.3, 0.2), solved=4),
]  # fmt: skip
TEACHER = [acted(10), acted(37, 2), acted(36, 10, paired=False)]


AT = (0, 100, 200)


def beginnings(**more: Any) -> Study:
    """Two arms over three seeds with three looks."""
    gaps = {
        "teacher": [[0.3, 0.04, 0.03], [0.3, 0.06, 0.04], [0.3, 0.09, 0.02]],
        "random": [[0.9, 0.5, 0.2], [0.9, 0.5, 0.04], [0.9, 0.5, 0.3]],
    }
    trials = []
    for name, seeds in gaps.items():
        for seed, rms in enumerate(seeds):
            looks = [figures(value, 2 * value, 10 * value) for value in rms]
            curve = LossCurve([1, 50, 100, 200], [0.04 + seed / 100, 0.03, 0.02, 0.01])
            made = trial(name, seed, *looks, at=AT, solved=round(40 * (1 - rms[-1])))
            trials.append(replace(made, losses=curve, couplings_sha256="a"))
    parts = {"teacher": ["action_head"], "random": ["action_head", "vision"]}
    differs = {n: {"student.init": n, "student.train": p, "optimizer.lr": 1} for n, p in parts.items()}
    own = [replace(arm(name), differs=them) for name, them in differs.items()]
    made = {"preset": "beginnings", "looks": list(AT), "steps": 200, "arms": own, "teacher": "a/<b>", "env": "drift",
            "left_out": [LeftOut("pretrained_vlm", "it has none")]}  # fmt: skip
    return study(*trials, **made | more)


def rounds(gaps: dict[str, list[list[tuple[float, float]]]], kept: float | None = 0.5, solved: int | None = None,
           **more: Any) -> Study:  # fmt: skip
    """A study of chains: by way, for every seed curvature and gap of each round; `once` has the steps of three."""
    trials, arms = [], []
    for way, seeds in gaps.items():
        names = [way] if way == "once" else [f"{way}_{number}" for number in range(1, len(seeds[0]) + 1)]
        for name, teacher in zip(names, [None, *names], strict=False):
            arms.append(arm(name, way, teacher, steps=300 if way == "once" else None))
        for seed, ways in enumerate(seeds):
            for number, (name, (curvature, rms)) in enumerate(zip(names, ways, strict=True), 1):
                spread = 0.9 - 0.1 * number
                found = figures(rms, rms / 2, rms / 4, curvature=curvature, spread=spread, kept=kept)
                trials.append(trial(name, seed, found, at=(300 if way == "once" else 100,), solved=solved))
    rows = [acted(36, n) for n in STEP_COUNTS] if solved is not None else []
    first = Untrained(10, figures(0.3, 0.2, 0.05, curvature=0.2, spread=0.4, kept=0.0), rows)
    made = {"preset": "rounds", "arms": arms, "steps": 100, "looks": [100], "untrained": first}
    return study(*trials, **made | more)


def of_two_seeds(solved: int | None = None) -> Study:
    """`last` drifts in its third round with the median, and with one of the two seeds in its second."""
    last = [[(0.04, 0.10), (0.02, 0.09), (0.01, 0.11)], [(0.05, 0.10), (0.03, 0.102), (0.02, 0.12)]]
    return rounds({"last": last, "once": [[(0.02, 0.06)], [(0.02, 0.06)]]}, solved=solved)
