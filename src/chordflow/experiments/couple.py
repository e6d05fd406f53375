"""Making a store of couplings: the teacher is asked once, for many trainings."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import draccus
import torch
from torch import Tensor

from chordflow import stopping
from chordflow.checks import check_fields
from chordflow.console import Bar, bar, say
from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig, open_split
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.memory import ShortOfMemoryError, enough_memory
from chordflow.couplings.store import (
    MANIFEST,
    BrokenBlockError,
    Manifest,
    begin,
    finished,
    how_to_go_on,
    one_job,
    read_block,
    read_manifest,
    remake_command,
    shard_name,
    write_block,
)
from chordflow.errors import UserError
from chordflow.experiments.provenance import device_name, refuse_student_of_few_steps, weights_sha256
from chordflow.experiments.stored_couplings import made_with
from chordflow.policies import Context, FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.results.schema import installed_versions
from chordflow.results.wording import size
from chordflow.training.distributed import Processes, current


@dataclass
class CheckpointConfig:
    """The checkpoint whose couplings are made.

    Attributes:
        path: `pretrained_model` folder of a LeRobot checkpoint, a run's folder, or a Hub id.
        revision: branch, tag or commit on the Hub.
    """

    path: str
    revision: str | None = None


@dataclass
class BlocksConfig:
    """How observations are put together; the same as in training.

    Attributes:
        noises_per_observation: noises that share one encoded observation, on average.
        block_size: observations that are encoded together, and make one file.
        adaptive_share: share of the noises that goes to the observations in proportion to how far their
            endpoints spread; the rest, at least two each, goes to all alike, so that of 1 or 2
            noises_per_observation none is left for it.
    """

    noises_per_observation: int = 4
    block_size: int = 64
    adaptive_share: float = 0.5

    def __post_init__(self) -> None:
        self.of(1)

    def of(self, num_observations: int) -> BufferConfig:
        """A buffer of that many observations that is never refreshed."""
        return BufferConfig(num_observations, uses_per_coupling=None, **asdict(self))


@dataclass
class CoupleConfig:
    """Make a store of couplings: a teacher's noises and endpoints on disk, for many trainings.

    Attributes:
        teacher: the checkpoint whose couplings are made.
        dataset: LeRobot dataset whose observations are used (its actions are not).
        output_dir: folder of the store.
        num_observations: observations in the store, rounded up to whole blocks; by default every training
            observation of the dataset once. Beyond that number they are gone through again with new noises.
        store_context: store the encoded observations too, so that training reads no images and encodes nothing;
            how much room they take is said before the first is written.
        batch_size: couplings that are solved at once; the same as in training gives the same bits.
        seed: of the order of observations and of the noises.
        num_workers: processes that read observations ahead.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the dataset to keys of the policy, as JSON; replaces the checkpoint's own.
        resume: resume the store in output_dir: blocks that are missing or damaged are made, all others stay.
            Settings can be given by --config_path=STORE/manifest.json.
        coupling: how the teacher's ODE is solved.
        buffer: how observations are put together; the same as in training.
    """

    teacher: CheckpointConfig
    dataset: DatasetConfig
    output_dir: Path
    num_observations: int | None = None
    store_context: bool = False
    batch_size: int = 64
    seed: int = 1000
    num_workers: int = 4
    device: str | None = None
    tolerance_s: float = TOLERANCE_S
    rename_map: dict[str, str] = field(default_factory=dict)
    resume: bool = False
    coupling: CouplingConfig = field(default_factory=CouplingConfig)
    buffer: BlocksConfig = field(default_factory=BlocksConfig)

    def __post_init__(self) -> None:
        check_fields(self, "", "num_observations", "batch_size", at_least=1)
        check_fields(self, "", "num_workers", at_least=0)


def couple(config: CoupleConfig) -> Path:
    """Makes a store, or what it lacks.

    Args:
        config: all settings.

    Returns:
        The store's folder.

    Raises:
        UserError: for input that cannot be used, or a disk without room; no half-written block is left.
    """
    started = time.perf_counter()
    processes = current()
    there = (config.output_dir / MANIFEST).is_file()
    if processes.first and there and not config.resume:
        raise UserError(
            f"output_dir={config.output_dir} holds a store already; name a new folder, or resume with: "
            f"{remake_command(config.output_dir)}"
        )
    teacher_dir = resolve_checkpoint(config.teacher.path, config.teacher.revision)
    refuse_student_of_few_steps(teacher_dir, config.teacher.path)
    teacher = load_flow_policy(teacher_dir, device=config.device, rename_map=config.rename_map)
    config.coupling.settle(teacher.default_num_steps)
    teacher.module.requires_grad_(False)
    split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
    block_size = config.buffer.block_size
    wanted = config.num_observations
    if wanted is None and there:
        wanted = read_manifest(config.output_dir, "output_dir").num_observations
    num_blocks = -(-(wanted or len(split.train)) // block_size)
    blocks = config.buffer.of(num_blocks * block_size)
    maker = BlockMaker(
        teacher, split.train, config.coupling, blocks, seed=config.seed, batch_size=config.batch_size
    )
    say(f"Teacher: {config.teacher.path} ({teacher.family}, on {device_name(teacher.device)})")
    say(f"Data:    {config.dataset.repo_id}, {len(split.train):,} observations to train on")
    settings = made_with(
        teacher,
        split,
        config.rename_map,
        config.coupling,
        blocks,
        seed=config.seed,
        batch_size=config.batch_size,
        store_context=config.store_context,
    )
    about = {
        "settings": _pinned(_absolute(draccus.encode(config)), Path(split.metadata.root)),
        "teacher_sha256": weights_sha256(teacher_dir),
        "dataset": {
            "total_episodes": split.metadata.total_episodes,
            "total_frames": split.metadata.total_frames,
            "held_out_episodes": split.held_out_episodes,
        },
        "dtype": str(teacher.sample_noise(1, torch.Generator()).dtype).removeprefix("torch."),
        "device": device_name(teacher.device),
        "versions": installed_versions(),
    }
    job = _Job(config, teacher, maker, Manifest(settings, about, num_blocks), processes)
    job.check_room()
    with contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(_folder(config.output_dir))
            stack.enter_context(one_job(config.output_dir, alone=processes.count == 1))
            begin(config.output_dir, job.manifest)
        # Before the first process has begun the store, or has refused to, no other looks at it.
        processes.wait()
        stack.enter_context(stopping.says(lambda: how_to_go_on(config.output_dir)))
        stack.enter_context(enough_memory(teacher.device, job.advice))
        job.run(read_manifest(config.output_dir, "output_dir"))
        processes.wait()
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return config.output_dir


@dataclass
class _Job:
    """The blocks of a store that this process makes: one in as many as there are processes."""

    config: CoupleConfig
    teacher: FlowPolicy
    maker: BlockMaker
    manifest: Manifest
    processes: Processes
    done: int = 0
    announced: bool = False

    @property
    def folder(self) -> Path:
        """Of the store."""
        return self.config.output_dir

    def run(self, manifest: Manifest) -> None:
        """Makes what is missing or damaged.

        Args:
            manifest: as it is on disk, with the checksums that blocks of an older layout do not carry.
        """
        self.manifest = manifest
        numbers: deque[int] = deque()
        with bar("couplings") as progress, self.maker.in_memory():
            order = self._missing(numbers, progress)
            for items in self.maker.observations.stream(order, self.config.num_workers):
                self._make(numbers.popleft(), items)
                self._show(progress)

    def _missing(self, numbers: deque[int], progress: Bar) -> Iterator[list[int]]:
        """Observations of this process's blocks that are to be made; their numbers are put into `numbers`."""
        for number in range(self.processes.index, self.manifest.num_blocks, self.processes.count):
            if (self.folder / shard_name(number)).exists():
                try:
                    read_block(self.folder, number, self.manifest)
                except BrokenBlockError as error:
                    say(f"Block {number} {error}: it is made anew")
                else:
                    self._show(progress)
                    continue
            numbers.append(number)
            yield self.maker.observation_indices(number)

    @torch.no_grad()
    def _make(self, number: int, items: dict[str, Any]) -> None:
        context = self.teacher.encode(self.teacher.preprocess(items)).detach()
        kept = context if self.config.store_context else None
        if not self.announced:
            self._announce(kept)
            self.announced = True
        solved, _ = self.maker.solve(number, context)
        with stopping.held():
            write_block(self.folder, number, self.maker.observation_indices(number), solved, kept)

    def _announce(self, context: Context | None) -> None:
        """Says how large the store will be, before anything of it is written, and makes sure that it fits."""
        blocks, missing = self.manifest.num_blocks, self.manifest.num_blocks - finished(self.folder)
        contexts = context.num_bytes if context is not None else 0
        parts = f"{size(self.endpoint_bytes * blocks)} of endpoints"
        if context is not None:
            kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in context.tensors()})
            parts += f" and {size(contexts * blocks)} of contexts ({', '.join(kinds)})"
        say(
            f"Store:   {self.manifest.num_observations:,} observations x "
            f"{self.config.buffer.noises_per_observation} noises on average{self.maker.config.sharing} in {blocks:,} "
            f"blocks, {parts}" + (f"; {missing:,} blocks are to be made" if missing < blocks else "")
        )
        self.check_room(contexts)

    @property
    def endpoint_bytes(self) -> int:
        """Bytes of a block's endpoints."""
        noise: Tensor = self.teacher.sample_noise(1, torch.Generator())
        return self.maker.per_block * (noise.nbytes + 8) + self.maker.block_size * 8

    def check_room(self, context_bytes: int = 0) -> None:
        """Makes sure that the disk has room for the blocks that are to be made.

        Args:
            context_bytes: of a block, where contexts are stored and their size is known.

        Raises:
            UserError: if it has not.
        """
        done = finished(self.folder)
        missing = self.manifest.num_blocks - done
        place = next(
            path for path in (self.folder.absolute(), *self.folder.absolute().parents) if path.exists()
        )
        free = shutil.disk_usage(place).free
        each = self.endpoint_bytes + context_bytes
        if each * missing <= free:
            return
        fit = (done + free // each) * self.maker.block_size
        advice = f"--num_observations (to at most {fit:,})" if fit else "--num_observations"
        without = " leave --store_context out," if context_bytes else ""
        raise UserError(
            f"output_dir={self.folder}: the blocks that are to be made take {size(each * missing)}, but {size(free)} "
            f"are free there; lower {advice},{without} or choose a folder on another disk."
        )

    def advice(self, short: ShortOfMemoryError | None) -> str:
        """What was being done when memory ran out, and what to do."""
        if short is None or short.size == 1 or not finished(self.folder):
            return str(short or "while couplings were made; use a larger device")
        return f"{short} for a new store in another --output_dir: the blocks of one store are all of one kind"

    def _show(self, progress: Bar) -> None:
        """Another block of this process is there; the other processes have as many, give or take one."""
        self.done += 1
        total = self.manifest.num_blocks
        progress.update(min(self.done * self.processes.count, total), total)


@contextlib.contextmanager
def _folder(output_dir: Path) -> Iterator[None]:
    """Makes a store's folder, and takes it away again where nothing is in it in the end."""
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir={output_dir} cannot be made ({error.strerror}); name a folder in a place that can be written "
            "to."
        ) from error
    try:
        yield
    finally:
        for folder in made:
            # The system refuses where something is inside.
            with contextlib.suppress(OSError):
                folder.rmdir()


def _absolute(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that mean the same from wherever the user happens to be."""
    for group, name in (("teacher", "path"), ("dataset", "root")):
        path = settings[group][name]
        if path is not None and Path(path).is_dir():
            settings[group][name] = str(Path(path).resolve())
    return settings


def _pinned(settings: dict[str, Any], dataset: Path) -> dict[str, Any]:
    """Settings with the commit of a dataset that came from the Hub, whose branches and tags may move on."""
    if dataset.parent.name == "snapshots":
        settings["dataset"]["revision"] = dataset.name
    return settings
