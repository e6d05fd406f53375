"""Tables of rollouts: success and what it decides, flips, motion, delays; of time; of the policies that acted."""

from functools import partial
from typing import Any, NamedTuple

from chordflow.reporting.section import POLICY, STEPS, STOCK, Cell, Column, Section, as_saved, in_order, table
from chordflow.results.episodes import DelayRow, MotionRow, SuccessRow
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.statistics import Estimate, Interval, Percentiles
from chordflow.results.wording import (
    REPEATED_STARTS,
    STARTS_TRAINED_ON,
    amount,
    capital,
    clean,
    p_value,
    percent,
    percentage,
    plural,
    points,
    seconds,
    steps,
)

POINTS = "points to\nthe teacher"


def rate(row: SuccessRow | DelayRow) -> Estimate:
    """A success rate with Wilson's interval."""
    return Estimate(row.rate, row.interval)


RATE: Column[Any] = Column("success %,\n95 % interval", rate, percentage)

# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> Section | None:
    """Rates by group of episodes, with the paired difference to the teacher."""
    groups, rows = by_group(results), results.success
    notes = {
        "The noise is drawn as lerobot-eval draws it: rates may be compared, episodes are not paired.":
            results.rollouts is not None and results.rollouts.noise == "lerobot",
        REPEATED_STARTS: any(row.starts is not None for row in rows),
        f"{capital(STARTS_TRAINED_ON)}: where observations for a student's training were collected.":
            any(row.group == STARTS_TRAINED_ON for row in rows),
        STOCK: not all(row.is_stock for row in rows),
    }  # fmt: skip
    paired = (
        "Differences are paired: same episodes and noise as the deployed teacher; p is McNemar's exact test."
    )
    if results.sequential:
        paired += (
            " The run could stop early: intervals of differences are confidence sequences, which hold at every look; p "
            "and Wilson's intervals are those of a fixed number of episodes."
        )

    def episodes(row: SuccessRow) -> Cell:
        group = groups[row.group]
        alike = len({other.episodes for other in group}) == 1
        return Cell(f"{clean(row.group)} ({row.episodes})", repeats=alike and row is not group[0])

    return table(
        "success", "Success in episodes", [row for group in groups.values() for row in group],
        Column("episodes", episodes),
        POLICY,
        STEPS,
        RATE,
        Column(POINTS, lambda row: row.versus_teacher.difference if row.versus_teacher else None, points, paired),
        Column("p", lambda row: row.versus_teacher.p_value if row.versus_teacher else None, p_value),
        Column("coverage of\nthe interval", lambda row: row.coverage, partial(percent, decimals=1),
               "Coverage: how often Wilson's interval holds a rate like this one, exactly."),
        left=2, below=" ".join(note for note, holds in notes.items() if holds), marked=partial(as_saved, results),
    )  # fmt: skip


def by_group(results: Results) -> dict[str, list[SuccessRow]]:
    """The rows of each group of episodes, in the order in which policies are shown."""
    rows = in_order(results, results.success)
    groups = dict.fromkeys(row.group for row in results.success)
    return {group: [row for row in rows if row.group == group] for group in groups}


def how_many(rows: list[SuccessRow]) -> str:
    """Episodes behind each row, such as `500 episodes` or `200 to 500 episodes`."""
    counts = sorted({row.episodes for row in rows}) or [0]
    return plural(counts[0], "episode") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} episodes"


def noninferiority(results: Results) -> Section | None:
    """What the pairs say at the margin, over all episodes; None where there is no margin."""
    rows = by_group(results).get("all", [])
    found = [(row, row.noninferiority) for row in rows if row.noninferiority is not None]
    margins = " or ".join(points_of(margin) for margin in sorted({decision.margin for _, decision in found}))
    return table(
        "noninferiority", f"Not worse than the teacher by more than {margins} points?", found,
        Column("policy", lambda of: POLICY.value(of[0])),
        Column("decision", lambda of: of[1].decision),
        Column("steps", lambda of: of[0].num_steps),
        Column(POINTS, lambda of: Interval(of[1].lower, of[1].upper), points),
        Column("episodes\nrun", lambda of: of[1].episodes),
        Column("episodes\nneeded", lambda of: of[1].episodes_needed,
               note="Needed: about how many paired episodes would decide, where these do not."),
        left=2, below="Non-inferior: the whole interval lies above minus the margin; inferior: below it.",
        marked=lambda of: as_saved(results, of[0]),
    )  # fmt: skip


def points_of(margin: float) -> str:
    """A margin in percentage points, such as `2` or `2.5`."""
    return f"{100 * margin:g}"


def sequential(results: Results) -> Section | None:
    """Where sequential runs stopped; None for a run of fixed length."""
    if not results.sequential:
        return None
    first = results.sequential[0].decision
    source = " (Waudby-Smith and Ramdas 2023)" if first.method == "betting" else ""
    below = (
        f"By {clean(first.method)}{source}, valid however often one looks: decided once the evidence against the "
        f"contrary, an e-value, reaches {amount(2 / first.alpha)}, which is 2 / {first.alpha:g} for two sides. The "
        "interval holds at all looks at once."
    )
    return table(
        "sequential", f"Sequential decision at a margin of {points_of(first.margin)} points",
        in_order(results, results.sequential),
        POLICY,
        Column("decision", lambda row: row.decision.decision),
        STEPS,
        Column("episodes", lambda row: row.decision.episodes),
        Column(POINTS, lambda row: Interval(row.decision.low, row.decision.high), points),
        Column("e-value,\nnon-inferior", lambda row: row.decision.e_non_inferior, amount),
        Column("e-value,\ninferior", lambda row: row.decision.e_inferior, amount),
        Column("looks", lambda row: row.decision.looks),
        Column("stopped\nearly", lambda row: "yes" if row.decision.stopped_early else "no"),
        left=2, below=below, marked=partial(as_saved, results),
    )  # fmt: skip


def flip_checks(results: Results) -> Section | None:
    """Flips of first chunks against the sides taken; None where the environment reports none."""
    return table(
        "flips", "Flips of first chunks against the side that was taken", results.flip_checks,
        POLICY,
        STEPS,
        Column("episodes", lambda row: row.episodes),
        Column("flips", lambda row: row.flips),
        Column("other side", lambda row: row.other_side),
        Column("the two agree", lambda row: row.agree),
    )  # fmt: skip


# ---- Motion, delays -------------------------------------------------------------------------------------

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
        "motion", "How the policies move, mean over episodes", [row for rows in by_measure.values() for row in rows],
        Column("measure", lambda row: row.measure),
        POLICY,
        STEPS,
        Column("mean,\n95 % interval", lambda row: row.mean),
        Column("to the teacher,\npaired", lambda row: row.difference),
        Column("episodes", lambda row: row.episodes),
        left=2, below=f"Units: {units}.", marked=partial(as_saved, results),
    )  # fmt: skip


def motion_rows(results: Results) -> dict[str, list[MotionRow]]:
    """The rows of each measure, in the order in which policies are shown."""
    rows = in_order(results, results.motion)
    found = {name: [row for row in rows if row.measure == name] for name in MOTION_UNITS}
    return {name: own for name, own in found.items() if own}


MODES = {
    "none": "no delay",
    "sync": "waits",
    "async": "continues, then switches",
    "rtc": "real-time chunking",
}
"""What the robot does while the next chunk is made."""


def delay_rows(results: Results) -> list[DelayRow]:
    """The rows of every policy and step count, by what the robot does meanwhile, then by delay."""
    place = list(MODES).index
    rows = sorted(results.delays, key=lambda row: (place(row.mode), row.guidance_weight or 0, row.delay))
    return in_order(results, rows)


def delays(results: Results) -> Section | None:
    """Success and motion under a delay; None where none was injected."""
    again = f" {REPEATED_STARTS}" if any(row.starts is not None for row in results.delays) else ""
    return table(
        "delays", "Rollouts with an inference delay", delay_rows(results),
        POLICY,
        Column("meanwhile\nthe robot", lambda row: MODES[row.mode]),
        STEPS,
        Column("guidance\nweight", lambda row: row.guidance_weight, "{:g}".format,
               "Guidance weight: the most that real-time chunking pulls the new chunk to the old one."),
        Column("delay", lambda row: row.delay),
        RATE,
        Column("points to\nundelayed", lambda row: row.versus_undelayed.difference if row.versus_undelayed else None,
               points),
        Column("jump", lambda row: row.jump),
        Column("jerk", lambda row: row.jerk),
        left=2, below=f"Delay: control steps between asking for a chunk and having it.{again}",
    )  # fmt: skip


# ---- Time, policies -------------------------------------------------------------------------------------

SPENT = {"all": "total_s", "network": "network_s", "simulator": "simulator_s", "processors": "processors_s",
         "chordflow": "other_s"}  # fmt: skip
"""Where the time of rollouts goes, by the names of the fields."""


def timing(results: Results) -> Section | None:
    """Where the time of rollouts went; None without."""

    def spent(head: str) -> Column[Any]:
        return Column(head, lambda row: getattr(row, SPENT[head]), seconds)

    return table(
        "timing", "Where the time of rollouts went", in_order(results, results.timing),
        POLICY,
        STEPS,
        *map(spent, SPENT),
        Column("overhead", lambda row: row.overhead, percent),
        below="Overhead: all but the policy's network and the simulator.",
    )  # fmt: skip


class Time(NamedTuple):
    """A row of the table of times: the median, percentiles where they were kept, relative to the teacher's chunk."""

    what: str
    p50: float
    percentiles: Percentiles | None
    relative: float


def latency(results: Results) -> Section | None:
    """Percentiles of every time that was measured; medians alone where only those were kept."""
    timed = results.timed
    if timed is None:
        return None
    below = (
        f"After warm-up, {plural(timed.repeats, 'repetition')}. Relative: to the teacher's chunk of "
        f"{steps(timed.teacher_num_steps)}, parts and sums of parts to the sum of its own."
    )
    if timed.teacher_num_steps > 1:
        below += (
            f" By the medians of encoding and one step, at most {timed.ceiling:.2f} times as fast by fewer steps, "
            "since encoding is paid once whatever their number."
        )
    whole = timed.chunk_s(timed.teacher_num_steps)
    measured = {chunk.num_steps: chunk.seconds for chunk in timed.chunks}
    rows = [
        Time("encode the observation", timed.encode_s, timed.encode, timed.encode_s / whole),
        Time("one step", timed.step_s, timed.step, timed.step_s / whole),
    ]
    for n in chunk_steps(results):
        name = f"chunk at {steps(n)}{'' if n in measured else ', summed up'}"
        rows.append(Time(name, timed.chunk_s(n), measured.get(n), timed.relative(n)))
    for policy, made in timed.exported.items():
        name, time = f"chunk at {steps(made.num_steps)}, {clean(policy)} (exported)", made.seconds
        rows.append(Time(name, time.p50, time, timed.relative(made.num_steps, policy)))
    if (own := timed.processors_s) is not None:
        rows.append(Time("processors, not a part of the above", own, None, own / whole))

    def percentile(which: str) -> Column[Time]:
        return Column(which, lambda row: getattr(row.percentiles, which, None), seconds)

    return table(
        "latency", f"Time on {clean(results.device)}, {plural(timed.batch_size, 'observation')} at a time", rows,
        Column("what", lambda row: row.what),
        Column("p50", lambda row: row.percentiles.p50 if row.percentiles is not None else row.p50, seconds),
        *map(percentile, ("p90", "p95", "p99")),
        Column("relative", lambda row: row.relative, "{:.2f}".format),
        # Without percentiles it says no more than the findings.
        below=below, page_only=timed.encode is None and not timed.chunks,
    )  # fmt: skip


def chunk_steps(results: Results) -> list[int]:
    """Step counts that a chunk's time is shown for."""
    if (timed := results.timed) is None:
        return []
    own = {chunk.num_steps for chunk in timed.chunks}
    return sorted(own | {1, timed.student_num_steps, timed.teacher_num_steps})


def _checkpoint(info: PolicyInfo) -> str:
    """Where a policy was loaded from, and of an exported folder what it was made of."""
    made = info.exported
    of = f" (exported, {made.backend} {made.precision}, of {clean(made.checkpoint)})" if made else ""
    return f"{clean(info.path)}{of}"


def policies(results: Results) -> Section | None:
    """The policies of the run; None where the file does not list them."""
    return table(
        "policies", "Policies that were compared", results.policies,
        Column("policy", lambda row: clean(row.name)),
        Column("checkpoint", _checkpoint),
        Column("family", lambda row: clean(row.family)),
        STEPS,
        Column("parameters", lambda row: row.parameters),
        Column("SHA-256 of\nits weights", lambda row: clean(row.weights_sha256)[:12]),
        left=3,
    )  # fmt: skip
