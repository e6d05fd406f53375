"""What a study says in words and shows as tables and plots, from figures that are made up; files that are joined."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from chordflow.errors import UserError
from chordflow.reporting.study_page import page, plots
from chordflow.reporting.study_table import SEEDS, by_arm, facts, markdown, render, sections
from chordflow.reporting.write import write_report
from chordflow.results.paying import paying_rounds
from chordflow.results.schema import GapRow, HeldOut, LossCurve, SuccessRow
from chordflow.results.statistics import Estimate, compare_success
from chordflow.results.study import (
    OLD_KINDS,
    STEP_COUNTS,
    Arm,
    Diversity,
    Figures,
    LeftOut,
    Look,
    Study,
    Trial,
    Untrained,
    joined,
)
from chordflow.results.study_summary import (
    Measured,
    Spread,
    gap,
    headline,
    judged,
    loss,
    measured,
    middle_seed,
    over_seeds,
    reached,
    same_couplings,
    standings,
    success,
    whole_seeds,
)

ROOT = Path(__file__).resolve().parent.parent
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
    rows = [acted(solved)] if solved is not None else []
    seen = [
        Look(
            mark,
            mark,
            None,
            f"{arm}/seed_{seed}/pretrained_model",
            "0" * 64,
            found,
            rows if mark == at[-1] else [],
        )
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


# ---- Methods ----------------------------------------------------------------------------------------------

CLEAR = [
    trial("one", 0, figures(0.04, 0.5, 0.9), solved=38), trial("one", 1, figures(0.05, 0.5, 0.9), solved=40),
    trial("all", 0, figures(0.08, 0.07, 0.06), solved=35), trial("all", 1, figures(0.09, 0.07, 0.06), solved=35),
    trial("bad", 0, figures(0.4, 0.3, 0.2), solved=2), trial("bad", 1, figures(0.6, 0.3, 0.2), solved=4),
]  # fmt: skip
TEACHER_ROWS = [acted(10), acted(37, 2), acted(36, 10, paired=False)]


def test_clear_winners_are_named() -> None:
    said = headline(study(*CLEAR))
    assert (
        "At one step one (4.5 %, 4.0 % to 5.0 % over 2 seeds) is nearest to the teacher's converged ODE."
        in said
    )
    # A student for one step alone is no candidate, and what counts is the worst of the step counts.
    assert (
        "At every step count (the worst of 1, 2 and 10) all (8.5 %, 8.0 % to 9.0 % over 2 seeds) is" in said
    )
    # The ranges over seeds do not overlap, but 40 episodes tell the two no further apart.
    assert (
        "no clear winner between one (95.0 %, 95.0 % to 100.0 % over 2 seeds) and all (87.5 %, 87.5 % to"
        in said
    )
    assert "at two steps is not as good as one at one by its gap (20 % against 4.5 %)." in said


def test_where_ranges_overlap_nobody_is_named() -> None:
    gaps = {"a": (0.04, 0.08), "b": (0.07, 0.09), "c": (0.2, 0.3)}
    trials = [
        trial(name, seed, figures(one, 0.1, 0.1))
        for name, both in gaps.items()
        for seed, one in enumerate(both)
    ]
    said = headline(study(*trials))
    assert (
        "At one step there is no clear winner between a (6.0 %, 4.0 % to 8.0 % over 2 seeds) and b (8.0 %"
        in said
    )
    assert "c (" not in said.partition(". At every step count")[0]


def test_a_single_seed_has_no_winner() -> None:
    said = headline(study(CLEAR[0], CLEAR[2]))
    assert "no clear winner with a single seed between one (4.0 %) and all (8.0 %)." in said
    assert "there is all (8.0 %) alone" in said


def test_arms_with_equal_settings_are_no_rivals() -> None:
    twice = study(*CLEAR, *(replace(one, arm="one again") for one in CLEAR[:2]))
    same = [*twice.arms[:-1], replace(twice.arms[-1], settings=twice.arms[0].settings, step_counts=[1])]
    assert "no clear winner between one (4.5 %" in headline(twice)
    assert headline(replace(twice, arms=same)) == headline(study(*CLEAR))


def test_a_student_that_made_no_step_wins_nothing() -> None:
    found = study(*CLEAR[2:], *(replace(one, steps=0) for one in CLEAR[:2]))
    left = "Left out, because the budget was too small for a step: one."
    assert headline(found) == f"{headline(study(*CLEAR[2:]))} {left}"
    assert "one (no step)" in [row[0].text for row in by_arm(found).rows]


def test_an_untrained_teacher_that_is_as_good_is_said_to_be() -> None:
    as_good = study(*CLEAR, untrained=Untrained(10, figures(0.2, 0.05, 0.01)))
    assert "is as good as one at one by its gap (5.0 % against 4.5 %)" in headline(as_good)
    said = headline(study(*CLEAR, untrained=Untrained(10, figures(0.2, 0.051, 0.01), TEACHER_ROWS)))
    assert "is not as good as one at one by its gap" in said
    assert "and as good as one in episodes (92.5 % against 95.0 %)." in said


def test_success_over_seeds_is_one_seed_with_its_own_pairs() -> None:
    rows = [acted(38), acted(30), acted(20)]
    # As many episodes as were run, however many students met them.
    assert middle_seed(rows) == rows[1]
    assert middle_seed(rows[:2]) == rows[1], "the lower of an even number"
    assert middle_seed([]) is None


def test_who_succeeds_most_often_needs_seeds_and_episodes_apart() -> None:
    clear = [trial(name, seed, figures(0.1, 0.1, 0.1), solved=solved - seed) for name, solved in [("a", 40), ("b", 20)]
             for seed in (0, 1)]  # fmt: skip
    assert "a (97.5 %, 97.5 % to 100.0 % over 2 seeds) succeeds most often." in headline(study(*clear))
    assert "no clear winner with a single seed between a (100.0 %) and b" in headline(
        study(clear[0], clear[2])
    )
    # A seed of the one that does as well as the least of the other.
    overlap = [*clear[:3], trial("b", 1, figures(0.1, 0.1, 0.1), solved=39)]
    assert "In episodes at one step there is no clear winner between a (97.5 %" in headline(study(*overlap))


def test_figures_over_seeds() -> None:
    found = study(*CLEAR)
    assert over_seeds(found, arm("bad"), gap()) == Spread(0.5, 0.4, 0.6, 2)
    assert over_seeds(found, arm("nobody"), gap()) is None
    # Only the seeds that are asked for, and only what is measured.
    assert over_seeds(replace(found, seeds=[1]), arm("bad"), gap()) == Spread(0.6, 0.6, 0.6, 1)
    unmeasured = replace(CLEAR[5], looks=[replace(CLEAR[5].last, figures=None)])
    assert over_seeds(study(*CLEAR[:5], unmeasured), arm("bad"), gap()) == Spread(0.4, 0.4, 0.4, 1)


def test_the_table_has_the_teacher_then_medians_and_ranges() -> None:
    whole = study(*CLEAR, untrained=Untrained(10, figures(0.3, 0.2, 0.05), TEACHER_ROWS), env="drift")
    section = by_arm(whole)
    shown = [[cell.text for cell in row] for row in section.rows]
    assert all(len(row) == len(section.heads) for row in shown)
    assert [row[0] for row in shown] == [
        "teacher, untrained", "- at two steps", "- deployed, at ten steps", "one", "- least to largest", "all",
        "- least to largest", "bad", "- least to largest",
    ]  # fmt: skip
    heads = [head.replace("\n", " ") for head in section.heads]
    rows = [dict(zip(heads, row, strict=True)) for row in shown]
    gap_at, success_at, differs = (
        "gap at 1, %: RMS/median/ flips",
        "success at one step, %",
        "points to the teacher",
    )
    assert [rows[0][name] for name in heads[1:6]] == [
        "10.0", "30.0/15.0/0.3", "20.0/10.0/0.2", "5.0/2.5/0.1", "6.00/70.0",
    ]  # fmt: skip
    assert rows[0][success_at] == "25.0 [14.2, 40.2]"
    assert [rows[2][name] for name in (success_at, differs, "p")] == ["90.0 [76.9, 96.0]", "-", "-"]
    assert [rows[3][name] for name in (gap_at, success_at, differs, "p")] == [
        "4.5/2.2/0.0", "95.0 [83.5, 98.6]", "+5.0 [-5.0, +16.7]", "0.500",
    ]  # fmt: skip
    assert shown[3][-4:] == ["10", "20", "yes", "1"]
    assert [rows[4][name] for name in (gap_at, success_at, differs, "p")] == [
        "4.0-5.0/2.0-2.5/0.0-0.1", "95.0-100.0", "+5.0 to +10.0", "0.125 to 0.500",
    ]  # fmt: skip
    assert shown[5][-1] == "any"
    assert by_arm(study(*CLEAR[:-1])).rows[-1][0].text == "bad (1 of 2 seeds)"
    text = markdown(whole)
    assert text.startswith("**At one step one ")
    assert all(
        part in text for part in ("- device: cpu, 1 threads", "- each arm: 5 steps; seeds 0, 1", SEEDS)
    )
    # How success is taken over seeds is said only where episodes were run.
    assert SEEDS not in markdown(
        study(*(replace(one, looks=[replace(one.last, success=[])]) for one in CLEAR))
    )


# ---- Beginnings -------------------------------------------------------------------------------------------

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
    own = [
        replace(arm(name), differs={"student.init": name, "student.train": roles, "optimizer.lr": 1})
        for name, roles in parts.items()
    ]
    made = {"preset": "beginnings", "looks": list(AT), "steps": 200, "arms": own, "teacher": "a/<b>", "env": "drift",
            "left_out": [LeftOut("pretrained_vlm", "it has none")]}  # fmt: skip
    return study(*trials, **made | more)


def test_the_first_look_under_the_level_counts() -> None:
    found = beginnings()
    teacher, random = found.arms
    within = reached(found, teacher)
    assert within is not None
    assert (within.marks, within.trials, within.text) == ([100, 200, 200], 3, "100-200")
    texts = [
        reached(found, random), reached(replace(found, level=0.001), random),
        # The median is under it long before the RMS, which counts flips in full.
        reached(found, teacher, "median"),
    ]  # fmt: skip
    assert [one.text for one in texts if one is not None] == ["200 (1 of 3)", "never", "100"]
    assert reached(replace(found, trials=[]), random) is None


def test_the_loss_of_a_look_is_that_of_the_entry_before() -> None:
    (one, *_) = measured(beginnings(), beginnings().arms[0])
    assert [loss(one, step) for step in (0, 49, 50, 100, 150, 500)] == [0.04, 0.04, 0.03, 0.02, 0.02, 0.01]
    assert loss(one) == 0.01
    assert loss(Measured(None, one.look)) is None
    assert loss(Measured(trial("a", 0, figures(1, 1, 1)), one.look)) is None


def test_couplings_that_differ_are_told() -> None:
    found = beginnings()
    assert same_couplings(found) is True
    differs = replace(found, trials=[replace(found.trials[0], couplings_sha256="b"), *found.trials[1:]])
    assert same_couplings(differs) is False
    assert "couplings: not the same to the bit" in markdown(differs)
    assert same_couplings(replace(found, trials=found.trials[:3])) is None
    assert same_couplings(study(*CLEAR)) is None, "not asked for"


def test_the_headline_of_beginnings() -> None:
    found = beginnings()
    assert headline(found) == (
        "Gap at one step after 200 steps, the median and range over 3 seeds: teacher: 3.0 % (2.0 % to 4.0 %), under "
        "5 % by step 100-200; random: 20 % (4.0 % to 30 %), under 5 % by step 200 (1 of 3)."
    )
    acts = replace(found, untrained=Untrained(10, figures(0.3, 0.2, 0.1), TEACHER_ROWS))
    assert headline(acts).endswith(
        " Success at one step: teacher: 97.5 %; random: 80.0 %. "
        "The untrained teacher solves 25.0 % at 1 step, 92.5 % at 2 steps and 90.0 % at 10 steps."
    )
    assert "not under 0.1 %" in headline(replace(found, level=0.001))
    assert headline(replace(found, trials=[])) == "Nothing is measured yet."


def test_the_tables_have_every_arm_and_look() -> None:
    found = beginnings()
    arms, gaps, losses, rates = sections(found)
    rows = {row[0].text: [cell.text for cell in row] for row in arms.rows}
    # What all arms share is no difference.
    assert rows["random"][1] == "student.init=random, student.train=action_head vision"
    assert "100-200; 100" in rows["teacher"]
    assert "200 (1 of 3); 200 (1 of 3)" in rows["random"]
    assert [[cell.text for cell in row] for row in gaps.rows[:2]] == [
        ["teacher", "30.0", "6.0", "3.0"], ["- least to largest", "30.0-30.0", "4.0-9.0", "2.0-4.0"],
    ]  # fmt: skip
    assert [cell.text for cell in losses.rows[0]] == ["teacher", "0.05", "0.02", "0.01"]
    # The looks before the last have no episodes.
    assert rates.heads == ["arm", "200"]
    assert [cell.text for cell in rates.rows[2]] == ["random", "80.0"]
    assert ("left out", "pretrained_vlm: it has none") in facts(found)
    without = replace(found, trials=[replace(one, losses=None, looks=[replace(look, success=[]) for look in one.looks])
                                     for one in found.trials])  # fmt: skip
    assert [section.key for section in sections(without)] == ["study", "gap"]


# ---- Rounds -----------------------------------------------------------------------------------------------


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
                found = figures(
                    rms, rms / 2, rms / 4, curvature=curvature, spread=0.9 - 0.1 * number, kept=kept
                )
                trials.append(trial(name, seed, found, at=(300 if way == "once" else 100,), solved=solved))
    rows = [acted(36, n) for n in STEP_COUNTS] if solved is not None else []
    first = Untrained(10, figures(0.3, 0.2, 0.05, curvature=0.2, spread=0.4, kept=0.0), rows)
    made = {"preset": "rounds", "arms": arms, "steps": 100, "looks": [100], "untrained": first}
    return study(*trials, **made | more)


def of_two_seeds(solved: int | None = None) -> Study:
    """`last` drifts in its third round with the median, and with one of the two seeds in its second."""
    last = [[(0.04, 0.10), (0.02, 0.09), (0.01, 0.11)], [(0.05, 0.10), (0.03, 0.102), (0.02, 0.12)]]
    return rounds({"last": last, "once": [[(0.02, 0.06)], [(0.02, 0.06)]]}, solved=solved)


def test_the_headline_says_where_another_round_stopped_paying() -> None:
    found = of_two_seeds()
    last, _ = found.chains
    assert [round(one.gap, 4) for one in standings(found, last)] == [0.3, 0.1, 0.096, 0.115]
    said = headline(found)
    assert said.startswith(
        "Up to three rounds of 100 steps with 2 seeds, measured by curvature and by the gap at one step to the first "
        "teacher's converged ODE: with last, another round stopped paying after round 2, in 2 of 2 seeds as well "
        "(curvature 20 % -> 4.5 % -> 2.5 % -> 1.5 %, gap 30 % -> 10 % -> 9.6 % -> 12 %). "
        "One round instead: curvature 2.0 %, gap 6.0 % with once (300 steps). "
    )
    assert said.endswith("60 % (50 %) with last and 80 % (50 %) with once.")
    # The second round pays by the medians, and by itself in one seed of two.
    second = judged(found, last, 1)
    assert second is not None
    assert (second.gain.pays, second.pays, second.count) == (True, 1, 2)
    assert paying_rounds(standings(found, last), 0.1) == 2
    assert (
        "from the first round to the last: 75.0 % -> 75.0 % with last and 75.0 % with once (the teacher as "
        in headline(of_two_seeds(30))
    )


def test_rounds_that_all_pay_and_rounds_that_never_do() -> None:
    falling = rounds({"last": [[(0.2 / 2**k, 0.3 / 2**k) for k in (1, 2, 3)]]})
    assert "with last, round 3 still paid (curvature 20 % -> 10 % -> 5.0 % -> 2.5 %" in headline(falling)
    never = rounds({"first, euler": [[(0.2, 0.4)] * 3]}, kept=None)
    assert "with first, euler, not even round 1 paid (curvature" in headline(never)
    assert headline(never).endswith("keep of the first teacher's spread over noise 60 % with first, euler.")


def test_seeds_are_judged_whole_or_not_at_all() -> None:
    """Medians over other seeds in each round would be falls that nobody made."""
    found = of_two_seeds()
    missing = replace(found, trials=[one for one in found.trials if (one.arm, one.seed) != ("last_3", 1)])
    (last, _) = missing.chains
    assert list(whole_seeds(missing, last)) == [0]
    assert [one.gap for one in standings(missing, last)] == [0.3, 0.1, 0.09, 0.11]
    assert "with 1 of 2 seeds so far" in headline(missing)
    assert "| last (1 of 2 seeds) | 3 |" in markdown(missing)
    for less in (replace(found, trials=found.trials[:2]), replace(found, untrained=None, trials=[])):
        assert headline(less) == "No seed has all its rounds yet."


def test_the_table_of_rounds_shows_medians_ranges_and_falls() -> None:
    section = by_arm(of_two_seeds())
    heads = [head.replace("\n", " ") for head in section.heads]
    rows = [dict(zip(heads, (cell.text for cell in row), strict=True)) for row in section.rows]
    by_round = {(row["arm"], row["round"]): row for row in rows}
    shown = (
        "curvature %",
        "spread %",
        "modes kept %",
        "curvature falls by %",
        "gap at 1 falls by %",
        "pays (seeds)",
    )
    assert [by_round["last", "2"][name] for name in shown] == ["2.5", "70.0", "50.0", "44", "4", "yes (1/2)"]
    assert [by_round["last", "3"][name] for name in shown[3:]] == ["40", "-20", "no (0/2)"]
    assert [by_round["teacher, untrained", "0"][name] for name in shown[1:3]] == ["40.0", "0.0"]
    ranges = [row["curvature %"] for row in rows if row["arm"] == "- least to largest"]
    assert ranges[1] == "2.0-3.0"
    assert ("observations with several modes", "4") in facts(of_two_seeds())
    assert ("once", "300 steps") in facts(of_two_seeds())


def test_a_first_round_may_be_shared() -> None:
    found = of_two_seeds()
    second = [replace(one, arm="first_2") for one in found.trials if one.arm == "last_2"]
    arms = [*found.arms, arm("first_2", "first", "last_1")]
    forked = replace(found, arms=arms, trials=[*found.trials, *second])
    assert [[one.name for one in chain] for chain in forked.chains] == [
        ["last_1", "last_2", "last_3"], ["once"], ["last_1", "first_2"],
    ]  # fmt: skip
    assert [row[0].text for row in by_arm(forked, ranges=False).rows].count("first") == 2


# ---- Plots, pages, files ----------------------------------------------------------------------------------


def test_plots_over_looks() -> None:
    found = beginnings()
    drawn = {plot.key: plot for group in plots(found) for plot in group}
    assert list(drawn) == ["loss", "curvature", "gap-1", "gap-2", "gap-10", "success"]
    band, line = drawn["gap-1"].figure.data[:2]
    assert (list(line.x), list(line.y)) == (list(AT), [30, 6, 3])
    assert (list(band.x), list(band.y)) == ([*AT, *reversed(AT)], [30, 9, 4, 2, 4, 30])
    assert "teacher 3.0 % (2.0 % to 4.0 %)" in drawn["gap-1"].caption
    # The loss has more points than there are looks.
    assert list(drawn["loss"].figure.data[1].x) == [1, 50, 100, 200]
    alone = replace(found, seeds=[0], arms=found.arms[:1])
    assert len(plots(alone)[1][0].figure.data) == 1
    assert plots(replace(found, trials=[])) == []
    assert plots(study(*CLEAR)) == [], "a line of one point is none"


def test_plots_over_a_chain_go_from_the_untrained_teacher() -> None:
    drawn = {plot.key: plot for group in plots(of_two_seeds(30)) for plot in group}
    assert list(drawn) == ["curvature", "gap-1", "gap-2", "gap-10", "spread", "modes", "success"]
    band, last, _, once = drawn["gap-1"].figure.data
    assert (list(last.x), list(last.y)) == ([0, 100, 200, 300], [30, 10, 9.6, 11.5])
    assert list(band.y) == [30, 10, 10.2, 12, 11, 9, 10, 30]
    # One round of the steps of three stands above the third of the others.
    assert (list(once.x), list(once.y)) == ([0, 300], [30, 6])
    assert "last 12 % (11 % to 12 %); once 6.0 % (6.0 % to 6.0 %)" in drawn["gap-1"].caption
    assert list(drawn["modes"].figure.data[1].y) == [0, 50, 50, 50]
    assert list(drawn["success"].figure.data[1].y) == [90, 75, 75, 75]
    assert list(drawn["modes"].figure.layout.xaxis.tickvals) == [0, 100, 200, 300]
    assert {plot.key for group in plots(of_two_seeds()) for plot in group} == set(drawn) - {"success"}


@pytest.mark.parametrize("made", [beginnings, of_two_seeds, lambda: study(*CLEAR)])
def test_the_page_is_whole_and_escaped(made: Any) -> None:
    text = page(replace(made(), teacher="a/<b>", settings={"env": {"type": "<i>"}}))
    outside = text.partition("<script>")[0] + text.rpartition("</script>")[2]
    assert "a/&lt;b&gt;" in text
    assert not re.search("<b>|<i>", outside)
    held = json.loads(re.findall(r'id="plots">(.*?)</script>', text)[0])
    assert set(re.findall(r'data-plot="([\w-]+)"', text)) == set(held)
    needed = ('id="theme"', 'id="status"', "chordflow study", "Made by chordflow from study.json", "env.type")
    assert all(part in html.unescape(text) for part in needed)


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize(
    "made",
    [
        beginnings,
        lambda: of_two_seeds(30),
        lambda: study(*CLEAR, trial("noise_biased", 0, figures(1.234, 1.2, 1.234))),
    ],
)
def test_figures_are_whole_on_a_terminal(made: Any, width: int) -> None:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    found = made()
    console.print(render(found))
    text = console.export_text()
    # Names take two lines where a terminal is narrow, and columns follow below.
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    section = by_arm(found, ranges=False).short()
    for place, head in enumerate(section.heads):
        assert all(line in text for line in head.split("\n"))
        assert all(row[place].text in text for row in section.rows if place >= section.left)


def test_a_file_comes_back_and_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    for found in (beginnings(), of_two_seeds(12)):
        found.save(path)
        assert Study.load(path) == found
    assert [file.name for file in write_report(tmp_path)] == ["study.html", "study.md"]
    assert (tmp_path / "study.md").read_text() == markdown(found)
    path.write_text("{}")
    with pytest.raises(UserError, match="no schema_version; give a study"):
        Study.load(path)
    with pytest.raises(UserError, match=r"give a study's study\.json"):
        Study.load(tmp_path / "nothing.json")
    for kind in OLD_KINDS:
        path.write_text(json.dumps({"kind": kind}))
        for read in (Study.load, write_report):
            with pytest.raises(
                UserError, match=r"older layout; .*python scripts/convert_study\.py .*study\.json"
            ):
                read(path)


def test_studies_of_one_teacher_join() -> None:
    first, second = study(*CLEAR[:3]), study(*CLEAR[3:])
    whole = joined([first, second])
    assert headline(whole) == headline(study(*CLEAR))
    # Of a trial that both have the first counts; equal names with other settings or budgets are two arms.
    assert joined([first, first]) == first
    longer = joined(
        [first, replace(first, steps=50, arms=[replace(a, step_counts=None) for a in first.arms])]
    )
    assert [one.name for one in longer.arms] == ["one", "all", "one (2)", "all (2)"]
    assert [one.steps for one in longer.arms] == [None, None, 50, 50]
    assert len(longer.trials) == 2 * len(first.trials)
    # More steps make another arm of the same settings: none stands for the other.
    said = headline(joined([study(CLEAR[0]), replace(study(CLEAR[0]), steps=50)]))
    assert "between one (4.0 %) and one (2) (4.0 %)" in said
    assert "one (2) after 50 steps" in by_arm(longer).title
    chains = joined([of_two_seeds(), replace(of_two_seeds(), steps=200, looks=[200])]).chains
    assert [one.teacher for one in chains[2]] == [None, "last_1 (2)", "last_2 (2)"]
    for name, other in {
        "teacher_sha256": "2" * 64,
        "env": "libero",
        "held_out": None,
        "seconds": 3.0,
    }.items():
        with pytest.raises(UserError, match=f"study 2 has another {name}"):
            joined([first, replace(first, **{name: other})])


def test_the_published_studies_are_read_and_say_what_they_said() -> None:
    files = sorted((ROOT / "docs").glob("*/*.json"))
    found = {file.stem: Study.load(file) for file in files if file.parent.name in ("compare", "studies")}
    assert len(found) == 8
    assert "one_step (4.4 %), all_steps (6.4 %, 5.2 % to 7.6 % over 2 seeds)" in headline(found["methods"])
    assert "random_full: 35 % (23 % to 36 %), not under 5 %" in headline(found["init"])
    assert "(curvature 18 % -> 7.0 % -> 6.2 % -> 6.1 %, gap 29 % -> 9.3 % -> 9.7 % -> 10 %)" in headline(
        found["rounds"]
    )
    for name in ("init", "init_metaworld", "init_rates", "rounds", "rounds_metaworld"):
        assert all(len(found[name].trials_of(one.name)) == 3 for one in found[name].arms), name
    assert success(found["rounds"], found["rounds"].arms[0]) is not None
