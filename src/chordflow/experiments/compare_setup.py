"""How a comparison begins: what its runs share, and whether it is the one that is gone on with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lerobot.envs.configs import EnvConfig

from chordflow.couplings import CouplingBuffer, Split, open_split
from chordflow.errors import UserError
from chordflow.experiments.compare_config import ADDABLE, OWN, CompareConfig, Planned
from chordflow.experiments.compare_success import Episodes
from chordflow.experiments.plain import plain
from chordflow.experiments.provenance import device_name, weights_sha256
from chordflow.experiments.side_by_side import Teacher, command_of, open_teacher, refuse_another
from chordflow.results.compare import Comparison, Entry
from chordflow.results.schema import installed_versions
from chordflow.training.wrapping import fsdp_is_asked_for


@dataclass(frozen=True)
class Bed:
    """What all runs share.

    Attributes:
        config: of the comparison.
        planned: what is trained, by name.
        origin: the teacher.
        splits: the observations, with and without actions, as far as a method needs them.
        episodes: runs policies; None without an environment.
    """

    config: CompareConfig
    planned: dict[str, Planned]
    origin: Teacher
    splits: dict[bool, Split]
    episodes: Episodes | None

    @property
    def split(self) -> Split:
        """The observations; those that are held out are the same in all."""
        return next(iter(self.splits.values()))


def refuse_several_processes(
    what: str = "a comparison", instead: str = "train each method by chordflow reflow"
) -> None:
    """Makes sure that this process trains alone.

    Args:
        what: it is that trains alone, for the message.
        instead: what several processes can do.

    Raises:
        UserError: if a launcher has started several, or asks for FSDP.
    """
    count = os.environ.get("WORLD_SIZE", "1")
    if count != "1" or fsdp_is_asked_for():
        given = f"WORLD_SIZE={count}" if count != "1" else "ACCELERATE_USE_FSDP=true"
        raise UserError(
            f"{given}: {what} trains in one process; start it without torchrun or accelerate launch, or {instead}."
        )


def made(config: CompareConfig, planned: Sequence[Planned]) -> Bed:
    """Loads what all runs share, and makes sure that each of them can begin.

    Raises:
        UserError: for input that cannot be used.
    """
    origin = open_teacher(config)
    # Not the common settings: what an entry's solver takes by default is not what another's does, and they are kept
    # for going on.
    for entry in planned:
        entry.config.coupling.settle(origin.num_steps)
    points = config.buffer.path_points
    if points is not None and not any(entry.config.method.build().needs_paths for entry in planned):
        raise UserError(
            f"buffer.path_points={points}: no method that is compared trains on states of the trajectory; leave it out."
        )
    needed = {entry.config.method.build().needs_actions for entry in planned}
    splits = {
        actions: open_split(config.dataset, origin.policy, tolerance_s=config.tolerance_s, actions=actions)
        for actions in sorted(needed)
    }
    bed = Bed(
        config,
        {entry.name: entry for entry in planned},
        origin,
        splits,
        Episodes(config, origin.policy, origin.num_steps) if config.env is not None else None,
    )
    for entry in planned:
        _check(bed, entry)
    return bed


def _check(bed: Bed, entry: Planned) -> None:
    """Makes sure that an entry can be trained, before the others have been for hours.

    Raises:
        UserError: if not.
    """
    config = entry.config
    if bed.config.seconds is not None and config.scheduler.num_warmup_steps is not None:
        raise UserError(
            f"recipes: {entry.name!r} sets scheduler.num_warmup_steps={config.scheduler.num_warmup_steps}, and the "
            "budget is in seconds; leave it out, or give --steps."
        )
    method = config.method.build()
    points = config.buffer.path_points
    # What is set for all of them is for those that need it.
    if points not in (None, bed.config.buffer.path_points) and not method.needs_paths:
        raise UserError(
            f"recipes: {entry.name!r} sets buffer.path_points={points}, and its method does not train on states of the "
            "trajectory; leave it out, or set method.path_share with reflow or endpoint."
        )
    try:
        CouplingBuffer(
            bed.origin.policy,
            bed.splits[method.needs_actions].train,
            config.coupling,
            config.buffer,
            seed=0,
            batch_size=config.batch_size,
            parts=config.gradient_accumulation_steps,
            needs=method.needs,
        )
    except UserError as error:
        raise UserError(f"methods: {entry.name!r} cannot be trained: {error}") from error


def begun(bed: Bed, command: list[str]) -> Comparison:
    """A comparison of which nothing is measured."""
    config = bed.config
    return Comparison(
        command=command,
        settings=plain(config),
        versions=installed_versions(),
        device=device_name(bed.origin.policy.device),
        teacher=config.teacher.path,
        teacher_sha256=weights_sha256(bed.origin.folder),
        methods=[_entry(planned) for planned in bed.planned.values()],
        seeds=config.seeds,
        steps=config.steps,
        seconds=config.seconds,
        env=env_name(config.env),
    )


def _entry(planned: Planned) -> Entry:
    settings = plain(planned.config)
    method = planned.config.method.build()
    return Entry(
        name=planned.name,
        origin=planned.origin,
        about=planned.about,
        method=planned.config.method.get_choice_name(type(planned.config.method)),
        settings={name: value for name, value in settings.items() if name in OWN},
        stock_checkpoint=method.stock_checkpoint,
        step_counts=list(method.step_counts) if method.step_counts is not None else None,
    )


def env_name(env: EnvConfig | None) -> str:
    """An environment with its task, as tables name it; empty for none."""
    if env is None:
        return ""
    return f"{env.type}, {env.task}" if env.task else str(env.type)


def gone_on_with(now: Comparison, before: Comparison) -> Comparison:
    """The comparison with what was measured before, if that was measured in the same way.

    Raises:
        UserError: if it was not.
    """
    refuse_another(now, before, ADDABLE)
    known = {entry.name: entry for entry in before.methods}
    for entry in now.methods:
        if known.get(entry.name, entry) != entry:
            raise UserError(
                f"methods: {entry.name!r} had other settings when the comparison began; give them a name of their own "
                "with --recipes, or start a new one."
            )
    # What is measured stays in the table, whatever is asked for now.
    trained = {run.method for run in before.runs}
    named = {entry.name for entry in now.methods}
    kept = [entry for entry in before.methods if entry.name in trained - named]
    seeds = [
        seed for seed in before.seeds if seed not in now.seeds and any(r.seed == seed for r in before.runs)
    ]
    return replace(
        now,
        command=command_of(now, before),
        methods=[*now.methods, *kept],
        seeds=[*now.seeds, *seeds],
        held_out=before.held_out,
        untrained=before.untrained,
        runs=before.runs,
    )
