"""The coupling store: bit for bit what the teacher would give now, whole blocks only, damage told by name."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations, Share
from chordflow.couplings.blocks import Solved
from chordflow.couplings.store import (
    FOR_TRAINING,
    LOCK,
    CouplingStore,
    Manifest,
    begin,
    finished,
    one_job,
    read_block,
    read_manifest,
    shard_name,
    write_block,
)
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.objective import UShapedTimes
from gaussian_policy import GaussianFlowPolicy
from gaussian_setup import AffineStudent, make_observations, make_policy

CONFIG = BufferConfig(num_observations=8, noises_per_observation=6, uses_per_coupling=1, block_size=4)
SEED = 7
ABOUT: dict[str, Any] = {"settings": {name: SEED if name == "seed" else {} for name in FOR_TRAINING}}


def buffer(teacher: FlowPolicy, observations: Observations, **options: Any) -> CouplingBuffer:
    given = {"seed": SEED, "batch_size": 16, "config": CONFIG, **options}
    return CouplingBuffer(teacher, observations, CouplingConfig(num_steps=3), given.pop("config"), **given)


def settings(**changes: Any) -> dict[str, Any]:
    own = {"buffer": {"block_size": 4}, "seed": SEED, "store_context": False}
    return {"teacher": {"hash": "a"}, **own, **changes}


def make(
    folder: Path,
    teacher: FlowPolicy,
    observations: Observations,
    num_blocks: int = 6,
    *,
    context: bool = False,
) -> Path:
    """A store of a Gaussian teacher's couplings."""
    folder.mkdir(exist_ok=True)
    begin(folder, Manifest(settings(store_context=context), ABOUT, num_blocks))
    makes = buffer(teacher, observations)
    for number in range(num_blocks):
        if (folder / shard_name(number)).exists():
            continue
        indices = makes.observation_indices(number)
        items = next(observations.batches(indices, len(indices)))
        encoded = teacher.encode(teacher.preprocess(items))
        write_block(folder, number, indices, makes.solve(number, encoded)[0], encoded if context else None)
    return folder


def opened(folder: Path, teacher: FlowPolicy | None = None) -> CouplingStore:
    """A store to train from; with contexts where a teacher is given."""
    manifest = read_manifest(folder)
    template = None
    if teacher is not None:
        template = teacher.encode({"observation.state": torch.zeros(1, 2)})
    return CouplingStore(folder, manifest, manifest.num_blocks, template)


@pytest.fixture
def teacher() -> GaussianFlowPolicy:
    return make_policy(num_modes=2)


@pytest.fixture
def observations() -> Observations:
    return make_observations(9)


def losses(couplings: CouplingBuffer, teacher: GaussianFlowPolicy, steps: int) -> list[float]:
    """Of a student that learns meanwhile, so that every step's gradients matter to the next."""
    torch.manual_seed(0)
    student = AffineStudent(copy.deepcopy(teacher.config))
    optimizer = torch.optim.AdamW(student.train_roles([Role.ACTION_HEAD]).values(), lr=1e-2)
    method = ReflowMethodConfig(times=UShapedTimes(0.3)).build()
    seen = []
    for step in range(steps):
        list(couplings.fill(step))
        loss = method.loss(VelocityModule(student), couplings.batch(step), generator(SEED, "times", step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize(
    ("config", "context", "last"),
    [
        # Four blocks were replaced on the way.
        (CONFIG, False, range(4, 6)),
        (CONFIG, True, range(4, 6)),
        # From one block to three.
        (replace(CONFIG, num_observations=16, uses_per_coupling=4, start_observations=1), False, range(3)),
    ],
)
def test_training_from_a_store_is_training_on_the_fly(
    tmp_path: Path,
    teacher: GaussianFlowPolicy,
    observations: Observations,
    monkeypatch: pytest.MonkeyPatch,
    config: BufferConfig,
    context: bool,
    last: range,
) -> None:
    folder = make(tmp_path / "store", teacher, observations, context=context)
    steps = 7
    expected = losses(buffer(teacher, observations, config=config), teacher, steps)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the teacher was asked for endpoints")

    monkeypatch.setattr(teacher, "velocity", refuse)
    template = teacher if context else None
    if context:
        source = opened(folder, template)
        monkeypatch.setattr(teacher, "encode", refuse)
        monkeypatch.setattr(observations, "batches", refuse)
    else:
        source = opened(folder)
    stored = buffer(teacher, observations, source=source, config=config)
    assert losses(stored, teacher, steps) == expected
    assert stored.held_blocks(steps - 1) == list(last)
    assert len(set(expected)) == steps


def test_each_of_several_processes_reads_its_own_blocks(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    # Five blocks, so that past the end of the store a process holds what was another's.
    folder = make(tmp_path / "store", teacher, observations, num_blocks=5)
    whole = make(tmp_path / "whole", teacher, observations, num_blocks=8)
    for index in range(2):
        share = Share(index, 2)
        stored, fresh, longer = (
            buffer(teacher, observations, source=source, share=share, batch_size=8)
            for source in (opened(folder), None, opened(whole))
        )
        for step in range(9):
            for couplings in (stored, fresh, longer):
                list(couplings.fill(step))
            a, b, c = (couplings.batch(step) for couplings in (stored, fresh, longer))
            assert torch.equal(b.noise, c.noise)
            assert torch.equal(b.endpoint, c.endpoint)
            past = max(fresh.held_blocks(step)) >= 5
            assert past or torch.equal(a.endpoint, b.endpoint)
        assert past


def test_another_seed_draws_other_batches_of_the_same_couplings(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    once = replace(CONFIG, uses_per_coupling=None)
    batches = []
    for seed in (SEED, 8):
        stored = buffer(teacher, observations, source=opened(folder), seed=seed, config=once)
        list(stored.fill(0))
        assert stored.num_blocks * stored.per_block == 48
        batches.append((stored.batch(0), torch.cat([block.noise for block in stored._blocks.values()])))
    (first, noises), (second, others) = batches
    assert torch.equal(noises, others)
    assert not torch.equal(first.noise, second.noise)


def test_past_its_end_a_store_begins_again(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=3)
    stored = buffer(teacher, observations, source=opened(folder))
    fresh = buffer(teacher, observations)
    list(fresh.fill(0))
    for step in range(12):
        list(stored.fill(step))
    assert stored.window.held(4).start == 2
    list(stored.fill(4))
    # Places 2 and 3 of the sequence: the third block, and then the first.
    assert torch.equal(stored._blocks[3].noise, fresh._blocks[0].noise)
    assert torch.equal(stored._blocks[3].endpoint, fresh._blocks[0].endpoint)


def test_a_buffer_larger_than_its_store_is_refused(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=1)
    with pytest.raises(UserError, match=r"^buffer.num_observations=8: the store holds 4; give at most"):
        buffer(teacher, observations, source=opened(folder))


def test_of_a_store_whole_blocks_are_taken(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=2)
    stored = buffer(teacher, observations, source=opened(folder), config=replace(CONFIG, num_observations=3))
    fresh = buffer(teacher, observations)
    list(stored.fill(0))
    list(fresh.fill(0))
    assert (stored.block_size, stored.num_blocks) == (4, 1)
    assert torch.equal(stored._blocks[0].endpoint, fresh._blocks[0].endpoint)


def test_a_student_with_an_encoder_of_its_own_reads_the_observations(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, context=True)

    def encode(prepared: dict[str, Any]) -> Any:
        return teacher.encode(prepared).map(lambda tensor: tensor * 2)

    batches = []
    for source in (None, opened(folder, teacher)):
        couplings = buffer(teacher, observations, source=source, student_encode=encode)
        list(couplings.fill(0))
        batches.append(couplings.batch(0))
    for batch in batches:
        assert batch.context is not None
    assert torch.equal(batches[0].context.tensors()[0], batches[1].context.tensors()[0])
    trains = buffer(
        teacher, observations, source=opened(folder, teacher), student_encode=encode, student_context=False
    )
    list(trains.fill(0))
    assert trains.batch(0).context is None
    assert trains.batch(0).batch is not None


# ---- Damage ----------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGES = [
    (Path.unlink, r"block-000002.safetensors is missing: 5 of 6 blocks are made"),
    (cut, r"block-000002.safetensors is cut or damaged"),
    (flip, r"block-000002.safetensors is damaged \(its checksum"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("early", [True, False])
def test_a_damaged_block_is_named(
    tmp_path: Path,
    teacher: GaussianFlowPolicy,
    observations: Observations,
    damage: Any,
    message: str,
    early: bool,
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    damage(folder / shard_name(2))
    resident = buffer(teacher, observations, source=opened(folder))
    if not early:
        message = message.partition(":")[0]
    with pytest.raises(UserError, match=message) as caught:
        opened(folder).check() if early else list(resident.fill(4))
    assert str(caught.value).startswith(f"couplings.path={folder}: ")
    assert str(caught.value).endswith(f"--config_path={folder / 'manifest.json'}")
    # Of which the whole ones may be used.
    replace(opened(folder), num_blocks=2).check()


def test_of_a_large_store_sizes_alone_are_looked_at_before_training(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    flip(folder / shard_name(3))
    opened(folder).check(max_bytes=10)
    with pytest.raises(UserError, match="block-000003"):
        opened(folder).check()
    cut(folder / shard_name(3))
    with pytest.raises(UserError, match="is cut or damaged"):
        opened(folder).check(max_bytes=10)


def test_a_block_of_other_observations_is_refused(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    with pytest.raises(UserError, match=r"block-000000.safetensors was made on other observations"):
        list(buffer(teacher, make_observations(10), source=opened(folder)).fill(0))


def test_contexts_of_another_form_are_refused(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, context=True)
    store = opened(folder, teacher)
    assert store.template is not None
    half = replace(store, template=store.template.map(lambda tensor: tensor.half()))
    with pytest.raises(UserError, match="holds contexts of another form"):
        half.read(0, buffer(teacher, observations).observation_indices(0))


def test_a_store_of_the_first_layout_is_read(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    """Its blocks carry no checksum: the manifest holds those of the files."""
    folder = make(tmp_path / "store", teacher, observations)
    expected = [read_block(folder, number, read_manifest(folder)) for number in range(6)]
    shards = {}
    for number, tensors in enumerate(expected):
        data = save(tensors)
        (folder / shard_name(number)).write_bytes(data)
        shards[shard_name(number)] = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    told = json.loads((folder / "manifest.json").read_text()) | {"layout": 1, "shards": shards}
    (folder / "manifest.json").write_text(json.dumps(told))
    opened(folder).check()
    for number, tensors in enumerate(expected):
        read = read_block(folder, number, read_manifest(folder))
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    flip(folder / shard_name(2))
    with pytest.raises(UserError, match=r"block-000002.safetensors is damaged"):
        opened(folder).check()
    # Made anew, it carries its own, as all others would.
    (folder / shard_name(2)).unlink()
    make(folder, teacher, observations)
    opened(folder).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is cut or no manifest"),
        (b"[]", "is cut or no manifest"),
        (b'{"layout": 1}', "is cut or no manifest"),
        (b'{"layout": 99}', r"by a newer chordflow \(layout 99, this one reads 2\)"),
        (None, "there is no coupling store"),
    ],
)
def test_what_is_no_manifest(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=f"^couplings.path={tmp_path}/absent: there is no folder"):
        read_manifest(tmp_path / "absent")


@given(st.text(), st.integers(1, 10**7))
def test_a_manifest_reads_what_it_wrote(text: str, num_blocks: int) -> None:
    manifest = Manifest(settings(dataset={"repo_id": text}), ABOUT | {"versions": {text: "é"}}, num_blocks)
    assert Manifest.from_json(manifest.to_json(), Path("m")) == manifest


@pytest.mark.parametrize(
    "broken",
    [
        Manifest(settings(), {"versions": {}}, 1),
        Manifest(settings(), {"settings": {"teacher": {}}}, 1),
        Manifest({"seed": 1, "store_context": False}, ABOUT, 1),
        Manifest(settings(buffer=3), ABOUT, 1),
        Manifest(settings(), ABOUT, 0),
    ],
)
def test_a_manifest_that_lacks_what_is_read_of_it_is_refused(broken: Manifest) -> None:
    with pytest.raises(UserError, match=r"is cut or no manifest of couplings.*; restore it"):
        Manifest.from_json(broken.to_json(), Path("m"))


@pytest.mark.parametrize(("name", "value"), [("coupling", 5), ("rename_map", None), ("seed", "one")])
def test_the_part_of_a_manifest_that_is_broken_is_named(name: str, value: object) -> None:
    broken = Manifest(settings(), {"settings": {**ABOUT["settings"], name: value}}, 1)
    with pytest.raises(UserError, match=f"no manifest of couplings .*about.settings.{name} is "):
        Manifest.from_json(broken.to_json(), Path("m"))


# ---- Writing ---------------------------------------------------------------------------------------------

SOLVED = Solved(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(
    ("changes", "num_blocks", "message"),
    [
        ({"teacher": {"hash": "b"}}, 2, r"made with teacher.hash=a, but now it is b"),
        ({"seed": 8}, 2, r"made with seed=7, but now it is 8"),
        ({"store_context": True}, 2, r"made with store_context=False, but now it is True"),
        ({"more": 1}, 2, r"made with more=None, but now it is 1"),
        ({}, 3, r"num_observations=12: the store in .* is made for 8"),
    ],
)
def test_a_store_of_other_settings_is_not_gone_on_with(
    tmp_path: Path, changes: dict[str, Any], num_blocks: int, message: str
) -> None:
    begin(tmp_path, Manifest(settings(), ABOUT, 2))
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=message):
        begin(tmp_path, Manifest(settings(**changes), ABOUT, num_blocks))
    assert (tmp_path / "manifest.json").read_bytes() == before
    begin(tmp_path, Manifest(settings(), {}, 2))
    assert read_manifest(tmp_path).about == ABOUT


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\) and no coupling store"):
        begin(tmp_path, Manifest(settings(), ABOUT, 2))


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, Manifest(settings(), ABOUT, 3))
    write_block(tmp_path, 0, [0], SOLVED, None)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # As a kill in the middle of writing leaves it.
    (tmp_path / f".{shard_name(1)}.tmp").write_bytes(b"half of it")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(
            UserError, match=r"block-000001.* cannot be written \(No space left on device\); 1 of 3 b"
        ):
            write_block(tmp_path, 1, [0], SOLVED, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard_name(0), "manifest.json"]


def test_one_job_holds_a_store_and_leaves_none_without_blocks(tmp_path: Path) -> None:
    with one_job(tmp_path):
        begin(tmp_path, Manifest(settings(), ABOUT, 3))
        with pytest.raises(UserError, match="another process is making this store"), one_job(tmp_path):
            pass
        assert (tmp_path / "manifest.json").exists()
    assert not list(tmp_path.iterdir())
    with one_job(tmp_path):
        begin(tmp_path, Manifest(settings(), ABOUT, 3))
        write_block(tmp_path, 1, [0], SOLVED, None)
    assert finished(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, shard_name(1), "manifest.json"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=r"^output_dir=.*: .lock cannot be written"), one_job(tmp_path):
        pass
