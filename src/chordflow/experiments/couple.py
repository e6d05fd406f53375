"""Making a store of couplings: the teacher is asked once, for many trainings."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import draccus
import torch
from torch import Tensor

from chordflow import stopping
from chordflow.console import Bar, bar, say
from chordflow.couplings import TOLERANCE_S, BufferConfig, CouplingConfig, DatasetConfig, open_split
from chordflow.couplings.device_memory import stage
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.store import MANIFEST, read_manifest, remake_command
from chordflow.couplings.store_writer import StoreWriter
from chordflow.errors import UserError
from chordflow.experiments.provenance import device_name, refuse_student_of_few_steps, weights_sha256
from chordflow.experiments.stored_couplings import made_with
from chordflow.policies import Context, FlowPolicy, load_flow_policy, resolve_checkpoint
from chordflow.results.schema import installed_versions
from chordflow.training.distributed import current
from chordflow.training.memory import enough_memory_to_make


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
            observation of the dataset once. Beyond that number they are gone through again with new noises. With
            resume, by default as many as the store was to hold; more enlarge it, fewer give up blocks that are not
            made yet.
        store_context: store the encoded observations too, so that training reads no images and encodes nothing;
            how much room they take is said before the first is written.
        batch_size: couplings that are solved at once; the same as in training gives the same bits.
        seed: of the order of observations and of the noises.
        num_workers: processes that read observations ahead.
        device: cuda, mps or cpu; by default the checkpoint's, or what is available.
        tolerance_s: seconds by which a video's frame may miss its timestamp, as in LeRobot.
        rename_map: observation keys of the dataset to keys of the policy, as JSON; replaces the checkpoint's own.
        resume: go on with the store in output_dir, or join other processes that are making it: blocks that are
            missing or damaged are made, all others stay. Settings can be given by --config_path=STORE/manifest.json.
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
        if self.num_observations is not None and self.num_observations < 1:
            raise UserError(f"num_observations={self.num_observations}: give at least 1.")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: give at least 1.")
        if self.num_workers < 0:
            raise UserError(f"num_workers={self.num_workers}: give 0 or more.")


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
    if processes.first and not config.resume:
        _refuse_existing(config.output_dir)
    teacher_dir = resolve_checkpoint(config.teacher.path, config.teacher.revision)
    refuse_student_of_few_steps(teacher_dir, config.teacher.path)
    teacher = load_flow_policy(teacher_dir, device=config.device, rename_map=config.rename_map)
    config.coupling.settle(teacher.default_num_steps)
    teacher.module.requires_grad_(False)
    split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
    block_size = config.buffer.block_size
    asked = config.num_observations
    begun = (
        read_manifest(config.output_dir, "output_dir") if (config.output_dir / MANIFEST).exists() else None
    )
    wanted = asked or (begun.num_blocks * block_size if begun is not None else len(split.train))
    count = -(-wanted // block_size) * block_size
    blocks = config.buffer.of(count)
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
    job = _Job(config, teacher, maker, count // block_size)
    job.check_room(0, config.output_dir, job.num_blocks, len(begun.shards) if begun is not None else 0)
    with _folder(config.output_dir):
        if not processes.first:
            # The first begins the store, or refuses to.
            processes.wait()
        writing = StoreWriter(config.output_dir, settings, about, job.num_blocks, asked=asked is not None)
        with stopping.says(lambda: _how_to_go_on(writing)), contextlib.closing(writing) as writer:
            try:
                if asked is not None and writer.num_blocks > job.num_blocks:
                    say(f"Store:   {_kept(writer, asked, block_size)}")
                if processes.first:
                    processes.wait()
                    job.mend(writer)
                with enough_memory_to_make(maker, lambda: len(writer.manifest.shards)):
                    job.run(writer)
            finally:
                writer.discard_if_empty()
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return config.output_dir


class _Job:
    """The blocks of a store, made one after the other by this process and whoever else works on it."""

    def __init__(self, config: CoupleConfig, teacher: FlowPolicy, maker: BlockMaker, num_blocks: int) -> None:
        self.config = config
        self.teacher = teacher
        self.maker = maker
        self.num_blocks = num_blocks
        self.announced = False

    @staticmethod
    def mend(writer: StoreWriter) -> None:
        """Finds what is damaged of a store that is gone on with, so that it is made anew."""
        for number, fault in writer.drop_damaged():
            say(f"Block {number} {fault}: it is made anew")

    def run(self, writer: StoreWriter) -> None:
        """Makes what is missing until nothing is."""
        with bar("couplings") as progress:
            while writer.missing():
                claims = writer.claims()
                first = next(claims, None)
                if first is None:
                    # The rest is being made by others; where one of them dies, its blocks come free.
                    writer.wait()
                    self._show(progress, writer)
                    continue
                for number, items in self._read(chain([first], claims)):
                    self._make(writer, number, items)
                    self._show(progress, writer)

    def _read(self, claims: Iterator[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        numbers: deque[int] = deque()

        def order() -> Iterator[list[int]]:
            for number in claims:
                numbers.append(number)
                yield self.maker.observation_indices(number)

        for items in self.maker.observations.stream(order(), self.config.num_workers):
            yield numbers.popleft(), items

    @torch.no_grad()
    def _make(self, writer: StoreWriter, number: int, items: dict[str, Any]) -> None:
        with stage("encode"):
            context = self.teacher.encode(self.teacher.preprocess(items)).detach()
        kept = context if self.config.store_context else None
        if not self.announced:
            self._announce(writer, kept)
            self.announced = True
        solved = self.maker.solve(number, context)
        with stopping.held():
            writer.write(number, self.maker.observation_indices(number), solved, kept)

    def _announce(self, writer: StoreWriter, context: Context | None) -> None:
        """Says how large the store will be, before anything of it is written, and makes sure that it fits."""
        blocks = writer.num_blocks
        endpoints, contexts = self.block_bytes(context)
        parts = f"{_size(endpoints * blocks)} of endpoints"
        if context is not None:
            kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in context.tensors()})
            parts += f" and {_size(contexts * blocks)} of contexts ({', '.join(kinds)})"
        missing = len(writer.missing())
        say(
            f"Store:   {blocks * self.maker.block_size:,} observations x "
            f"{self.config.buffer.noises_per_observation} noises on average{self.maker.config.sharing} in {blocks:,} "
            f"blocks, {parts}" + (f"; {missing:,} blocks are to be made" if missing < blocks else "")
        )
        self.check_room(contexts, writer.folder, blocks, blocks - missing)

    def block_bytes(self, context: Context | None) -> tuple[int, int]:
        """Bytes of a block's endpoints and of its contexts."""
        noise: Tensor = self.teacher.sample_noise(1, torch.Generator())
        endpoints = self.maker.per_block * (noise.nbytes + 8) + self.maker.block_size * 8
        return endpoints, context.num_bytes if context is not None else 0

    def check_room(self, context_bytes: int, folder: Path, blocks: int, finished: int) -> None:
        """Makes sure that the disk has room for the blocks that are to be made.

        Args:
            context_bytes: of a block, where contexts are stored and their size is known.
            folder: of the store, or where it will be made.
            blocks: that the store is to hold.
            finished: how many of them it has.

        Raises:
            UserError: if it has not.
        """
        missing = max(blocks - finished, 0)
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
        each = self.block_bytes(None)[0] + context_bytes
        if each * missing <= free:
            return
        fit = (finished + free // each) * self.maker.block_size
        advice = f"--num_observations (to at most {fit:,})" if fit else "--num_observations"
        without = " leave --store_context out," if context_bytes else ""
        raise UserError(
            f"output_dir={folder}: the blocks that are to be made take {_size(each * missing)}, but {_size(free)} are "
            f"free there; lower {advice},{without} or choose a folder on another disk."
        )

    @staticmethod
    def _show(progress: Bar, writer: StoreWriter) -> None:
        manifest = writer.refresh()
        progress.update(len(manifest.shards), writer.num_blocks, f"{_size(manifest.num_bytes)} on disk")


def _refuse_existing(output_dir: Path) -> None:
    if (output_dir / MANIFEST).is_file():
        raise UserError(
            f"output_dir={output_dir} holds a store already; name a new folder, or go on with: "
            f"{remake_command(output_dir)}"
        )


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


def _how_to_go_on(writer: StoreWriter) -> str:
    done, blocks = len(writer.manifest.shards), writer.num_blocks
    if not done:
        return "no block was made yet, so start again."
    return f"{done} of {blocks} blocks are made; go on with: {writer.go_on_command}"


def _kept(writer: StoreWriter, asked: int, block_size: int) -> str:
    """Why a store is to hold more than was asked for."""
    made = max(writer.manifest.shards, default=-1) + 1
    why = "blocks that are made are kept" if made == writer.num_blocks else "another process is making more"
    return (
        f"num_observations={asked}: {why}, so it is to hold {writer.num_blocks * block_size:,} observations"
    )


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


def _size(num_bytes: int) -> str:
    """A size as people say it."""
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"
