"""A model card for the Hugging Face Hub, made of the same figures as the page, and how to use the student."""

import re
import shlex
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from chordflow.reporting.page import command_lines
from chordflow.reporting.rollout_tables import rate
from chordflow.reporting.table import escape, markdown
from chordflow.results.actions import STUDENT
from chordflow.results.episodes import SuccessRow
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.wording import clean, steps

METHODS = {
    "reflow": "reflow (rectified flow, Liu et al. 2022)",
    "endpoint": "distillation of the teacher's endpoints (Liu et al. 2023)",
    "noise_biased": "flow matching on demonstrations near noise (Chen et al. 2026), without a teacher in its loss",
    "snapflow": "self-distillation of a two-step shortcut (after Luan et al. 2026), without a teacher in its loss",
    "consistency": "consistency distillation along the teacher's trajectories (Song et al. 2023)",
}
"""The method of a run in words, by its `--method.type`."""

USE = """\
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

path = {path!r}
config = PreTrainedConfig.from_pretrained(path)
policy = get_policy_class(config.type).from_pretrained(path)
before, after = make_pre_post_processors(config, pretrained_path=path)
action = after(policy.select_action(before(observation)))
"""
"""How to run a student from Python."""

FOLDERS = ("outputs", "output", "checkpoints", "runs", "models", "data", "tmp", "..", ".")
"""First parts of paths that look like a Hub id and are folders."""


def card(results: Results) -> str:
    """The card: front matter, what was measured with which interval, then the tables.

    Args:
        results: what was measured.

    Returns:
        Markdown whose front matter `huggingface_hub.ModelCard` reads. A teacher or dataset is linked where its name
        is a Hub id, and named in the text otherwise.
    """
    front = front_matter(results).to_yaml(line_break="\n")
    return f"---\n{front}\n---\n\n{_body(results)}"


def front_matter(results: Results) -> ModelCardData:
    """What the Hub reads of the card."""
    datasets = _datasets(results)
    tags = ["robotics", "lerobot", "flow-matching", "chordflow"]
    extra: dict[str, Any] = {}
    if results.student is not None:
        tags += ["reflow", "distillation"]
        base = hub_id(results.teacher)
        if base is not None:
            extra["base_model"] = base
    row = _success(results)
    if row is not None:
        extra["model_name"] = _name(results)
        extra["eval_results"] = [_result(results, row, datasets)]
    return ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        tags=tags,
        datasets=datasets or None,
        ignore_metadata_errors=False,
        **extra,
    )


def hub_id(name: str) -> str | None:
    """A name as the Hub links it, or None if it is a path or not a Hub id."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or name.split("/")[0] in FOLDERS:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _datasets(results: Results) -> list[str]:
    dataset = results.settings.get("dataset")
    name = dataset.get("repo_id") if isinstance(dataset, dict) else None
    found = hub_id(name) if isinstance(name, str) else None
    return [found] if found else []


def _name(results: Results) -> str:
    parts = [part for part in re.split(r"[/\\]+", clean(results.student or results.teacher)) if part]
    while len(parts) > 1 and (
        parts[-1] in ("pretrained_model", "checkpoints", "last") or parts[-1].isdigit()
    ):
        parts.pop()
    return parts[-1] if parts else "policy"


def _success(results: Results) -> SuccessRow | None:
    n = results.student_num_steps
    return results.success_of(STUDENT, n) if n is not None else None


def _result(results: Results, row: SuccessRow, datasets: list[str]) -> EvalResult:
    env = clean(results.rollouts.env) if results.rollouts is not None else "the run's environment"
    return EvalResult(
        task_type="robotics",
        dataset_type=datasets[0] if datasets else "simulation",
        dataset_name=env or "simulation",
        metric_type="success_rate",
        metric_name=f"Success rate in {row.episodes} episodes, with Wilson's 95 % interval: {rate(row)} %",
        metric_value=round(100 * row.rate, 4),
    )


def _body(results: Results) -> str:
    path = _code(results.student or results.teacher)
    lines = [f"# {escape(_name(results))}", ""]
    if results.student is None:
        lines += [f"A diagnosis of `{path}`", ""]
    else:
        lines += [
            f"A student of `{_code(results.teacher)}`{_made_by(results)}: it has the teacher's class, config and "
            f"weights layout{_steps(results)}.",
            "",
            *(f"{text}\n" for text in _trained_for(results)),
            "## How to use it",
            "",
            f"LeRobot alone runs it; chordflow is not needed. `{path}` is its folder or Hub id:",
            "",
            *_fenced("sh", f"lerobot-eval --policy.path={shlex.quote(path)} --env.type=YOURS"),
            "",
            *_fenced("python", USE.format(path=path)),
            "",
        ]
    lines += ["## Results", "", markdown(results)]
    lines += ["## Measure it again", "", *_fenced("sh", command_lines(results.command)), ""]
    lines += [f"- {escape(clean(name))}: {escape(clean(value))}" for name, value in results.versions.items()]
    lines += [f"- seed of {escape(clean(name))}: {value}" for name, value in results.seeds.items()]
    return "\n".join(lines) + "\n"


def _student(results: Results) -> PolicyInfo | None:
    return next((info for info in results.policies if info.name == STUDENT), None)


def _made_by(results: Results) -> str:
    """How the student was trained; nothing where neither its record nor the settings of this run say it."""
    student, method = _student(results), results.settings.get("method")
    name = method.get("type") if isinstance(method, dict) else None
    if student is not None and student.method is not None:
        name = student.method
    if name is None:
        return ""
    return f", made by {METHODS.get(str(name), f'`{_code(str(name))}`')}"


def _steps(results: Results) -> str:
    """At how many steps it acts as saved, and at how many it was measured where that is another number."""
    student, measured_at = _student(results), results.student_num_steps
    saved = student.saved_num_steps if student is not None else None
    if saved is None:
        return f"; it was measured at {steps(measured_at)}" if measured_at is not None else ""
    other = (
        f", and was measured at {steps(measured_at)}"
        if measured_at is not None and measured_at != saved
        else ""
    )
    return f", and acts at {steps(saved)} as saved{other}"


def _trained_for(results: Results) -> list[str]:
    student = _student(results)
    if student is None or student.step_counts is None:
        return []
    counts = ", ".join(str(count) for count in student.step_counts)
    what = "one step only" if student.step_counts == [1] else f"{counts} steps only"
    return [f"**It was trained for {what}**: it should act at no other number."]


def _code(text: str) -> str:
    return clean(text).replace("`", "'")


def _fenced(language: str, text: str) -> list[str]:
    return [f"```{language}", *text.replace("```", "'''").splitlines(), "```"]
