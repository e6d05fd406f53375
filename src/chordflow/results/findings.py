"""What the measures say, rule by rule, and the verdict; rules of untrained ways are in `free`, of students beside it.

A rule is a function from results to a sentence or to None, where it has nothing to say or was not measured. It sees
the measures as they are; only what is printed is rounded. docs/diagnose.md gives the reasons.
"""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import beta

from chordflow.refusing import look_up
from chordflow.results import free
from chordflow.results import student_findings as of_students
from chordflow.results.actions import TEACHER
from chordflow.results.schema import Finding, Results
from chordflow.results.statistics import Interval
from chordflow.results.wording import UNRELIABLE, capital, command_lines, percent, size, steps

LITTLE_SPEEDUP = 1.2
"""Below this ceiling step distillation is not worth its training."""

ENCODING_SHARE = 0.5
"""From this share of a one-step chunk on, encoding is what has to become faster."""

LARGE_FLOOR = 0.1
"""From this gap to the converged ODE on, the policy as deployed is itself solved coarsely."""

TIME_BANDS = 5
"""Equal parts of time among which the most bent one is looked for."""

BENT_BAND = 0.4
"""Share of the bend from which on a fifth of time is named: twice its even share."""

BENT_DIMENSION = 1.5
"""A dimension is named from this many times its even share of the bend on."""

TWO_SIDED_SHARE = 0.05
"""Share of observations with several modes from which on a policy counts as two-sided."""

SEEN_CONFIDENCE = 0.95
"""Probability with which a mode is seen where a finding calls it seen."""

LEAST_IN_MODE, LEAST_SHARE = 2, 0.05
"""Endpoints that make a mode, by the rule of `evaluation.modes`, and the same as a share of the endpoints."""

LONG_TAIL = 1.5
"""From this ratio of p99 to p50 on, the slowest chunks are named."""

PROCESSORS_SHARE = 0.5
"""From this share of a one-step chunk on, the processors are named."""

MOST_IMPORTANT = 3
"""Findings that make the verdict where no question was answered."""

ROUNDS, ROUNDS_AUTO = "rounds", "rounds_auto"
"""Names of the findings that compare rounds and say why they stopped: they come from the run and from no rule."""


def findings(results: Results) -> list[Finding]:
    """Everything that the rules find, the most important first; the order is that of `RULES`.

    What the run says of its rounds is taken over from the results and comes first.
    """
    found = [(rule.__name__, rule(results)) for rule in RULES]
    kept = [finding for finding in results.findings if finding.rule in (ROUNDS, ROUNDS_AUTO)]
    return [*kept, *(Finding(name, text) for name, text in found if text is not None)]


def verdict(results: Results) -> str:
    """A plain answer to the question of a run, in one to three sentences that are among its findings.

    *Diagnosis: is training worth it?* See `worth_training`.

    *Evaluation and reflow: may the student replace the teacher?* By success in paired episodes; where no episodes were
    run, how closely the actions agree, and that success was not tested. Whatever does without training what the student
    does comes first.

    Returns:
        The sentences; the three most important findings where there is no answer.
    """
    answer = of_students.may_replace_the_teacher(results)
    sentences: list[str | None] = [answer]
    if results.kind == "diagnose":
        sentences = [worth_training(results)[1]]
    elif results.student is not None:
        sentences = [free.no_training_needed(results) or free.untrained_is_as_good(results), answer]
        if answer is None and (gap := of_students.student_gap(results)):
            sentences += [gap, "Success was not tested."]
    if not any(sentences):
        if results.student is not None and results.student_num_steps is None:
            return "The student's actions were not measured, so there is no verdict."
        sentences = [found.text for found in findings(results)[:MOST_IMPORTANT]]
    return " ".join(text for text in sentences if text) or "Nothing was measured."


def worth_training(results: Results) -> tuple[bool, str | None]:
    """Whether distillation is worth it for the policy, and the sentence that says so; None where it was not measured.

    No, where the policy acts in one step already; where at most two untrained network evaluations lie within the floor;
    or where even one step would make a chunk less than 1.2 times as fast. Otherwise yes, with what one step loses.
    """
    no = acts_in_one_step(results)
    if no is None and (text := free.no_training_needed(results)):
        return False, text
    no = no or speed_is_not_in_the_steps(results)
    text = no or one_step_loses(results)
    return no is None, text and f"{'Yes' if no is None else 'No'}: {text[:1].lower()}{text[1:]}"


def next_commands(results: Results) -> list[tuple[str, str]]:
    """What to type next and what for, the best first: commands with the user's own paths, an option a line.

    After a diagnosis it is the training, and the export of an untrained way that is enough and that LeRobot does not
    run; after a reflow or an evaluation without episodes, the evaluation with them.
    """
    command = results.command
    given = [word for word in command if word.startswith(("--dataset.", "--rename_map=", "--device="))]
    for option in ("dataset.root", "dataset.repo_id"):
        stored = look_up(results.settings, option)
        if stored and not any(word.startswith(f"--{option}=") for word in given):
            given.insert(0, f"--{option}={stored}")
    teacher = f"--teacher.path={results.teacher}"
    if results.kind == "diagnose":
        worth, text = worth_training(results)
        if text is None or results.teacher_num_steps == 1:
            return []
        policy = [word.removeprefix("--policy.") for word in command if word.startswith("--policy.")]
        own = [f"--teacher.{word}" for word in policy if not word.startswith("path=")]
        words = ["reflow", teacher, *own, *given, "--output_dir=outputs/student"]
        commands = [("Next" if worth else "To train all the same", words)]
        way, known = free.only_exported(results), [info.graph_obstacle for info in results.policies]
        if way is not None and known == [""]:
            set_anew = ("path=", "num_inference_steps=")
            own = [f"--policy.{word}" for word in policy if not word.startswith(set_anew)]
            own += [word for word in given if not word.startswith("--device=")]
            own += [
                f"--num_steps={way.num_steps}",
                f"--solver={way.solver}",
                f"--grid_power={way.grid_power:g}",
            ]
            words = ["export", f"--policy.path={results.teacher}", *own, "--output_dir=outputs/robot"]
            commands.insert(worth, ("Without training" if worth else "Next", words))
    elif results.student is not None and not results.success:
        # A run's folder stands for its last checkpoint, which its results name from there.
        run = results.settings.get("output_dir") if results.kind == "reflow" else None
        student = f"--student.path={run or results.student}"
        words = ["evaluate", teacher, student, *given, "--env.type=YOURS", "--output_dir=outputs/evaluation"]
        commands = [("Next", words)]
    else:
        return []
    return [(what, command_lines(["chordflow", *words])) for what, words in commands]


# ---- Rules ----------------------------------------------------------------------------------------------


def acts_in_one_step(results: Results) -> str | None:
    """The policy is deployed at one step: there are no steps to save."""
    if results.teacher_num_steps != 1:
        return None
    return "The policy acts in one step already: there are no steps left to save."


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
    return (
        f"Training for speed is not worth it on this device: one step can make a chunk at most {latency.ceiling:.2f} "
        f"times as fast, since encoding the observation takes {percent(latency.encode_share(1), 0)} of it."
    )


def one_step_loses(results: Results) -> str | None:
    """The gap of one untrained step to the policy as deployed, which a student closes, and what it can gain."""
    row = results.gap(TEACHER, 1, "deployed")
    if row is None or results.teacher_num_steps == 1:
        return None
    text = (
        f"One untrained step loses {percent(row.rms)} RMS{_span(row.interval)}{free.noise_text(results, row)} against "
        f"the deployed policy's {steps(results.teacher_num_steps)}."
    )
    two = results.gap(TEACHER, 2, "deployed")
    rest = [f"two lose {percent(two.rms)}"] if two is not None and results.teacher_num_steps > 2 else []
    if results.timed is not None and results.student is None:
        rest += [f"distillation can make a chunk at most {results.timed.ceiling:.1f} times as fast here"]
    return f"{text} {capital('; '.join(rest))}." if rest else text


def encoding_limits(results: Results) -> str | None:
    """Encoding takes at least `ENCODING_SHARE` of a one-step chunk."""
    latency = results.timed
    if latency is None or latency.ceiling < LITTLE_SPEEDUP or results.teacher_num_steps == 1:
        return None
    if results.student is not None:
        # `chunks_come_faster` names share and ceiling beside what was gained.
        return None
    share = latency.encode_share(1)
    if share < ENCODING_SHARE:
        return None
    return (
        f"Encoding the observation takes {percent(share, 0)} of a one-step chunk: fewer steps can give "
        f"{latency.ceiling:.2f} times at most on this device."
    )


def two_sided(results: Results) -> str | None:
    """Several modes at `TWO_SIDED_SHARE` of the observations or more: there the mean of the actions is no action."""
    if not results.spreads or results.held_out is None:
        return None
    several = [row for row in results.spreads if row.modes > 1]
    share, noises = len(several) / len(results.spreads), results.held_out.noises
    caution = (
        f"with {noises} noises each, a mode that fewer than {percent(unseen_share(noises), 0)} of noises choose may go "
        "unseen"
    )
    if share < TWO_SIDED_SHARE:
        seen = f"{percent(share)} of observations" if several else "no observation"
        return f"At {seen} more than one mode is seen among the policy's actions ({caution})."
    widest = max(several, key=lambda row: row.spread)
    return (
        f"At {percent(share, 0)} of observations the policy has two or more modes, and an averaged action would be "
        f"wrong there, the most at frame {widest.frame} of episode {widest.episode} ({caution})."
    )


def unseen_share(noises: int) -> float:
    """The share of noises below which a mode may go unseen, of at least 2 noises for each observation.

    It is the smallest share with which at least `LEAST_IN_MODE` endpoints, and `LEAST_SHARE` of them, fall into
    the mode with probability `SEEN_CONFIDENCE`: a quantile of the beta law, which is the binomial tail turned round.
    """
    least = max(LEAST_IN_MODE, math.ceil(LEAST_SHARE * noises))
    return float(beta.ppf(SEEN_CONFIDENCE, least, noises - least + 1))


def the_floor(results: Results) -> str | None:
    """The gap of the policy as deployed to its own converged ODE; from `LARGE_FLOOR` on, it is solved coarsely."""
    row = results.floor
    if row is None:
        return None
    text = (
        f"As deployed, at {steps(row.num_steps)}, the policy is itself {percent(row.rms)} RMS{_span(row.interval)}"
        f"{free.noise_text(results, row)} from its converged ODE"
    )
    if row.rms < LARGE_FLOOR:
        return f"{text}; a gap below that means little."
    return (
        f"{text}: its steps are coarse, so see whether more of them act better; a student of couplings by euler would "
        "imitate their errors."
    )


def bend_in_time(results: Results) -> str | None:
    """The fifth of time with the largest share of the bend, named from `BENT_BAND` on."""
    row = results.curvature_of(TEACHER)
    if row is None or not sum(row.s_by_time) > 0:
        return None
    # The grid's times are starts of steps from 1 downwards: a step belongs to the part that it crosses.
    middles = np.array(row.times) - 0.5 / row.num_steps
    bands, ends = np.histogram(middles, TIME_BANDS, (0, 1), weights=row.s_by_time)
    share, band = max((s / sum(bands), band) for band, s in enumerate(bands))
    text = f"Paths bend by {percent(row.curvature)}{_span(row.interval)} of their chord"
    if share < BENT_BAND:
        return f"{text}, at all times much alike."
    where = f"t from {ends[band]:.1f} to {ends[band + 1]:.1f}"
    if band == 0:
        where = f"t < {ends[1]:.1f}, near the action"
    elif band == TIME_BANDS - 1:
        where = f"t > {ends[-2]:.1f}, near the noise"
    return f"{text}; {percent(share, 0)} of the bend lies at {where}."


def bent_dimension(results: Results) -> str | None:
    """The real action dimension that bends most, named from `BENT_DIMENSION` times its even share on."""
    row = results.curvature_of(TEACHER)
    real = len(row.s_by_time_and_dim[0]) if row is not None and row.s_by_time_and_dim else 0
    by_dim = row.s_by_dim[:real] if row is not None else []
    if real < 2 or not sum(by_dim) > 0:
        return None
    share, index = max((s / sum(by_dim), index) for index, s in enumerate(by_dim))
    if share < BENT_DIMENSION / real:
        return None
    return f"Action dimension {index}, counted from 0, has {percent(share, 0)} of the bend of {real}."


def long_tail(results: Results) -> str | None:
    """The slowest chunk in a hundred takes `LONG_TAIL` times the median or more."""
    chunks = results.timed.chunks if results.timed is not None else []
    for time in [chunk.seconds for chunk in chunks if chunk.num_steps == results.teacher_num_steps]:
        if time.p99 >= LONG_TAIL * time.p50:
            return (
                f"One chunk in a hundred takes {time.p99 / time.p50:.1f} times the median or longer: plan for "
                f"{1000 * time.p99:.1f} ms rather than {1000 * time.p50:.1f} ms."
            )
    return None


def processors_cost(results: Results) -> str | None:
    """The checkpoint's processors take `PROCESSORS_SHARE` of a one-step chunk or more."""
    latency = results.timed
    share = (latency.processors_s or 0) / latency.chunk_s(1) if latency is not None else 0
    if share < PROCESSORS_SHARE:
        return None
    return (
        f"The checkpoint's processors take {percent(share, 0)} of a one-step chunk on top of it, whatever the number "
        "of steps."
    )


def memory(results: Results) -> str | None:
    """What the policy holds in memory while it acts."""
    held = results.latency.memory if results.latency is not None else None
    if held is None:
        return None
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
    free.no_training_needed,
    free.untrained_is_as_good,
    timings_unreliable,
    speed_is_not_in_the_steps,
    one_step_loses,
    encoding_limits,
    free.fewer_steps_are_free,
    two_sided,
    the_floor,
    of_students.student_beside_the_floor,
    of_students.student_beside_the_best_way,
    of_students.curvature_of_the_student,
    bend_in_time,
    bent_dimension,
    free.better_solver,
    long_tail,
    processors_cost,
    memory,
    teacher_may_have_seen,
)
"""Every rule, the most important first."""


def _span(interval: Interval | None) -> str:
    return f" ({percent(interval.low)} to {percent(interval.high)})" if interval is not None else ""
