"""The verdict of a run: a plain answer and the figure behind it, by rules that are written down."""

import shlex

from chordflow.results import student_findings as of_students
from chordflow.results.findings import (
    acts_in_one_step,
    findings,
    no_training_needed,
    one_step_loses,
    speed_is_not_in_the_steps,
)
from chordflow.results.schema import Results
from chordflow.results.wording import clean

MOST_IMPORTANT = 3
"""Findings that make the verdict where no question was answered."""


def verdict(results: Results) -> str:
    """A plain answer to the question of a run, in one to three sentences that are among its findings.

    *Diagnosis: is training worth it?* No, where the policy acts in one step already. *n untrained steps are enough*,
    where at most two network evaluations lie within the floor. No, where even one step would make a chunk less than
    1.2 times as fast. Otherwise yes, with what one untrained step loses.

    *Evaluation and reflow: may the student replace the teacher?* By success in paired episodes
    (`student_findings.may_replace_the_teacher`); where no episodes were run, how closely the actions agree, and that
    success was not tested. Whatever does without training what the student does comes first.

    Args:
        results: what was measured.

    Returns:
        The sentences; the three most important findings where there is no answer.
    """
    said: list[str | None]
    if results.kind == "diagnose":
        said = [worth_training(results)[1]]
    elif results.student is None:
        said = [of_students.may_replace_the_teacher(results)]
    else:
        answer = of_students.may_replace_the_teacher(results)
        said = [no_training_needed(results) or of_students.untrained_is_as_good(results), answer]
        if answer is None and (gap := of_students.student_gap(results)):
            said += [gap, "Success was not tested."]
    if not any(said):
        if results.student is not None and results.student_num_steps is None:
            return "The student's actions were not measured, so nothing can be said of them."
        said = [found.text for found in findings(results)[:MOST_IMPORTANT]]
    return " ".join(text for text in said if text) or "Nothing was measured."


def worth_training(results: Results) -> tuple[bool, str | None]:
    """Whether distillation is worth it for the policy, and the sentence that says so; None where nothing tells."""
    if text := acts_in_one_step(results):
        return False, f"No: {_continued(text)}"
    if text := no_training_needed(results):
        return False, text
    if text := speed_is_not_in_the_steps(results):
        return False, f"No: {_continued(text)}"
    if text := one_step_loses(results):
        return True, f"Yes: {_continued(text)}"
    return True, None


def _continued(text: str) -> str:
    return text[:1].lower() + text[1:]


def next_command(results: Results) -> tuple[str, str] | None:
    """What to type next, an option a line, with the user's own paths, and what for; None where there is nothing to do.

    After a diagnosis it is the training; after a reflow or an evaluation without episodes, the evaluation with them.
    """
    given = [
        word for word in results.command if word.startswith(("--dataset.", "--rename_map=", "--device="))
    ]
    stored = results.settings.get("dataset")
    if isinstance(stored, dict):
        for name in ("root", "repo_id"):
            if stored.get(name) and not any(word.startswith(f"--dataset.{name}=") for word in given):
                given.insert(0, f"--dataset.{name}={stored[name]}")
    teacher = f"--teacher.path={results.teacher}"
    if results.kind == "diagnose":
        worth, text = worth_training(results)
        if text is None or results.teacher_num_steps == 1:
            return None
        words = [
            "reflow", teacher, *(f"--teacher.{word.removeprefix('--policy.')}" for word in results.command
            if word.startswith("--policy.") and not word.startswith("--policy.path=")), *given,
            "--output_dir=outputs/student",
        ]  # fmt: skip
        what = "Next" if worth else "To train all the same"
    elif results.kind in ("reflow", "evaluate") and results.student is not None and not results.success:
        # A run's folder stands for its last checkpoint, which its results name from there.
        run = results.settings.get("output_dir") if results.kind == "reflow" else None
        student = f"--student.path={run or results.student}"
        words = ["evaluate", teacher, student, *given, "--env.type=YOURS", "--output_dir=outputs/evaluation"]
        what = "Next"
    else:
        return None
    verb, *options = words
    return what, " \\\n    ".join([f"chordflow {verb}", *(shlex.quote(clean(option)) for option in options)])
