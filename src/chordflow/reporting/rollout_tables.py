"""Tables of rollouts: motion, delays, where their time went."""

from chordflow.reporting.section import Section, absent, count, figure, is_student, rank, way
from chordflow.results.schema import MotionRow, Results
from chordflow.results.wording import (
    REPEATED_STARTS,
    estimate,
    percent,
    percentage,
    points,
    seconds,
    span,
)

MOTION_UNITS = {
    "jerk": "robot's units per control step cubed, squared",
    "path length": "robot's units",
    "jump": "robot's units, at chunk boundaries",
    "length": "control steps",
    "seconds": "s of wall-clock time an episode",
}


def motion(results: Results) -> Section | None:
    """How policies move; None without rollouts."""
    if not results.motion:
        return None
    section = Section(
        key="motion",
        title="How the policies move, mean over episodes",
        heads=["measure", "policy", "steps", "mean,\n95 % interval", "to the teacher,\npaired", "episodes"],
        left=2,
        below="Units: "
        + "; ".join(
            f"{name} in {MOTION_UNITS[name]}" for name in MOTION_UNITS if name in motion_rows(results)
        )
        + ".",
    )
    for measure, rows in motion_rows(results).items():
        for row in rows:
            section.add(
                measure,
                way(row.policy, row.solver, row.grid_power),
                count(row.num_steps),
                figure(estimate(row.mean), row.mean.value),
                figure(estimate(row.difference), row.difference.value) if row.difference else absent(),
                count(row.episodes),
                marked=is_student(results, row.policy, row.num_steps, row.solver),
            )
    return section


def motion_rows(results: Results) -> dict[str, list[MotionRow]]:
    """The rows of each measure, in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.motion))
    found: dict[str, list[MotionRow]] = {}
    for measure in MOTION_UNITS:
        rows = [row for row in results.motion if row.measure == measure]
        if rows:
            found[measure] = sorted(rows, key=lambda r: (place[r.policy], r.solver, -r.num_steps))
    return found


MODES = {
    "none": "no delay",
    "sync": "waits",
    "async": "goes on, then switches",
    "rtc": "real-time chunking",
}
"""What the robot does while the next chunk is made."""


def delays(results: Results) -> Section | None:
    """Success and motion under a delay; None where none was injected."""
    if not results.delays:
        return None
    section = Section(
        key="delays",
        title="Rollouts with an inference delay",
        heads=[
            "policy", "meanwhile\nthe robot", "steps", "guidance\nweight", "delay", "success %,\n95 % interval",
            "points to\nundelayed", "jump", "jerk",
        ],
        left=2,
        wide={8},
        below="Delay: control steps between asking for a chunk and having it.",
    )  # fmt: skip
    if any(row.starts is not None for row in results.delays):
        section.note(REPEATED_STARTS)
    section.note(
        "Guidance weight: the most that real-time chunking pulls the new chunk to the old one.",
        "guidance\nweight",
    )
    place = rank(results, (row.policy for row in results.delays))
    modes = list(MODES)
    for row in sorted(
        results.delays,
        key=lambda r: (place[r.policy], -r.num_steps, modes.index(r.mode), r.guidance_weight or 0, r.delay),
    ):
        paired = row.versus_undelayed
        weight = row.guidance_weight
        section.add(
            way(row.policy),
            MODES[row.mode],
            count(row.num_steps),
            figure(f"{weight:g}", weight) if weight is not None else absent(),
            count(row.delay),
            figure(percentage(row.rate) + span(row.interval, percentage), row.rate),
            figure(estimate(paired.difference, points), paired.difference.value) if paired else absent(),
            figure(estimate(row.jump), row.jump.value) if row.jump else absent(),
            figure(estimate(row.jerk), row.jerk.value) if row.jerk else absent(),
        )
    return section


def timing(results: Results) -> Section | None:
    """Where the time of rollouts went; None without."""
    if not results.timing:
        return None
    section = Section(
        key="timing",
        title="Where the time of rollouts went",
        heads=["policy", "steps", "all", "network", "simulator", "processors", "chordflow", "overhead"],
        left=1,
        below="Overhead: all but the policy's network and the simulator.",
    )
    place = rank(results, (row.policy for row in results.timing))
    for row in sorted(results.timing, key=lambda r: (place[r.policy], r.solver != "euler", -r.num_steps)):
        times = (row.total_s, row.network_s, row.simulator_s, row.processors_s, row.other_s)
        section.add(
            way(row.policy, row.solver, row.grid_power),
            count(row.num_steps),
            *(figure(seconds(value), value) for value in times),
            figure(percent(row.overhead), row.overhead),
        )
    return section
