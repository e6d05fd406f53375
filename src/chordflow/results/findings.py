"""What the measures say, rule by rule; every rule and its threshold is written down here or in `student_findings`.

A rule is a function from results to a sentence or to None, where it has nothing to say or was not measured. It sees
the measures as they are; only what is printed is rounded. docs/diagnose.md gives the reasons.
"""

import math
from collections.abc import Callable

from scipy.stats import binom

from chordflow.results import student_findings as of_students
from chordflow.results.actions import TEACHER, GapRow
from chordflow.results.free import (
    against_floor,
    clearly_lower,
    euler_beside,
    free_ways,
    grid_text,
    noise_text,
    within_floor,
)
from chordflow.results.schema import Finding, Results
from chordflow.results.statistics import Interval
from chordflow.results.student_findings import FEW_STEPS
from chordflow.results.wording import UNRELIABLE, capital, number, percent, size, steps

LITTLE_SPEEDUP = 1.2
"""Below this ceiling step distillation is not worth its training."""

ENCODING_SHARE = 0.5
"""From this share of a one-step chunk on, encoding is what has to become faster."""

LARGE_FLOOR = 0.1
"""From this gap to the converged ODE on, the policy as deployed is itself solved coarsely."""

BETTER_SOLVER = 0.9
"""A solver is better than Euler where its gap is at most this share of Euler's."""

TIME_BANDS = 5
"""Equal parts of time among which the most bent one is looked for."""

BENT_BAND = 0.4
"""Share of the bend from which on a fifth of time is named: twice its even share."""

BENT_DIMENSION = 1.5
"""A dimension is named from this many times its even share of the bend on."""

TWO_SIDED_SHARE = 0.05
"""Share of observations with several modes from which on a policy counts as two-sided."""

SEEN_CONFIDENCE = 0.95
"""Probability with which a mode is seen that is said to be seen."""

LEAST_IN_MODE = 2
"""Endpoints that make a mode, by the rule of `evaluation.modes`; a larger one for 40 noises or more."""

LEAST_SHARE = 0.05
"""The same as a share of the endpoints."""

LONG_TAIL = 1.5
"""From this ratio of p99 to p50 on, the slowest chunks are named."""

ROUNDS, ROUNDS_AUTO = "rounds", "rounds_auto"
"""Names of the findings that compare rounds and say why they stopped: they come from the run and from no rule."""

PROCESSORS_SHARE = 0.5
"""From this share of a one-step chunk on, the processors are named."""


def findings(results: Results) -> list[Finding]:
    """Everything that the rules find, the most important first; the order is that of `RULES`.

    What the run says of its rounds is taken over from the results and comes first.
    """
    found = [(rule.__name__, rule(results)) for rule in RULES]
    kept = [finding for finding in results.findings if finding.rule in (ROUNDS, ROUNDS_AUTO)]
    return [*kept, *(Finding(name, text) for name, text in found if text is not None)]


def acts_in_one_step(results: Results) -> str | None:
    """The policy is deployed at one step: there are no steps to save."""
    if results.teacher_num_steps != 1:
        return None
    return "The policy acts in one step already: there are no steps left to save."


def no_training_needed(results: Results) -> str | None:
    """Untrained, with at most `FEW_STEPS` evaluations, the policy is within the floor of itself as deployed."""
    row = _within_the_floor(results, max(FEW_STEPS, results.student_num_steps or 0))
    if row is None:
        return None
    it, figures = _it(row), against_floor(results, row, " to the converged ODE")
    enough = "is" if row.num_steps == 1 else "are"
    return f"{_way(row)} {enough} enough: {it} within the floor ({figures}); {_how_to_use(row)}, without training."


def timings_unreliable(results: Results) -> str | None:
    """Times contradict each other, so no figure of time is printed."""
    if not results.timings_unreliable:
        return None
    return f"{capital(UNRELIABLE)}; measure again on an idle one."


def speed_is_not_in_the_steps(results: Results) -> str | None:
    """Even one step would make a chunk less than `LITTLE_SPEEDUP` times as fast: do not train for speed."""
    latency = results.timed
    if latency is None or results.teacher_num_steps == 1 or latency.ceiling >= LITTLE_SPEEDUP:
        return None
    share = percent(latency.encode_share(1), 0)
    return (
        f"Training for speed is not worth it on this device: one step can make a chunk at most {latency.ceiling:.2f} "
        f"times as fast, since encoding the observation takes {share} of it."
    )


def one_step_loses(results: Results) -> str | None:
    """The gap of one untrained step to the policy as deployed, which a student closes, and what it can gain."""
    row = results.gap(TEACHER, 1, "deployed")
    if row is None or results.teacher_num_steps == 1:
        return None
    flips = f", {percent(row.flip_rate)} at another mode" if row.flip_rate else ""
    text = (
        f"One untrained step loses {percent(row.rms)} RMS{_span(row.interval)}{noise_text(results, row)} against the "
        "policy's "
        f"{steps(results.teacher_num_steps)} (median {percent(row.median)}{flips})"
    )
    two = results.gap(TEACHER, 2, "deployed")
    if two is not None and results.teacher_num_steps > 2:
        text += f", two lose {percent(two.rms)}"
    if results.timed is None:
        return f"{text}."
    return f"{text}: distillation can make a chunk at most {results.timed.ceiling:.1f} times as fast here."


def encoding_limits(results: Results) -> str | None:
    """Encoding takes at least `ENCODING_SHARE` of a one-step chunk."""
    latency = results.timed
    if latency is None or latency.ceiling < LITTLE_SPEEDUP:
        return None
    share = latency.encode_share(1)
    if share < ENCODING_SHARE or results.teacher_num_steps == 1:
        return None
    return (
        f"Encoding the observation takes {percent(share, 0)} of a one-step chunk: fewer steps can give "
        f"{latency.ceiling:.2f} times at most on this device."
    )


def fewer_steps_are_free(results: Results) -> str | None:
    """Untrained, with more than `FEW_STEPS` evaluations but fewer than deployed, the policy is within the floor."""
    row = _within_the_floor(results, results.teacher_num_steps)
    if row is None or no_training_needed(results) is not None:
        return None
    figures = against_floor(results, row, " to the converged ODE")
    text = f"{_way(row)} {'lies' if row.num_steps == 1 else 'lie'} within the floor ({figures}): {_how_to_use(row)}"
    if results.timed is None:
        return f"{text}."
    gain = 1 / results.timed.relative(row.nfe)
    return f"{text}, which makes a chunk {gain:.2f} times as fast without training."


def two_sided(results: Results) -> str | None:
    """Several modes at `TWO_SIDED_SHARE` of the observations or more: there the mean of the actions is no action."""
    if not results.spreads or results.held_out is None:
        return None
    several = [row for row in results.spreads if row.modes > 1]
    share = len(several) / len(results.spreads)
    unseen = unseen_share(results.held_out.noises)
    caution = (
        f"with {results.held_out.noises} noises each, a mode that fewer than {percent(unseen, 0)} of noises choose may "
        "go unseen"
    )
    if share < TWO_SIDED_SHARE:
        seen = "no observation" if not several else f"{percent(share)} of observations"
        return f"At {seen} more than one mode is seen among the policy's actions ({caution})."
    widest = max(several, key=lambda row: row.spread)
    return (
        f"At {percent(share, 0)} of observations the policy has two or more modes, and an averaged action would be "
        f"wrong there, the most at frame {widest.frame} of episode {widest.episode} ({caution})."
    )


def unseen_share(noises: int) -> float:
    """The share of noises below which a mode may go unseen.

    It is the smallest share with which at least `LEAST_IN_MODE` endpoints, and `LEAST_SHARE` of them, fall into
    the mode with probability `SEEN_CONFIDENCE`.

    Args:
        noises: endpoints of an observation, at least 2.
    """
    least = max(LEAST_IN_MODE, math.ceil(LEAST_SHARE * noises))
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        if binom.sf(least - 1, noises, middle) >= SEEN_CONFIDENCE:
            high = middle
        else:
            low = middle
    return high


def the_floor(results: Results) -> str | None:
    """The gap of the policy as deployed to its own converged ODE; from `LARGE_FLOOR` on, it is solved coarsely."""
    row = results.floor
    if row is None:
        return None
    text = (
        f"As deployed, at {steps(row.num_steps)}, the policy is itself {percent(row.rms)} RMS{_span(row.interval)}"
        f"{noise_text(results, row)} from its converged ODE"
    )
    if row.rms >= LARGE_FLOOR:
        return (
            f"{text}: its steps are coarse, so see whether more of them act better; a student of couplings by "
            "euler would imitate their errors."
        )
    return f"{text}; a gap below that means little."


def bend_in_time(results: Results) -> str | None:
    """The fifth of time with the largest share of the bend, named from `BENT_BAND` on."""
    row = results.curvature_of(TEACHER)
    if row is None or not sum(row.s_by_time) > 0:
        return None
    bands = [0.0] * TIME_BANDS
    for t, s in zip(row.times, row.s_by_time, strict=True):
        # The grid's times are starts of steps from 1 downwards: a step belongs to the part that it crosses.
        middle = t - 0.5 / row.num_steps
        bands[min(int(middle * TIME_BANDS), TIME_BANDS - 1)] += s
    share, band = max((s / sum(bands), index) for index, s in enumerate(bands))
    text = f"Paths bend by {percent(row.curvature)}{_span(row.interval)} of their chord"
    if share < BENT_BAND:
        return f"{text}, at all times much alike."
    if band == 0:
        where = f"t < {1 / TIME_BANDS:.1f}, near the action"
    elif band == TIME_BANDS - 1:
        where = f"t > {1 - 1 / TIME_BANDS:.1f}, near the noise"
    else:
        where = f"t from {band / TIME_BANDS:.1f} to {(band + 1) / TIME_BANDS:.1f}"
    return f"{text}; {percent(share, 0)} of the bend lies at {where}."


def bent_dimension(results: Results) -> str | None:
    """The real action dimension that bends most, named from `BENT_DIMENSION` times its even share on."""
    row = results.curvature_of(TEACHER)
    if row is None or not row.s_by_time_and_dim:
        return None
    real = len(row.s_by_time_and_dim[0])
    by_dim = row.s_by_dim[:real]
    if real < 2 or not sum(by_dim) > 0:
        return None
    share, index = max((s / sum(by_dim), index) for index, s in enumerate(by_dim))
    if share < BENT_DIMENSION / real:
        return None
    return f"Action dimension {index}, counted from 0, has {percent(share, 0)} of the bend of {real}."


def better_solver(results: Results) -> str | None:
    """A way's gap is at most `BETTER_SOLVER` of even Euler steps', for the fewest evaluations and as deployed."""
    found = [row for row in free_ways(results, results.teacher_num_steps) if _better(results, row)][:1]
    best = results.free.best(results.teacher_num_steps) if results.free is not None else None
    if best is not None and _better(results, best):
        found.append(best)
    said = [
        f"at {number(row.nfe)} evaluations {row.solver}{grid_text(row)} is nearer to the converged ODE than even "
        f"Euler steps ({percent(row.rms)} against {percent(euler)} RMS)"
        for row in found
        if (euler := euler_beside(results, row)) is not None
    ]
    return f"{capital(', '.join(said))}." if said else None


def _better(results: Results, row: GapRow) -> bool:
    euler = euler_beside(results, row)
    return not row.is_stock and euler is not None and row.rms <= BETTER_SOLVER * euler


def long_tail(results: Results) -> str | None:
    """The slowest chunk in a hundred takes `LONG_TAIL` times the median or more."""
    if results.timed is None:
        return None
    chunk = next(
        (c for c in results.timed.chunks if c.num_steps == results.teacher_num_steps),
        None,
    )
    if chunk is None or chunk.seconds.p99 < LONG_TAIL * chunk.seconds.p50:
        return None
    return (
        f"One chunk in a hundred takes {chunk.seconds.p99 / chunk.seconds.p50:.1f} times the median or longer: plan "
        f"for {1000 * chunk.seconds.p99:.1f} ms rather than {1000 * chunk.seconds.p50:.1f} ms."
    )


def processors_cost(results: Results) -> str | None:
    """The checkpoint's processors take `PROCESSORS_SHARE` of a one-step chunk or more."""
    latency = results.timed
    if latency is None or latency.processors_s is None:
        return None
    share = latency.processors_s / latency.chunk_s(1)
    if share < PROCESSORS_SHARE:
        return None
    return (
        f"The checkpoint's processors take {percent(share, 0)} of a one-step chunk on top of it, whatever the number "
        "of steps."
    )


def memory(results: Results) -> str | None:
    """What the policy holds in memory while it acts."""
    if results.latency is None or results.latency.memory is None:
        return None
    held = results.latency.memory
    peak = "on the accelerator" if held.kind == "accelerator" else "of the whole process"
    return f"The weights take {size(held.weights_bytes)}, and at most {size(held.peak_bytes)} {peak} were in use."


def teacher_may_have_seen(results: Results) -> str | None:
    """The observations may have been in the policy's own training, where it is at its best."""
    if results.held_out is None or not results.held_out.maybe_seen_by_teacher:
        return None
    return "The policy may have been trained on these observations; on new ones its actions may spread more."


RULES: tuple[Callable[[Results], str | None], ...] = (
    of_students.may_replace_the_teacher,
    of_students.student_gap,
    of_students.gaps_of_others,
    of_students.success_beside_untrained,
    of_students.success_of_the_teacher,
    of_students.chunks_come_faster,
    of_students.guidance_weight_matters,
    of_students.trained_for_other_steps,
    acts_in_one_step,
    no_training_needed,
    of_students.untrained_is_as_good,
    timings_unreliable,
    speed_is_not_in_the_steps,
    one_step_loses,
    encoding_limits,
    fewer_steps_are_free,
    two_sided,
    the_floor,
    of_students.student_beside_the_floor,
    of_students.student_beside_the_best_way,
    of_students.curvature_of_the_student,
    bend_in_time,
    bent_dimension,
    better_solver,
    long_tail,
    processors_cost,
    memory,
    teacher_may_have_seen,
)
"""Every rule, the most important first."""


def _within_the_floor(results: Results, most: int) -> GapRow | None:
    """The cheapest untrained way within the floor; even Euler steps, which need no code, first at the same cost."""
    rows = [r for r in free_ways(results, most) if within_floor(results, r) and not clearly_lower(results, r)]
    return min(rows, key=lambda row: (row.nfe, not row.is_stock, row.rms), default=None)


def _way(row: GapRow) -> str:
    kind = "untrained" if row.is_stock else f"untrained {row.solver}"
    cost = "" if row.nfe == row.num_steps else f" ({number(row.nfe)} evaluations)"
    return capital(f"{steps(row.num_steps, kind)}{grid_text(row)}{cost}")


def _it(row: GapRow) -> str:
    return "it lies" if row.num_steps == 1 else "they lie"


def _how_to_use(row: GapRow) -> str:
    if row.is_stock:
        return f"set the number of steps to {row.num_steps}"
    return (
        f"solve with {row.solver}{grid_text(row)}, where your deployment can (LeRobot's own sampler takes even Euler "
        "steps)"
    )


def _span(interval: Interval | None) -> str:
    return f" ({percent(interval.low)} to {percent(interval.high)})" if interval is not None else ""
