"""Tables of rollouts: success and what it decides, flips, motion, delays, where their time went."""

from collections.abc import Callable
from typing import Any

from chordflow.reporting.section import (
    STOCK,
    Cell,
    Column,
    Section,
    absent,
    count,
    figure,
    is_student,
    measure,
    number,
    rank,
    table,
    way,
)
from chordflow.results.episodes import MotionRow, SuccessRow
from chordflow.results.schema import Results
from chordflow.results.wording import (
    REPEATED_STARTS,
    STARTS_TRAINED_ON,
    amount,
    clean,
    p_value,
    percent,
    percentage,
    points,
    seconds,
    span,
)

POINTS = "points to\nthe teacher"

POLICY: Column[Any] = Column("policy", lambda row: way(row.policy, row.solver, row.grid_power))
STEPS: Column[Any] = Column("steps", lambda row: count(row.num_steps))


def _marked(results: Results) -> Callable[[Any], bool]:
    return lambda row: is_student(results, row.policy, row.num_steps, getattr(row, "solver", "euler"))


# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> Section | None:
    """Rates by group of episodes, with the paired difference to the teacher."""
    below = []
    if results.rollouts is not None and results.rollouts.noise == "lerobot":
        below.append(
            "The noise is drawn as lerobot-eval draws it: rates may be compared, episodes are not paired."
        )
    if any(row.starts is not None for row in results.success):
        below.append(REPEATED_STARTS)
    if any(row.group == STARTS_TRAINED_ON for row in results.success):
        below.append(
            f"{STARTS_TRAINED_ON.capitalize()}: where observations for a student's training were collected."
        )
    if any(not row.is_stock for row in results.success):
        below.append(STOCK)
    paired = (
        "Differences are paired: same episodes and noise as the deployed teacher; p is McNemar's exact test."
    )
    if results.sequential:
        paired += (
            " The run could stop early: intervals of differences are confidence sequences, which hold at every look; p "
            "and Wilson's intervals are those of a fixed number of episodes."
        )
    rows = [(row, index, group) for group in by_group(results).values() for index, row in enumerate(group)]

    def episodes(of: tuple[SuccessRow, int, list[SuccessRow]]) -> Cell:
        row, index, group = of
        alike = len({other.episodes for other in group}) == 1
        return Cell(f"{clean(row.group)} ({row.episodes})", repeats=index > 0 and alike)

    def p(row: SuccessRow) -> Cell:
        return number(row.versus_teacher.p_value if row.versus_teacher is not None else None, p_value)

    return table(
        "success",
        "Success in episodes",
        rows,
        [
            Column("episodes", episodes),
            Column("policy", lambda of: POLICY.cell(of[0])),
            Column("steps", lambda of: count(of[0].num_steps)),
            Column("success %,\n95 % interval", lambda of: figure(rate(of[0]), of[0].rate)),
            Column(POINTS, lambda of: points_cell(of[0]), paired),
            Column("p", lambda of: p(of[0])),
            Column(
                "coverage of\nthe interval",
                lambda of: number(of[0].coverage, lambda value: percent(value, 1)),
                "Coverage: how often Wilson's interval holds a rate like this one, exactly.",
            ),
        ],
        left=2,
        below=" ".join(below),
        marked=lambda of: _marked(results)(of[0]),
    )


def by_group(results: Results) -> dict[str, list[SuccessRow]]:
    """The rows of each group of episodes, in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.success))
    groups: dict[str, list[SuccessRow]] = {}
    for row in sorted(
        results.success, key=lambda r: (place[r.policy], not r.is_stock, r.solver, -r.num_steps)
    ):
        groups.setdefault(row.group, []).append(row)
    return {group: groups[group] for group in dict.fromkeys(row.group for row in results.success)}


def rate(row: SuccessRow) -> str:
    """A success rate in percent with Wilson's interval, such as `91.0 [88.2, 93.2]`."""
    return percentage(row.rate) + span(row.interval, percentage)


def points_cell(row: SuccessRow | None) -> Cell:
    """The paired difference to the deployed teacher, in points."""
    paired = row.versus_teacher if row is not None else None
    return measure(paired.difference if paired is not None else None, points)


def noninferiority(results: Results) -> Section | None:
    """What the pairs say at the margin, over all episodes; None where nobody asked."""
    rows = [
        (row, row.noninferiority)
        for row in by_group(results).get("all", [])
        if row.noninferiority is not None
    ]
    margins = " or ".join(points_of(margin) for margin in sorted({found.margin for _, found in rows}))
    return table(
        "noninferiority",
        f"Not worse than the teacher by more than {margins} points?",
        rows,
        [
            Column("policy", lambda of: POLICY.cell(of[0])),
            Column("decision", lambda of: of[1].decision),
            Column("steps", lambda of: count(of[0].num_steps)),
            Column(POINTS, lambda of: _between(of[1].lower, of[1].upper)),
            Column("episodes\nrun", lambda of: count(of[1].episodes)),
            Column(
                "episodes\nneeded",
                lambda of: count(of[1].episodes_needed),
                "Needed: about how many paired episodes would decide, where these do not.",
            ),
        ],
        left=2,
        below="Non-inferior: the whole interval lies above minus the margin; inferior: below it.",
        marked=lambda of: _marked(results)(of[0]),
    )


def _between(low: float, high: float) -> Cell:
    return figure(f"[{points(low)}, {points(high)}]", low)


def points_of(margin: float) -> str:
    """A margin in percentage points, such as `2` or `2.5`."""
    return f"{100 * margin:g}"


def sequential(results: Results) -> Section | None:
    """Where sequential runs stopped; None for a run of fixed length."""
    if not results.sequential:
        return None
    first = results.sequential[0].decision
    source = " (Waudby-Smith and Ramdas 2023)" if first.method == "betting" else ""
    place = rank(results, (row.policy for row in results.sequential))
    return table(
        "sequential",
        f"Sequential decision at a margin of {points_of(first.margin)} points",
        sorted(results.sequential, key=lambda row: (place[row.policy], -row.num_steps)),
        [
            Column("policy", lambda row: way(row.policy)),
            Column("decision", lambda row: row.decision.decision),
            STEPS,
            Column("episodes", lambda row: count(row.decision.episodes)),
            Column(POINTS, lambda row: _between(row.decision.low, row.decision.high)),
            Column("e-value,\nnon-inferior", lambda row: number(row.decision.e_non_inferior, amount)),
            Column("e-value,\ninferior", lambda row: number(row.decision.e_inferior, amount)),
            Column("looks", lambda row: count(row.decision.looks)),
            Column("stopped\nearly", lambda row: "yes" if row.decision.stopped_early else "no"),
        ],
        left=2,
        below=f"By {clean(first.method)}{source}, valid however often one looks: decided once the evidence against the "
        f"contrary, an e-value, reaches {amount(2 / first.alpha)}, which is 2 / {first.alpha:g} for two sides. The "
        "interval holds at all looks at once.",
        marked=_marked(results),
    )


def flip_checks(results: Results) -> Section | None:
    """Flips of first chunks against the sides taken; None where the environment tells none."""
    return table(
        "flips",
        "Flips of first chunks against the side that was taken",
        results.flip_checks,
        [
            Column("policy", lambda row: way(row.policy)),
            STEPS,
            Column("episodes", lambda row: count(row.episodes)),
            Column("flips", lambda row: count(row.flips)),
            Column("other side", lambda row: count(row.other_side)),
            Column("the two agree", lambda row: count(row.agree)),
        ],
    )


# ---- Motion, delays, time -------------------------------------------------------------------------------

MOTION_UNITS = {
    "jerk": "robot's units per control step cubed, squared",
    "path length": "robot's units",
    "jump": "robot's units, at chunk boundaries",
    "length": "control steps",
    "seconds": "s of wall-clock time an episode",
}


def motion(results: Results) -> Section | None:
    """How policies move; None without rollouts."""
    by_measure = motion_rows(results)
    units = "; ".join(f"{name} in {MOTION_UNITS[name]}" for name in by_measure)
    return table(
        "motion",
        "How the policies move, mean over episodes",
        [row for rows in by_measure.values() for row in rows],
        [
            Column("measure", lambda row: row.measure),
            POLICY,
            STEPS,
            Column("mean,\n95 % interval", lambda row: measure(row.mean)),
            Column("to the teacher,\npaired", lambda row: measure(row.difference)),
            Column("episodes", lambda row: count(row.episodes)),
        ],
        left=2,
        below=f"Units: {units}.",
        marked=_marked(results),
    )


def motion_rows(results: Results) -> dict[str, list[MotionRow]]:
    """The rows of each measure, in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.motion))
    rows = sorted(results.motion, key=lambda r: (place[r.policy], r.solver, -r.num_steps))
    found = {name: [row for row in rows if row.measure == name] for name in MOTION_UNITS}
    return {name: own for name, own in found.items() if own}


MODES = {
    "none": "no delay",
    "sync": "waits",
    "async": "goes on, then switches",
    "rtc": "real-time chunking",
}
"""What the robot does while the next chunk is made."""


def delays(results: Results) -> Section | None:
    """Success and motion under a delay; None where none was injected."""
    place, modes = rank(results, (row.policy for row in results.delays)), list(MODES)
    again = f" {REPEATED_STARTS}" if any(row.starts is not None for row in results.delays) else ""
    return table(
        "delays",
        "Rollouts with an inference delay",
        sorted(
            results.delays,
            key=lambda r: (place[r.policy], -r.num_steps, modes.index(r.mode), r.guidance_weight or 0, r.delay),
        ),
        [
            Column("policy", lambda row: way(row.policy)),
            Column("meanwhile\nthe robot", lambda row: MODES[row.mode]),
            STEPS,
            Column(
                "guidance\nweight",
                lambda row: number(row.guidance_weight, lambda value: f"{value:g}"),
                "Guidance weight: the most that real-time chunking pulls the new chunk to the old one.",
            ),
            Column("delay", lambda row: count(row.delay)),
            Column(
                "success %,\n95 % interval",
                lambda row: figure(percentage(row.rate) + span(row.interval, percentage), row.rate),
            ),
            Column(
                "points to\nundelayed",
                lambda row: measure(row.versus_undelayed.difference, points) if row.versus_undelayed else absent(),
            ),
            Column("jump", lambda row: measure(row.jump)),
            Column("jerk", lambda row: measure(row.jerk)),
        ],
        left=2,
        below=f"Delay: control steps between asking for a chunk and having it.{again}",
    )  # fmt: skip


PARTS = {"all": "total_s", "network": "network_s", "simulator": "simulator_s", "processors": "processors_s",
         "chordflow": "other_s"}  # fmt: skip
"""Where the time of rollouts goes, by the names of the fields."""


def timing(results: Results) -> Section | None:
    """Where the time of rollouts went; None without."""
    place = rank(results, (row.policy for row in results.timing))

    def part(name: str) -> Callable[[Any], Cell]:
        return lambda row: number(getattr(row, name), seconds)

    return table(
        "timing",
        "Where the time of rollouts went",
        sorted(results.timing, key=lambda row: (place[row.policy], row.solver != "euler", -row.num_steps)),
        [
            POLICY,
            STEPS,
            *(Column(head, part(name)) for head, name in PARTS.items()),
            Column("overhead", lambda row: number(row.overhead, percent)),
        ],
        below="Overhead: all but the policy's network and the simulator.",
    )
