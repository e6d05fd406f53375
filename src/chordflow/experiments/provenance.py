"""Where a student comes from: what is written beside it, and what is checked when a run goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.default import DatasetConfig as LeRobotDatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.optim import AdamWConfig
from lerobot.optim.schedulers import CosineAnnealingWithWarmupSchedulerConfig

from chordflow import __version__
from chordflow.couplings import DatasetConfig
from chordflow.couplings.store import MANIFEST, read_manifest
from chordflow.disk import write_json
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig
from chordflow.experiments.plain import plain
from chordflow.experiments.run_folder import REFLOW_CONFIG
from chordflow.policies import resolve_checkpoint
from chordflow.policies.files import TRAIN_CONFIG, WEIGHTS, read_config, read_json
from chordflow.results.wording import steps
from chordflow.rollouts.episodes import SeedRange

STEP_COUNTS = "step_counts"
"""Key of `reflow_config.json`: the Euler steps that the student was trained for, null where it is any number."""


HELD_OUT = "held_out_episodes"
"""Key of `reflow_config.json`: the episodes that training has left out."""

JUDGED = "judged_episodes"
"""Key of `reflow_config.json`: the episodes that training has left out to decide on the number of rounds."""

COLLECTED = "collected"
"""Key of `reflow_config.json`: the episodes, as fields of `rollouts.episodes.SeedRange`, in which observations were
collected for the student, and for its teacher where that is a student."""


@dataclass(frozen=True)
class Round:
    """A round of a job, for the record that is written beside its student.

    Attributes:
        number: from 1.
        job: settings of the whole job, as the user gave them.
        first_teacher: the checkpoint that the job begins with, which taught the first round.
    """

    number: int
    job: ReflowJobConfig
    first_teacher: Path


BESIDE_SETTINGS = (
    "chordflow_version", "teacher_sha256", "init_sha256", "couplings_sha256", STEP_COUNTS, "round", "round_seed",
    "lineage", HELD_OUT, JUDGED, COLLECTED,
)  # fmt: skip
"""What `reflow_config.json` holds beside the settings of the job."""


def check_same_teacher(config: ReflowJobConfig, sha256: str | None, init_sha256: str | None = None) -> None:
    """Makes sure that a run goes on with the checkpoints that it began with.

    Args:
        config: of the run.
        sha256: of the teacher's weights as the run began; None where that was not written down.
        init_sha256: the same of the checkpoint that the student began with, if that was another.

    Raises:
        UserError: if the weights at `teacher.path` or `student.init_path` have changed.
    """
    init_path = config.student.init_path
    for field, path, revision, before in (
        ("teacher.path", config.teacher.path, config.teacher.revision, sha256),
        ("student.init_path", init_path, None, init_sha256),
    ):
        if path is None or before is None:
            continue
        if weights_sha256(resolve_checkpoint(path, revision, field)) != before:
            raise UserError(
                f"{field}={path}: its weights are not those that the run began with; restore them or start a new run."
            )


def check_same_store(config: ReflowJobConfig, saved: ReflowJobConfig, sha256: str | None) -> None:
    """Makes sure that a run goes on with the store of couplings that it began with, which may have been moved.

    Args:
        config: of the run, as it goes on.
        saved: as it was.
        sha256: of what the store was made with, as the run began; None where that was not written down.

    Raises:
        UserError: if there is no store at `couplings.path`, or another one.
    """
    path = config.couplings.path
    if path is None:
        return
    if not (Path(path) / MANIFEST).exists():
        what = "coupling store (manifest.json is missing)" if Path(path).is_dir() else "folder"
        raise UserError(
            f"couplings.path={path}: there is no {what}; the run began with one: say with --couplings.path where it is "
            "now."
        )
    found = read_manifest(Path(path)).made_with_sha256
    if sha256 is None and path != saved.couplings.path:
        raise UserError(
            f"couplings.path={path}: an older chordflow did not write down which store the run began with; move it "
            f"back to {saved.couplings.path}, or start a new run."
        )
    if sha256 not in (None, found):
        raise UserError(
            f"couplings.path={path}: this store was not made with the settings of the one that the run began with; "
            "give that one, or start a new run."
        )


def teacher_may_have_seen(teacher_dir: Path, dataset: DatasetConfig, held_out: list[int]) -> bool:
    """Whether the held-out episodes may have been in the teacher's own training.

    False only where its `train_config.json` shows that they were not: a list of episodes of this dataset without
    them, or the same share held out by LeRobot's own rule. A teacher that is itself a student knows which episodes it
    has left out, and what its own teachers have seen.
    """
    if _taught_by_one_that_may_have_seen(teacher_dir, dataset, held_out):
        return True
    try:
        trained_on = json.loads((teacher_dir / TRAIN_CONFIG).read_text(encoding="utf-8"))["dataset"]
        if trained_on["repo_id"] != dataset.repo_id:
            # Another name is no proof: local copies and forks have names of their own.
            return True
        left_out = held_out_before(teacher_dir)
        if left_out is not None:
            return not set(held_out) <= set(left_out)
        episodes = trained_on.get("episodes")
        if episodes is not None and not set(episodes) & set(held_out):
            return False
        same_episodes = episodes == dataset.episodes
        return not (same_episodes and trained_on.get("eval_split", 0.0) >= dataset.eval_split)
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _taught_by_one_that_may_have_seen(teacher_dir: Path, dataset: DatasetConfig, held_out: list[int]) -> bool:
    record = read_record(teacher_dir)
    if not record:
        return False
    try:
        own_teacher = Path(record["teacher"]["path"])
        # Where it is not at hand, nobody knows; a checkpoint is never its own teacher, whatever its record says.
        if not own_teacher.is_dir() or own_teacher.resolve() == teacher_dir.resolve():
            return True
        return teacher_may_have_seen(resolve_checkpoint(own_teacher), dataset, held_out)
    except (UserError, KeyError, TypeError, RecursionError):
        return True


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What chordflow has written beside a student; empty for any other checkpoint.

    Args:
        checkpoint: a `pretrained_model` folder.
    """
    try:
        record = json.loads((checkpoint / REFLOW_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def held_out_before(checkpoint: Path) -> list[int] | None:
    """Episodes that a student's training has left out; None where no record says.

    Args:
        checkpoint: a `pretrained_model` folder.
    """
    return read_record(checkpoint).get(HELD_OUT)


def lineage(checkpoint: Path) -> list[str]:
    """SHA-256 of the weights of a checkpoint and, before it, of the teachers that it comes from, the first one first.

    Args:
        checkpoint: a `pretrained_model` folder.
    """
    teachers = read_record(checkpoint).get("lineage")
    known = [str(sha256) for sha256 in teachers] if isinstance(teachers, list) else []
    return [*known, weights_sha256(checkpoint)]


def device_name(device: torch.device) -> str:
    """The device as a person would name it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{device.type}, {torch.get_num_threads()} threads"


def write_configs(
    config: ReflowJobConfig,
    teacher_dir: Path,
    folder: Path,
    of: Round | None = None,
    couplings_sha256: str | None = None,
    held_out: list[int] | None = None,
    collected: list[dict[str, Any]] | None = None,
    judged: list[int] | None = None,
) -> None:
    """`train_config.json` as stock tools read it, and chordflow's own settings beside it.

    Args:
        config: what the student was trained with.
        teacher_dir: by whom.
        folder: the student's `pretrained_model` folder.
        of: the round of a job, where that has several; the settings are then those of the job.
        couplings_sha256: of what the store of couplings was made with, where the student was trained from one.
        held_out: episodes that training has left out.
        collected: the episodes that observations were collected in so far, as fields of `SeedRange`.
        judged: episodes that training has left out to decide on the number of rounds.
    """
    of = of or Round(1, config, teacher_dir)
    # A run is resumed from wherever the user happens to be.
    teacher_path = _absolute(config.teacher.path)
    root = _absolute(config.dataset.root) if config.dataset.root is not None else None
    warmup = config.scheduler.warmup(config.steps)
    stock = TrainPipelineConfig(
        dataset=LeRobotDatasetConfig(
            repo_id=config.dataset.repo_id,
            root=root,
            revision=config.dataset.revision,
            episodes=config.dataset.episodes,
            eval_split=config.dataset.eval_split,
            video_backend=config.dataset.video_backend or "pyav",
        ),
        output_dir=config.output_dir,
        job_name="reflow",
        seed=config.seed,
        num_workers=config.num_workers,
        batch_size=config.batch_size,
        steps=config.steps,
        env_eval_freq=0,
        log_freq=config.log_freq,
        save_freq=config.save_freq,
        use_policy_training_preset=False,
        # LeRobot does not know SOAP; its settings are in the file beside this one.
        optimizer=AdamWConfig(
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            grad_clip_norm=config.optimizer.grad_clip_norm,
        ),
        scheduler=CosineAnnealingWithWarmupSchedulerConfig(num_warmup_steps=warmup),
        tolerance_s=config.tolerance_s,
        rename_map=config.rename_map,
    )
    stock.save_pretrained(folder)
    # As it is in the folder: parsed here, it would name this machine's device.
    written = read_json(folder / TRAIN_CONFIG, "train_config")
    written["policy"] = {**read_config(folder), "pretrained_path": teacher_path}
    write_json(folder / TRAIN_CONFIG, written)
    settings = plain(of.job)
    settings["teacher"]["path"], settings["dataset"]["root"] = _absolute(of.job.teacher.path), root
    if of.job.couplings.path is not None:
        settings["couplings"]["path"] = _absolute(of.job.couplings.path)
    if of.job.student.init_path is not None:
        settings["student"]["init_path"] = _absolute(of.job.student.init_path)
    made_by: dict[str, Any] = {
        "chordflow_version": __version__,
        "teacher_sha256": weights_sha256(of.first_teacher),
        STEP_COUNTS: config.method.build().step_counts,
        "round": of.number,
        "round_seed": config.seed,
        "lineage": lineage(teacher_dir),
    }
    if of.job.student.init_path is not None:
        init_dir = resolve_checkpoint(of.job.student.init_path, None, "student.init_path")
        made_by["init_sha256"] = weights_sha256(init_dir)
    begun_with = of.job.student.init_path
    before = [teacher_dir] if begun_with is None else [teacher_dir, Path(begun_with)]
    ranges = [asdict(run) for earlier in before for run in collected_in(earlier)] + (collected or [])
    if ranges:
        made_by[COLLECTED] = [run for index, run in enumerate(ranges) if run not in ranges[:index]]
    if couplings_sha256 is not None:
        made_by["couplings_sha256"] = couplings_sha256
    if held_out is not None:
        made_by[HELD_OUT] = held_out
    if judged:
        made_by[JUDGED] = judged
    write_json(folder / REFLOW_CONFIG, {**made_by, **settings})


def trained_step_counts(folder: Path) -> list[int] | None:
    """The Euler steps that a checkpoint's record says it was trained for; None where it says any, or nothing."""
    try:
        counts = json.loads((folder / REFLOW_CONFIG).read_text(encoding="utf-8")).get(STEP_COUNTS)
        return [int(count) for count in counts] if counts is not None else None
    except (OSError, ValueError, TypeError, AttributeError):
        # Not made by chordflow, or by an older one.
        return None


def collected_in(folder: Path) -> list[SeedRange]:
    """The episodes that a checkpoint's record says observations were collected in for its training."""
    found = read_record(folder).get(COLLECTED)
    try:
        ranges = [SeedRange(**run) for run in found or []]
    except TypeError:
        return []
    return [run for run in ranges if isinstance(run.first, int) and isinstance(run.stop, int)]


def trained_method(folder: Path) -> str | None:
    """The `method.type` that a checkpoint's record says it was trained by; None where it says nothing."""
    method = read_record(folder).get("method")
    name = method.get("type") if isinstance(method, dict) else None
    return name if isinstance(name, str) else None


def refuse_student_of_few_steps(folder: Path, path: str) -> None:
    """Makes sure that a teacher is a flow at every time, since its couplings are solved by many steps.

    Args:
        folder: the teacher's checkpoint.
        path: as the user gave it.

    Raises:
        UserError: if its record says that it was trained for certain numbers of steps alone.
    """
    counts = trained_step_counts(folder)
    if counts is None:
        return
    trained = " or ".join(steps(count) for count in counts)
    raise UserError(
        f"teacher.path={path}: it is a student that was trained for {trained} alone, and its velocity elsewhere leads "
        "nowhere that another student could learn; give the teacher that it was made by."
    )


def _absolute(path: str) -> str:
    """A local folder's whole path; a Hub id as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def weights_sha256(teacher_dir: Path) -> str:
    """The SHA-256 of a checkpoint's weights file, in hexadecimal."""
    file = (teacher_dir / WEIGHTS).resolve()
    about = file.stat()
    return _sha256(file, about.st_ino, about.st_size, about.st_mtime_ns)


@cache
def _sha256(path: Path, *_changes: int) -> str:
    """Read once for as long as the file stays what it is."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return digest.hexdigest()
