"""Making a store of couplings, once for many trainings."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import draccus
import torch
from torch import Tensor

from chordflow import stopping
from chordflow.console import Bar, bar, say
from chordflow.couplings import open_split
from chordflow.couplings.making import BlockMaker
from chordflow.couplings.memory import ShortOfMemoryError, enough_memory
from chordflow.couplings.store import (
    MANIFEST,
    BrokenBlockError,
    Manifest,
    begin,
    finished,
    how_to_resume,
    one_job,
    read_block,
    read_manifest,
    remake_command,
    shard_name,
    write_block,
)
from chordflow.errors import UserError
from chordflow.experiments.config import CoupleConfig
from chordflow.experiments.provenance import device_name, load_teacher, make_absolute, weights_sha256
from chordflow.experiments.run_folder import made_folder
from chordflow.experiments.stored_couplings import made_with
from chordflow.policies import Context, FlowPolicy
from chordflow.results.schema import installed_versions
from chordflow.results.wording import size
from chordflow.training.distributed import Processes, current


def couple(config: CoupleConfig) -> Path:
    """Makes a store, or what it lacks; gives its folder.

    Raises:
        UserError: for input that cannot be used, or a disk without room; no half-written block is left.
    """
    started, processes, folder = time.perf_counter(), current(), config.output_dir
    there = (folder / MANIFEST).is_file()
    if processes.first and there and not config.resume:
        raise UserError(
            f"output_dir={folder} holds a store already; name a new folder, or resume with: {remake_command(folder)}"
        )
    teacher_dir, teacher = load_teacher(config.teacher, config.device, config.rename_map)
    config.coupling.settle(teacher.default_num_steps)
    split = open_split(config.dataset, teacher, tolerance_s=config.tolerance_s)
    block_size, wanted = config.buffer.block_size, config.num_observations
    if wanted is None and there:
        wanted = read_manifest(folder, "output_dir").num_observations
    num_blocks = -(-(wanted or len(split.train)) // block_size)
    blocks = config.buffer.of(num_blocks * block_size)
    maker = BlockMaker(
        teacher, split.train, config.coupling, blocks, seed=config.seed, batch_size=config.batch_size
    )
    say(f"Teacher: {config.teacher.path} ({teacher.family}, on {device_name(teacher.device)})")
    say(f"Data:    {config.dataset.repo_id}, {len(split.train):,} observations to train on")
    made = made_with(config, teacher, split, store_context=config.store_context)
    about = {
        "settings": _settings(config, Path(split.metadata.root)),
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
    job = _Job(config, teacher, maker, Manifest(made, about, num_blocks), processes)
    job.check_room()
    with contextlib.ExitStack() as stack:
        if processes.first:
            stack.enter_context(made_folder(folder, new=False))
            stack.enter_context(one_job(folder, alone=processes.count == 1))
            begin(folder, job.manifest)
        # Before the first process has begun the store, or has refused to, no other looks at it.
        processes.wait()
        stack.enter_context(stopping.noting(lambda: how_to_resume(folder)))
        stack.enter_context(enough_memory(teacher.device, job.advice))
        try:
            job.run(read_manifest(folder, "output_dir"))
        except UserError as error:
            if "--dataset.episodes" not in str(error):
                raise
            raise UserError(
                f"{error} A store without the episode is another one, in a new folder; of this one, "
                f"{how_to_resume(folder)}"
            ) from error
        processes.wait()
    say(f"Done in {time.perf_counter() - started:.0f} s.")
    return folder


def _settings(config: CoupleConfig, dataset: Path) -> dict[str, Any]:
    """Settings that mean the same from wherever the user happens to be, and whenever.

    The folder of a dataset from the Hub, whose branches and tags may move on, is named by a commit.
    """
    settings: dict[str, Any] = draccus.encode(config)
    make_absolute(settings, "teacher.path", "dataset.root")
    if dataset.parent.name == "snapshots":
        settings["dataset"]["revision"] = dataset.name
    return settings


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
        """Makes what is missing or damaged, by the manifest on disk, with checksums of older blocks."""
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
            self.announced = True
            self._print_size(kept)
        solved, _ = self.maker.solve(number, context)
        with stopping.held():
            write_block(self.folder, number, self.maker.observation_indices(number), solved, kept)

    def _print_size(self, context: Context | None) -> None:
        """Prints how large the store will be before anything is written, and checks that it fits."""
        blocks, missing = self.manifest.num_blocks, self.manifest.num_blocks - finished(self.folder)
        contexts = context.num_bytes if context is not None else 0
        parts = f"{size(self.endpoint_bytes * blocks)} of endpoints"
        if context is not None:
            kinds = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in context.tensors()})
            parts += f" and {size(contexts * blocks)} of contexts ({', '.join(kinds)})"
        say(
            f"Store:   {self.manifest.num_observations:,} observations x "
            f"{self.config.buffer.noises_per_observation} noises on average{self.maker.config.sharing} in {blocks:,} "
            f"block{'s' * (blocks > 1)}, {parts}" + (f"; {missing:,} to be made" if missing < blocks else "")
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
        """
        done, folder = finished(self.folder), self.folder.absolute()
        missing = self.manifest.num_blocks - done
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
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
