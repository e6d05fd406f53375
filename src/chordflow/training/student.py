"""How a student begins: from what, and with which parts frozen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch
from torch import nn

from chordflow.errors import UserError
from chordflow.policies import FlowPolicy, Role, load_flow_policy
from chordflow.policies.base import PREFIX_ROLES


class StudentInit(StrEnum):
    """Where the student's weights come from.

    Starting from the teacher is practice, not theory: the optimum does not depend on it, but it is sooner reached.
    """

    TEACHER = "teacher"
    TEACHER_VLM = "teacher_vlm"
    PRETRAINED_VLM = "pretrained_vlm"
    RANDOM = "random"


@dataclass(frozen=True)
class Student:
    """A student before its first step.

    Attributes:
        policy: the whole policy.
        trainable: its trained parameters by name, float32.
        fresh: parameters by name that are frozen and yet not the teacher's, since they were initialised again or
            come from another checkpoint; they have to be saved with the trained ones.
    """

    policy: FlowPolicy
    trainable: dict[str, nn.Parameter]
    fresh: dict[str, nn.Parameter]


def make_student(
    teacher: FlowPolicy,
    teacher_dir: Path,
    init: StudentInit,
    train_roles: list[Role],
    *,
    seed: int,
    rename_map: dict[str, str] | None = None,
    init_dir: Path | None = None,
) -> Student:
    """Loads the teacher's checkpoint once more and makes a student of it.

    Frozen parameters that equal the teacher's share its memory.

    Args:
        teacher: the loaded teacher.
        teacher_dir: its local folder.
        init: the teacher as it is; its vision-language model with a fresh action head; the vision-language model
            that the checkpoint's config names, with all else fresh; or all at random.
        train_roles: the parts that are trained, as float32 masters; all others are frozen.
        seed: for fresh weights.
        rename_map: as for the teacher.
        init_dir: a checkpoint of the same family and shapes whose weights the student starts with instead of
            the teacher's; config and processors stay the teacher's.

    Raises:
        UserError: if that checkpoint is of another family or of other shapes, or the config names no
            vision-language model that has weights.
    """
    student = load_flow_policy(teacher_dir, device=teacher.device, rename_map=rename_map)
    if init_dir is not None:
        _begin_with(student, init_dir)
    fresh = {
        StudentInit.TEACHER: [],
        StudentInit.TEACHER_VLM: [Role.ACTION_HEAD],
        StudentInit.PRETRAINED_VLM: list(Role),
        StudentInit.RANDOM: list(Role),
    }[init]
    if fresh:
        student.fresh(fresh, seed)
    if init == StudentInit.PRETRAINED_VLM:
        student.begin_pretrained()
    by_role = student.parameters_by_role()
    for role in train_roles:
        if not by_role[role]:
            have = ", ".join(other for other in Role if by_role[other])
            raise UserError(
                f"student.train holds {role}, of which policy type {student.family!r} has none; its parts are {have}."
            )
    trainable = student.train_roles(train_roles)
    originals = teacher.parameters_by_role()
    frozen_fresh: dict[str, nn.Parameter] = {}
    for role, named in student.parameters_by_role().items():
        if role in train_roles:
            continue
        if role in fresh:
            frozen_fresh |= named
            continue
        for name, parameter in named.items():
            if init_dir is not None and not torch.equal(parameter, originals[role][name]):
                frozen_fresh[name] = parameter
            else:
                parameter.data = originals[role][name].data
    return Student(student, trainable, frozen_fresh)


@torch.no_grad()
def _begin_with(student: FlowPolicy, folder: Path) -> None:
    """Copies the weights of another checkpoint into the student."""
    other = load_flow_policy(folder, device=student.device, field="student.init_path")
    own, theirs = dict(student.module.named_parameters()), dict(other.module.named_parameters())
    shapes = [{name: tuple(tensor.shape) for name, tensor in named.items()} for named in (own, theirs)]
    if other.family != student.family or other.chunk.shape != student.chunk.shape or shapes[0] != shapes[1]:
        raise UserError(
            f"student.init_path={folder}: it is a {other.family} policy of chunks {other.chunk.shape} and the teacher "
            f"a {student.family} policy of chunks {student.chunk.shape}, or their networks differ in size; give a "
            "checkpoint that was made from this teacher."
        )
    for name, parameter in own.items():
        parameter.copy_(theirs[name])


def shares_prefix(teacher: FlowPolicy, student: FlowPolicy, train_roles: list[Role]) -> bool:
    """Whether one encoded observation serves both: nothing of the prefix trains and its weights agree."""
    return not set(train_roles) & set(PREFIX_ROLES) and teacher.prefix_hash() == student.prefix_hash()
