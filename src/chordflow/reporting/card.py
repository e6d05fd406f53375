"""A model card for the Hugging Face Hub, made of the same figures as the page, and how to use the student."""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from chordflow.refusing import look_up
from chordflow.reporting.page import asset
from chordflow.reporting.rollout_tables import rate
from chordflow.reporting.table import escape, markdown
from chordflow.results.actions import STUDENT
from chordflow.results.schema import PolicyInfo, Results
from chordflow.results.wording import clean, command_lines, estimate, percent, percentage, steps

METHODS = {
    "reflow": "reflow (rectified flow, Liu et al. 2022)",
    "endpoint": "distillation of the teacher's endpoints (Liu et al. 2023)",
    "noise_biased": "flow matching on demonstrations near noise (Chen et al. 2026), without a teacher in its loss",
    "snapflow": "self-distillation of a two-step shortcut (after Luan et al. 2026), without a teacher in its loss",
    "consistency": "consistency distillation along the teacher's trajectories (Song et al. 2023)",
}
"""The method of a run in words, by its `--method.type`."""

TAGS = ["robotics", "lerobot", "flow-matching", "chordflow"]

FOLDERS = ("outputs", "output", "checkpoints", "runs", "models", "data", "tmp", "..", ".")
"""First parts of paths that look like a Hub id and are folders."""


def card(
    results: Results,
    repo_id: str | None = None,
    licence: Mapping[str, str] | None = None,
    folder: Path = Path(),
) -> str:
    """The card: front matter, what was measured with which interval, then the tables.

    Args:
        results: what was measured.
        repo_id: where the student is to be found on the Hub; its path by default.
        licence: what the front matter says of it, by the Hub's keys.
        folder: where the results lie; a run writes its student's path relative to it.

    Returns:
        Markdown whose front matter `huggingface_hub.ModelCard` reads. A teacher or dataset is linked where its name
        is a Hub id, and named in the text otherwise.
    """
    student = results.info(STUDENT)
    found = results.student or results.teacher
    found = repo_id or (str(folder / found) if results.kind == "reflow" else found)
    path, name = _code(found), _name(found)
    lines = [f"{_front_matter(results, name, licence or {})}# {escape(name)}", ""]
    if results.student is None:
        lines += [f"A diagnosis of `{path}`", ""]
    elif student is not None and (made := student.exported) is not None:
        teacher = f"`{_code(results.teacher)}` at {steps(results.teacher_num_steps)}"
        compared = f"The results call it the student, and {teacher} the teacher."
        lines.append(_graph({**vars(student), **vars(made)}, made.checkpoint, compared, repr(path)))
    else:
        lines += [
            f"A student of `{_code(results.teacher)}`{_made_by(results, student)}: it has the teacher's class, config "
            f"and weights layout{_steps(results, student)}.",
            "",
            *_trained_for(student),
            asset("student.md").format(path=path, quoted=shlex.quote(path)),
        ]
    command = command_lines(results.command).replace("```", "'''")
    lines += ["## Results", "", markdown(results), "## Measure it again", "", "```sh", command, "```", ""]
    lines += [f"- {escape(clean(name))}: {escape(clean(value))}" for name, value in results.versions.items()]
    lines += [f"- seed of {escape(clean(name))}: {value}" for name, value in results.seeds.items()]
    return "\n".join(lines) + "\n"


def exported_card(manifest: Mapping[str, Any], repo_id: str, licence: Mapping[str, str]) -> str:
    """The card of an exported folder, from what its manifest holds; arguments as for `card`."""
    found, checkpoint = manifest["parity"], manifest["checkpoint"]["path"]
    text = f"Action gap to the checkpoint in percent, on {found['observations']} observations"
    metrics = [_metric("action_gap", text, found["gap_percent"] / 100, "lerobot", found["of"])]
    compared = (
        f"On {found['observations']} observations with the same noise it differs from the checkpoint by "
        f"{found['max_relative']:.1e} of the largest action ({percent(found['gap_percent'] / 100)} of the spread)."
    )
    folder = f'snapshot_download("{repo_id}", local_dir="policy")'
    front = _front(
        repo_id.split("/")[-1], metrics, licence, **_of_graph(str(manifest["backend"]), checkpoint)
    )
    imports = "\nfrom huggingface_hub import snapshot_download"
    return f"{front}# {repo_id}\n\n{_graph(manifest, checkpoint, compared, folder, imports)}"


def _graph(known: Mapping[str, Any], checkpoint: str, compared: str, folder: str, imports: str = "") -> str:
    """What an exported folder is, and how to load it."""
    grid = "" if known["grid_power"] == 1 else f", grid power {known['grid_power']:g}"
    words = {"checkpoint": _code(checkpoint), "compared": compared, "folder": folder, "grid": grid}
    words["imports"] = f"import chordflow_runtime{imports}"
    return asset("exported.md").format(**{**known, **words})


def _of_graph(backend: str, checkpoint: str) -> dict[str, Any]:
    """What the Hub reads of an exported folder."""
    return {"library_name": backend, "tags": [*TAGS, backend], "base_model": hub_id(checkpoint)}


# ---- What the Hub reads of it ---------------------------------------------------------------------------


def _front_matter(results: Results, name: str, licence: Mapping[str, str]) -> str:
    found = hub_id(str(look_up(results.settings, "dataset.repo_id")))
    about: dict[str, Any] = {"library_name": "lerobot", "datasets": [found] if found else None, "tags": TAGS}
    info = results.info(STUDENT)
    if info is not None and info.exported is not None:
        about |= _of_graph(info.exported.backend, info.exported.checkpoint)
    elif results.student is not None:
        about |= {"tags": [*TAGS, "reflow", "distillation"], "base_model": hub_id(results.teacher)}
    metrics: list[EvalResult] = []
    n = results.student_num_steps
    if n is not None and (row := results.success_of(STUDENT, n)) is not None:
        env = clean(results.rollouts.env) if results.rollouts is not None else "the run's environment"
        shown = estimate(rate(row), percentage)
        text = f"Success rate in {row.episodes} episodes, with Wilson's 95 % interval: {shown} %"
        metrics.append(_metric("success_rate", text, row.rate, "simulation", env or "simulation"))
    if n is not None and (gap := results.gap(STUDENT, n, "deployed")) is not None:
        text = f"Action gap to the teacher in percent, on {gap.observations} held-out observations"
        metrics.append(_metric("action_gap", text, gap.rms, found or "lerobot", found or "held-out episodes"))
    return _front(name, metrics, licence, **about)


def _metric(kind: str, text: str, fraction: float, dataset: str, name: str) -> EvalResult:
    value = float(f"{100 * fraction:.6g}")
    return EvalResult("robotics", dataset, name, metric_type=kind, metric_name=text, metric_value=value)


def _front(name: str, metrics: list[EvalResult], licence: Mapping[str, str], **more: Any) -> str:
    more |= licence
    if metrics:
        more |= {"model_name": name, "eval_results": metrics}
    data = ModelCardData(pipeline_tag="robotics", ignore_metadata_errors=False, **more)
    return f"---\n{data.to_yaml(line_break='\n')}\n---\n\n"


def hub_id(name: str) -> str | None:
    """A name as the Hub links it, or None if it is a path or not a Hub id."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name, re.ASCII) or name.split("/")[0] in FOLDERS:
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def _name(path: str) -> str:
    """The last part of a checkpoint's path, or of its name on the Hub, that names it."""
    parts = [part for part in re.split(r"[/\\]+", clean(path)) if part]
    named = [part for part in parts if not re.fullmatch(r"pretrained_model|checkpoints|last|\d+", part)]
    return ([*parts[:1], *named] or ["policy"])[-1]


# ---- What it says of the student ------------------------------------------------------------------------


def _made_by(results: Results, student: PolicyInfo | None) -> str:
    """How the student was trained; nothing where neither its record nor the settings of this run say it."""
    name = look_up(results.settings, "method.type")
    if student is not None and student.method is not None:
        name = student.method
    return f", made by {METHODS.get(str(name), f'`{_code(str(name))}`')}" if name is not None else ""


def _steps(results: Results, student: PolicyInfo | None) -> str:
    """At how many steps it acts as saved, and at how many it was measured where that is another number."""
    saved, n = student.saved_num_steps if student is not None else None, results.student_num_steps
    if saved is None:
        return f"; it was measured at {steps(n)}" if n is not None else ""
    other = f", and was measured at {steps(n)}" if n not in (None, saved) else ""
    return f", and acts at {steps(saved)} as saved{other}"


def _trained_for(student: PolicyInfo | None) -> list[str]:
    if student is None or student.step_counts is None:
        return []
    what = f"{', '.join(map(str, student.step_counts))} steps only"
    if student.step_counts == [1]:
        what = "one step only"
    return [f"**It was trained for {what}**: it should act at no other number.\n"]


def _code(text: str) -> str:
    return clean(text).replace("`", "'")
