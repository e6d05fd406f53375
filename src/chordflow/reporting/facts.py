"""What was measured, on how much, and how: the lines below the tables."""

from chordflow.reporting.policy_tables import memory
from chordflow.results.actions import HeldOut
from chordflow.results.episodes import Rollouts
from chordflow.results.schema import CouplingSummary, Results
from chordflow.results.wording import clean, percent, plural, seconds, size, steps


def facts(results: Results) -> list[tuple[str, str]]:
    """Name and value of every line; what was not measured is left out."""
    lines = []
    held, timed = results.held_out, results.timed
    if held is not None:
        bootstrapped = any(row.interval or row.ratio_to_untrained for row in results.gaps)
        bootstrapped = bootstrapped or any(row.interval for row in results.curvature)
        lines.append(("held out", held_out(held, intervals=bootstrapped)))
    if results.success:
        lines.append(("success", _episodes(results)))
    if results.rollouts is not None:
        lines.append(("rollouts", rollouts(results.rollouts)))
    if timed is not None:
        lines.append(
            (
                "time",
                f"medians of {plural(timed.repeats, 'repetition')} on {clean(results.device)}, "
                f"{plural(timed.batch_size, 'observation')} at a time",
            )
        )
    if results.couplings is not None:
        lines += _couplings(results.couplings)
    if results.training_s is not None:
        lines.append(("training", f"{seconds(results.training_s)} on {clean(results.device)}"))
    if found := memory(results):
        lines.append(("memory", ", ".join(f"{name} {value}" for name, value in found)))
    lines.append(("teacher", clean(results.teacher)))
    if results.student is not None:
        lines.append(("student", clean(results.student)))
    return [(name, value) for name, value in lines if value]


def held_out(held: HeldOut, *, intervals: bool = False) -> str:
    """What was measured on, and what that cannot say.

    Args:
        held: the observations.
        intervals: whether figures have intervals over episodes.
    """
    episodes = plural(len(held.episodes), "episode")
    text = f"{held.observations} observations of {episodes}, {plural(held.noises, 'noise')} each"
    if held.whole_tasks:
        text += (
            f"; the tasks of {held.whole_tasks} of them have no other episode, so training has none of these"
        )
    if held.maybe_seen_by_teacher:
        text += "; the teacher may have seen them in its own training"
    if min(len(held.episodes), held.observations) < 2:
        more = "--dataset.eval_split" if len(held.episodes) < 2 else "--measure.num_observations"
        return f"{text}; no intervals, which need observations of two episodes or more (raise {more})"
    return text + ("; 95 % bootstrap intervals over episodes" if intervals else "")


def _episodes(results: Results) -> str:
    counts = sorted({row.episodes for row in results.success if row.group == "all"}) or [0]
    shown = plural(counts[0], "episode") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} episodes"
    text = f"{shown} for each way to act; Wilson's 95 % intervals"
    if not any(row.versus_teacher is not None for row in results.success):
        return text
    return f"{text}, paired differences with {'confidence sequences' if results.sequential else "Newcombe's"}"


def rollouts(ran: Rollouts) -> str:
    """How episodes were run, in a line."""
    noise = "paired noise" if ran.noise == "paired" else "noise as lerobot-eval draws it"
    workers = "no workers" if ran.num_workers == 0 else plural(ran.num_workers, "worker")
    return f"{clean(ran.env)}; {noise}; seeds from {ran.first_seed}; {ran.batch_size} side by side, {workers}"


def _couplings(made: CouplingSummary) -> list[tuple[str, str]]:
    grid = "" if made.grid_power in (None, 1) else f", grid power {made.grid_power:g}"
    lines = [
        (
            "couplings",
            f"{made.observations} observations with {plural(made.noises_per_observation, 'noise')} each, "
            f"by {clean(made.solver)} with {steps(made.num_steps)}{grid}; buffer {size(made.buffer_bytes)}",
        )
    ]
    if acted := made.rollouts:
        lines.append(
            (
                "collected",
                f"{percent(acted.share)} of the observations, in {plural(acted.episodes, 'episode')} of "
                f"{clean(acted.env)}, {plural(acted.collections, 'time')}; {seconds(acted.seconds)} of the training",
            )
        )
    return lines
