"""Tables of what every run measures: action gaps and success."""

from chordflow.reporting.free_table import noise_cell, normalisations
from chordflow.reporting.section import (
    STOCK,
    Cell,
    Section,
    absent,
    count,
    figure,
    is_student,
    rank,
    way,
)
from chordflow.results.schema import GapRow, PolicyName, Results, SuccessRow
from chordflow.results.wording import (
    REPEATED_STARTS,
    STARTS_TRAINED_ON,
    amount,
    clean,
    p_value,
    percent,
    percentage,
    points,
    span,
    steps,
)

# ---- Action gaps ----------------------------------------------------------------------------------------


def gaps(results: Results) -> Section:
    """Every way to act against both references, and the floor."""
    fine = next((str(r.reference_num_steps) for r in results.gaps if r.reference == "converged"), "many")
    section = Section(
        key="gap",
        title="Action gap to the teacher from the same noise, relative to its spread, held out",
        heads=["policy", "steps"],
        left=1,
    )
    evaluations = any(row.nfe != row.num_steps for row in results.gaps)
    intervals = any(row.interval is not None for row in results.gaps)
    noise = [("of\nnoise", False)] if results.of_noise(0.0) is not None else []
    heads = [(f"RMS\nto {results.teacher_num_steps}", False), ("95 %\ninterval", True), *noise]
    heads += [
        ("median", False),
        ("flips", False),
        (f"RMS\nto {fine}", False),
        ("95 %\ninterval", True),
        *noise,
    ]
    heads += [("mean\ndiff.", False), ("max\ndiff.", False)]
    if evaluations:
        section.heads.append("nfe")
    for head, wide in heads:
        if wide and not intervals:
            continue
        if wide:
            section.wide.add(len(section.heads))
        section.heads.append(head)
    if results.timed is not None:
        section.heads.append("time")
    for policy, solver, num_steps in ways(results):
        near, far = (
            results.gap(policy, num_steps, reference, solver) for reference in ("deployed", "converged")
        )
        row = near or far
        assert row is not None
        cells = [Cell(way(policy, solver)), count(num_steps), *([count(row.nfe)] if evaluations else [])]
        cells += _gap_cells(results, near, far, intervals)
        if results.timed is not None:
            time = results.timed.relative(row.nfe)
            cells.append(figure(f"{time:.2f}", time))
        section.add(*cells, marked=is_student(results, policy, num_steps, solver))
    if said := normalisations(results):
        section.note(said, *["of\nnoise"] * bool(noise))
    floor = results.floor
    if floor is not None:
        cells = [Cell("floor"), count(floor.num_steps), *([count(floor.nfe)] if evaluations else [])]
        cells += _gap_cells(results, None, floor, intervals)
        section.add(*cells, *[absent()] * (len(section.heads) - len(cells)))
        section.note(
            f"Floor: the teacher at {steps(floor.num_steps)} to its own converged ODE, below which a gap means little."
        )
    flips = ", flips" * any(row.flip_rate is not None for row in results.gaps)
    section.note(
        f"Median{flips} and differences (robot's units) are to the deployed teacher where that gap was measured, else "
        "to the ODE.",
        "median",
    )
    section.note("Time of a chunk: 1 is the teacher's as deployed.", "time")
    if any(not row.is_stock for row in results.gaps):
        section.note(STOCK)
    return section


def ways(results: Results) -> list[tuple[PolicyName, str, int]]:
    """Every policy, solver and step count that has a gap: the teacher first, Euler first, few steps last."""
    found = {(row.policy, row.solver, row.num_steps) for row in results.gaps}
    place = rank(results, (row.policy for row in results.gaps))
    return sorted(found, key=lambda way: (place[way[0]], way[1] != "euler", way[1], -way[2]))


def _gap_cells(results: Results, near: GapRow | None, far: GapRow | None, intervals: bool) -> list[Cell]:
    detailed = near or far
    flips = detailed.flip_rate if detailed else None

    def rms(row: GapRow | None) -> list[Cell]:
        cells = [figure(percent(row.rms, 1), row.rms) if row else absent()]
        if intervals:
            ends = row.interval if row else None
            cells.append(figure(span(ends, percentage).strip(), ends.low) if ends else absent())
        if results.of_noise(0.0) is not None:
            cells.append(noise_cell(results, row) if row else absent())
        return cells

    return [
        *rms(near),
        figure(percent(detailed.median, 1), detailed.median) if detailed else absent(),
        figure(percent(flips, 1), flips) if flips is not None else absent(),
        *rms(far),
        figure(amount(detailed.mean_abs), detailed.mean_abs) if detailed else absent(),
        figure(amount(detailed.max_abs), detailed.max_abs) if detailed else absent(),
    ]


# ---- Success --------------------------------------------------------------------------------------------


def success(results: Results) -> Section:
    """Rates by group of episodes, with the paired difference to the teacher."""
    section = Section(
        key="success",
        title="Success in episodes",
        heads=[
            "episodes", "policy", "steps", "success %,\n95 % interval", "points to\nthe teacher", "p",
            "coverage of\nthe interval",
        ],
        left=2,
        wide={6},
    )  # fmt: skip
    if results.rollouts is not None and results.rollouts.noise == "lerobot":
        section.below = (
            "The noise is drawn as lerobot-eval draws it: rates may be compared, episodes are not paired."
        )
    if any(row.starts is not None for row in results.success):
        section.note(REPEATED_STARTS)
    if any(row.group == STARTS_TRAINED_ON for row in results.success):
        section.note(
            f"{STARTS_TRAINED_ON.capitalize()}: where observations for a student's training were collected."
        )
    if any(not row.is_stock for row in results.success):
        section.note(STOCK)
    section.note(
        "Differences are paired: same episodes and noise as the deployed teacher; p is McNemar's exact test.",
        "points to\nthe teacher",
    )
    if results.sequential:
        section.note(
            "The run could stop early: intervals of differences are confidence sequences, which hold at every look; p "
            "and Wilson's intervals are those of a fixed number of episodes.",
            "points to\nthe teacher",
        )
    section.note(
        "Coverage: how often Wilson's interval holds a rate like this one, exactly.",
        "coverage of\nthe interval",
    )
    for group, rows in by_group(results).items():
        counts = {row.episodes for row in rows}
        for index, row in enumerate(rows):
            label = f"{clean(group)} ({row.episodes})"
            cells = [
                Cell(label, repeats=index > 0 and len(counts) == 1),
                Cell(way(row.policy, row.solver, row.grid_power)),
                count(row.num_steps),
                figure(rate(row), row.rate),
                *_paired(row),
                figure(percent(row.coverage, 1), row.coverage) if row.coverage is not None else absent(),
            ]
            section.add(*cells, marked=is_student(results, row.policy, row.num_steps, row.solver))
    return section


def by_group(results: Results) -> dict[str, list[SuccessRow]]:
    """The rows of each group of episodes, in the order in which policies are shown."""
    place = rank(results, (row.policy for row in results.success))
    groups: dict[str, list[SuccessRow]] = {}
    for row in results.success:
        groups.setdefault(row.group, []).append(row)
    return {
        group: sorted(
            rows,
            key=lambda r: (place[r.policy], not r.is_stock, r.solver, -r.num_steps),
        )
        for group, rows in groups.items()
    }  # fmt: skip


def rate(row: SuccessRow) -> str:
    """A success rate in percent with Wilson's interval, such as ``91.0 [88.2, 93.2]``."""
    return percentage(row.rate) + span(row.interval, percentage)


def _paired(row: SuccessRow) -> list[Cell]:
    if row.versus_teacher is None:
        return [absent()] * 2
    difference = row.versus_teacher.difference
    return [
        figure(points(difference.value) + span(difference.interval, points), difference.value),
        figure(p_value(row.versus_teacher.p_value), row.versus_teacher.p_value),
    ]


def noninferiority(results: Results) -> Section | None:
    """What the pairs say at the margin, over all episodes; None where nobody asked."""
    rows = [row for row in by_group(results).get("all", []) if row.noninferiority is not None]
    if not rows:
        return None
    margins = sorted({row.noninferiority.margin for row in rows if row.noninferiority is not None})
    section = Section(
        key="noninferiority",
        title=f"Not worse than the teacher by more than {' or '.join(points_of(m) for m in margins)} points?",
        heads=["policy", "decision", "steps", "points to\nthe teacher", "episodes\nrun", "episodes\nneeded"],
        left=2,
        below="Non-inferior: the whole interval lies above minus the margin; inferior: below it.",
    )
    section.note(
        "Needed: about how many paired episodes would decide, where these do not.", "episodes\nneeded"
    )
    for row in rows:
        found = row.noninferiority
        assert found is not None
        section.add(
            way(row.policy, row.solver, row.grid_power),
            found.decision,
            count(row.num_steps),
            figure(f"[{points(found.lower)}, {points(found.upper)}]", found.lower),
            count(found.episodes),
            count(found.episodes_needed) if found.episodes_needed is not None else absent(),
            marked=is_student(results, row.policy, row.num_steps, row.solver),
        )
    return section


def points_of(margin: float) -> str:
    """A margin in percentage points, such as ``2`` or ``2.5``."""
    return f"{100 * margin:g}"


def sequential(results: Results) -> Section | None:
    """Where sequential runs stopped; None for a run of fixed length."""
    if not results.sequential:
        return None
    first = results.sequential[0].decision
    source = " (Waudby-Smith and Ramdas 2023)" if first.method == "betting" else ""
    method = f"{clean(first.method)}{source}"
    section = Section(
        key="sequential",
        title=f"Sequential decision at a margin of {points_of(first.margin)} points",
        heads=[
            "policy", "decision", "steps", "episodes", "points to\nthe teacher", "e-value,\nnon-inferior",
            "e-value,\ninferior", "looks", "stopped\nearly",
        ],
        left=2,
        wide={7},
        below=f"By {method}, valid however often one looks: decided once the evidence against the contrary, an "
        f"e-value, reaches {amount(2 / first.alpha)}, which is 2 / {first.alpha:g} for two sides. The interval holds "
        "at all looks at once.",
    )  # fmt: skip
    place = rank(results, (row.policy for row in results.sequential))
    for row in sorted(results.sequential, key=lambda r: (place[r.policy], -r.num_steps)):
        found = row.decision
        section.add(
            way(row.policy),
            found.decision,
            count(row.num_steps),
            count(found.episodes),
            figure(f"[{points(found.low)}, {points(found.high)}]", found.low),
            figure(amount(found.e_non_inferior), found.e_non_inferior),
            figure(amount(found.e_inferior), found.e_inferior),
            count(found.looks),
            "yes" if found.stopped_early else "no",
            marked=is_student(results, row.policy, row.num_steps),
        )
    return section


def flip_checks(results: Results) -> Section | None:
    """Flips of first chunks against the sides taken; None where the environment tells none."""
    if not results.flip_checks:
        return None
    section = Section(
        key="flips",
        title="Flips of first chunks against the side that was taken",
        heads=["policy", "steps", "episodes", "flips", "other side", "the two agree"],
        left=1,
        terminal=False,
        markdown=False,
    )
    for row in results.flip_checks:
        cells = [count(n) for n in (row.num_steps, row.episodes, row.flips, row.other_side, row.agree)]
        section.add(way(row.policy), *cells)
    return section
