"""Where a student comes from: what is written beside it, and what is checked, by `UserError`, on a resume."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
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
from chordflow.disk import read_object, write_json
from chordflow.errors import UserError
from chordflow.experiments.config import ReflowJobConfig, SourceConfig
from chordflow.experiments.run_folder import REFLOW_CONFIG
from chordflow.options import plain
from chordflow.policies import FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.policies.files import TRAIN_CONFIG, WEIGHTS, read_config, read_json
from chordflow.refusing import look_up
from chordflow.results.wording import steps
from chordflow.rollouts.episodes import SeedRange

# Keys of `reflow_config.json`.

STEP_COUNTS = "step_counts"
"""The Euler steps that the student was trained for, null where it is any number."""

HELD_OUT = "held_out_episodes"
"""The episodes that training has left out."""

JUDGED = "judged_episodes"
"""The episodes that training has left out to decide on the number of rounds."""

COLLECTED = "collected"
"""The episodes, as fields of `SeedRange`, in which observations were collected for the student, and for its teacher
where that is a student."""

STORE = "couplings_sha256"
"""SHA-256 of what the store of couplings was made with that the student was trained from."""

PROCESSORS = "teacher_processors_sha256"
"""SHA-256 of what the teacher's processors do."""

BESIDE_SETTINGS = (
    "chordflow_version", "teacher_sha256", "init_sha256", STORE, STEP_COUNTS, "round", "round_seed", "lineage",
    HELD_OUT, JUDGED, COLLECTED, PROCESSORS,
)  # fmt: skip
"""What `reflow_config.json` holds beside the settings of the job."""


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


def load_frozen(
    path: str | Path, device: str | None, rename_map: dict[str, str], field: str = "teacher.path"
) -> FlowPolicy:
    """A policy that is not trained; what is given and raised is as in `load_flow_policy`."""
    policy = load_flow_policy(path, device=device, rename_map=rename_map, field=field)
    policy.module.requires_grad_(False)
    return policy


def load_teacher(
    source: SourceConfig, device: str | None, rename_map: dict[str, str]
) -> tuple[Path, FlowPolicy]:
    """The folder of a job's teacher, and the teacher, frozen.

    Raises:
        UserError: if it cannot be loaded, or is no flow at every time: its couplings are solved by many steps.
    """
    folder = resolve_checkpoint(source.path, source.revision)
    counts = trained_step_counts(folder)
    if counts is not None:
        trained = " or ".join(map(steps, counts))
        raise UserError(
            f"teacher.path={source.path}: it is a student that was trained for {trained} alone, and its velocity "
            "elsewhere leads nowhere that another student could learn; give the teacher that it was made by."
        )
    return folder, load_frozen(folder, device, rename_map)


def check_same_teacher(config: ReflowJobConfig, record: Mapping[str, Any]) -> None:
    """Makes sure that a run is resumed, by this record, with the weights and processors that it began with."""
    teacher, init = config.teacher, config.student.init_path
    # Runs of an older chordflow did not write down the processors; of student.init_path only weights are taken.
    for field, path, revision, key, what, sha256_of in (
        ("teacher.path", teacher.path, teacher.revision, "teacher_sha256", "weights", weights_sha256),
        ("teacher.path", teacher.path, teacher.revision, PROCESSORS, "processors", processors_sha256),
        ("student.init_path", init, None, "init_sha256", "weights", weights_sha256),
    ):
        before = record.get(key)
        if path is None or before is None:
            continue
        if sha256_of(resolve_checkpoint(path, revision, field)) != before:
            raise UserError(
                f"{field}={path}: its {what} are not those that the run began with; restore them or start a new run."
            )


def check_same_store(config: ReflowJobConfig, record: Mapping[str, Any]) -> None:
    """Makes sure that a run is resumed with the store of couplings that it began with, which may have been moved."""
    path = config.couplings.path
    if path is None:
        return
    if not (Path(path) / MANIFEST).exists():
        what = "coupling store (manifest.json is missing)" if Path(path).is_dir() else "folder"
        raise UserError(
            f"couplings.path={path}: there is no {what}; the run began with one: say with --couplings.path where it is "
            "now."
        )
    sha256, before = record.get(STORE), look_up(record, "couplings.path")
    if sha256 is None and path != before:
        raise UserError(
            f"couplings.path={path}: an older chordflow did not write down which store the run began with; move it "
            f"back to {before}, or start a new run."
        )
    if sha256 not in (None, read_manifest(Path(path)).made_with_sha256):
        raise UserError(
            f"couplings.path={path}: this store was not made with the settings of the one that the run began with; "
            "give that one, or start a new run."
        )


def teacher_may_have_seen(teacher_dir: Path, dataset: DatasetConfig, held_out: list[int]) -> bool:
    """Whether the held-out episodes may have been in the teacher's own training.

    False only where its `train_config.json` shows that they were not: a list of episodes of this dataset without
    them, or the same share held out by LeRobot's own rule. The record of a teacher that is itself a student names the
    episodes that it left out, and what its own teachers have seen.
    """
    record = read_record(teacher_dir)
    try:
        if record:
            own_teacher = Path(record["teacher"]["path"])
            # Without that file this is unknown; a checkpoint is never its own teacher, whatever its record says.
            if not own_teacher.is_dir() or own_teacher.resolve() == teacher_dir.resolve():
                return True
            if teacher_may_have_seen(resolve_checkpoint(own_teacher), dataset, held_out):
                return True
        trained_on = json.loads((teacher_dir / TRAIN_CONFIG).read_text(encoding="utf-8"))["dataset"]
        if trained_on["repo_id"] != dataset.repo_id:
            # Another name is no proof: local copies and forks have names of their own.
            return True
        if record.get(HELD_OUT) is not None:
            return not set(held_out) <= set(record[HELD_OUT])
        episodes = trained_on.get("episodes")
        if episodes is not None and not set(episodes) & set(held_out):
            return False
        same_episodes = episodes == dataset.episodes
        return not (same_episodes and trained_on.get("eval_split", 0.0) >= dataset.eval_split)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return True


def read_record(checkpoint: Path) -> dict[str, Any]:
    """What chordflow has written beside a student, in its `pretrained_model` folder; empty for any other checkpoint."""
    return read_object(checkpoint / REFLOW_CONFIG)


def trained_step_counts(checkpoint: Path) -> list[int] | None:
    """The Euler steps that a checkpoint's record says it was trained for; None where it says any, or nothing."""
    try:
        return [int(count) for count in read_record(checkpoint)[STEP_COUNTS]]
    except (KeyError, ValueError, TypeError):
        return None


def trained_method(checkpoint: Path) -> str | None:
    """The `method.type` that a checkpoint's record says it was trained by; None where it says nothing."""
    name = look_up(read_record(checkpoint), "method.type")
    return name if isinstance(name, str) else None


def collected_in(checkpoint: Path) -> list[SeedRange]:
    """The episodes that a checkpoint's record says observations were collected in for its training."""
    try:
        ranges = [SeedRange(**run) for run in read_record(checkpoint).get(COLLECTED) or []]
    except TypeError:
        return []
    return [run for run in ranges if isinstance(run.first, int) and isinstance(run.stop, int)]


def lineage(checkpoint: Path) -> list[str]:
    """SHA-256 of the weights of a checkpoint and, before it, of the teachers that it comes from, oldest first."""
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
    trained_on: Mapping[str, Any] | None = None,
) -> None:
    """`train_config.json` as stock tools read it, and chordflow's own settings beside it.

    Args:
        config: what the student was trained with.
        teacher_dir: by whom.
        folder: the student's `pretrained_model` folder.
        of: the round of a job, where that has several; the settings are then those of the job.
        trained_on: what of the data the record holds, by key: STORE, HELD_OUT, JUDGED and COLLECTED, the last as
            collected for this student so far. What is None or empty is left out.
    """
    of = of or Round(1, config, teacher_dir)
    root = None if config.dataset.root is None else absolute(config.dataset.root)
    stock = TrainPipelineConfig(
        dataset=LeRobotDatasetConfig(
            **_same(config.dataset, "repo_id", "revision", "episodes", "eval_split"),
            root=root,
            video_backend=config.dataset.video_backend or "pyav",
        ),
        **_same(config, "output_dir", "seed", "num_workers", "batch_size", "steps", "log_freq", "save_freq"),
        **_same(config, "tolerance_s", "rename_map"),
        job_name="reflow",
        env_eval_freq=0,
        use_policy_training_preset=False,
        # LeRobot does not know SOAP; its settings are in the file beside this one.
        optimizer=AdamWConfig(
            **_same(config.optimizer, "lr", "betas", "eps", "weight_decay", "grad_clip_norm")
        ),
        scheduler=CosineAnnealingWithWarmupSchedulerConfig(
            num_warmup_steps=config.scheduler.warmup(config.steps)
        ),
    )
    stock.save_pretrained(folder)
    # As it is in the folder: parsed here, it would name this machine's device.
    written = read_json(folder / TRAIN_CONFIG, "train_config")
    written["policy"] = {**read_config(folder), "pretrained_path": absolute(config.teacher.path)}
    write_json(folder / TRAIN_CONFIG, written)
    settings, begun_with = plain(of.job), of.job.student.init_path
    make_absolute(settings, "teacher.path", "dataset.root", "couplings.path", "student.init_path")
    record: dict[str, Any] = {
        "chordflow_version": __version__,
        "teacher_sha256": weights_sha256(of.first_teacher),
        PROCESSORS: processors_sha256(of.first_teacher),
        STEP_COUNTS: config.method.build().step_counts,
        "round": of.number,
        "round_seed": config.seed,
        "lineage": lineage(teacher_dir),
    }
    found, before = dict(trained_on or {}), [teacher_dir]
    if begun_with is not None:
        init_dir = resolve_checkpoint(begun_with, None, "student.init_path")
        record["init_sha256"] = weights_sha256(init_dir)
        before.append(init_dir)
    ranges = [asdict(run) for earlier in before for run in collected_in(earlier)] + found.get(COLLECTED, [])
    found[COLLECTED] = [run for index, run in enumerate(ranges) if run not in ranges[:index]]
    record |= {key: value for key, value in found.items() if value not in (None, [])}
    write_json(folder / REFLOW_CONFIG, {**record, **settings})


def _same(settings: Any, *names: str) -> dict[str, Any]:
    """Settings that LeRobot calls as chordflow does."""
    return {name: getattr(settings, name) for name in names}


def absolute(path: str) -> str:
    """A local folder's whole path; a Hub id as it is."""
    return str(Path(path).resolve()) if Path(path).is_dir() else path


def make_absolute(settings: dict[str, Any], *options: str) -> None:
    """Whole paths for options that name folders: a run is resumed from wherever the user happens to be."""
    for group, name in (option.split(".") for option in options):
        if settings[group][name] is not None:
            settings[group][name] = absolute(settings[group][name])


def weights_sha256(checkpoint: Path) -> str:
    """The SHA-256 of a checkpoint's weights file, in hexadecimal."""
    return file_sha256(checkpoint / WEIGHTS)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    file = path.resolve()
    about = file.stat()
    return _sha256(file, about.st_ino, about.st_size, about.st_mtime_ns)


def processors_sha256(checkpoint: Path) -> str:
    """The SHA-256 of what a checkpoint's processors do, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(checkpoint.glob("policy_p*processor*")):
        # Devices and folders are others on another machine.
        digest.update(re.sub(rb'"(device|tokenizer_name|model_name)": "[^"]*"', b"", file.read_bytes()))
    return digest.hexdigest()


@cache
def _sha256(path: Path, *_changes: int) -> str:
    """Read once for as long as the file stays what it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
