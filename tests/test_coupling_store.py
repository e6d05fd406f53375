"""The coupling store: bit for bit what the teacher would give now, whole blocks only, damage told by name."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations, Share
from chordflow.couplings import store_writer as writing
from chordflow.couplings.blocks import Solved
from chordflow.couplings.store import (
    FOR_TRAINING,
    CouplingStore,
    Manifest,
    Shard,
    read_manifest,
    shard_name,
)
from chordflow.couplings.store_writer import StoreWriter
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import FlowPolicy, Role, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.times import UShapedTimes
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
    writer = StoreWriter(folder, settings(store_context=context), ABOUT, num_blocks)
    makes = buffer(teacher, observations).maker
    for number in writer.claims():
        indices = makes.observation_indices(number)
        items = next(observations.batches(indices, len(indices)))
        encoded = teacher.encode(teacher.preprocess(items))
        writer.write(number, indices, makes.solve(number, encoded), encoded if context else None)
    writer.close()
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
        assert stored.num_couplings == 48
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
    assert stored.first_block(4) == 2
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
    (Path.unlink, r"block-000002.safetensors is missing"),
    (cut, r"block-000002.safetensors is half-written \([\d,]+ of [\d,]+ bytes\)"),
    (flip, r"block-000002.safetensors is damaged \(its checksum"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
@pytest.mark.parametrize("early", [True, False])
def test_a_damaged_block_is_named_and_alone_made_anew(
    tmp_path: Path,
    teacher: GaussianFlowPolicy,
    observations: Observations,
    damage: Any,
    message: str,
    early: bool,
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    damage(folder / shard_name(2))
    resident = buffer(teacher, observations, source=opened(folder))
    with pytest.raises(UserError, match=message) as caught:
        opened(folder).check() if early else list(resident.fill(4))
    assert str(caught.value).startswith(f"couplings.path={folder}: ")
    assert str(caught.value).endswith(f"--config_path={folder / 'manifest.json'}")
    writer = StoreWriter(folder, settings(), ABOUT, 6)
    assert [number for number, _ in writer.drop_damaged()] == [2]
    writer.close()
    make(folder, teacher, observations)
    opened(folder).check()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    rewritten = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert rewritten == {"manifest.json", shard_name(2)}


def test_of_a_large_store_sizes_alone_are_looked_at_before_training(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations)
    flip(folder / shard_name(3))
    opened(folder).check(max_bytes=10)
    with pytest.raises(UserError, match="block-000003"):
        opened(folder).check()
    cut(folder / shard_name(3))
    with pytest.raises(UserError, match="half-written"):
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
        half.read(0, buffer(teacher, observations).maker.observation_indices(0))


def test_an_unfinished_store_is_not_trained_from(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=4)
    # Asked for more, it is what it was until one of them is written.
    writer = StoreWriter(folder, settings(), ABOUT, 6)
    assert read_manifest(folder).num_blocks == 4
    assert writer.missing() == [4, 5]
    assert writer.go_on_command.endswith("manifest.json --num_observations=24")
    writer.write(next(writer.claims()), [0], SOLVED, None)
    writer.close()
    with pytest.raises(
        UserError, match=r"5 of 6 blocks are made; make the others with: chordflow couple --resume"
    ):
        opened(folder).check()
    # Of which fewer may be asked for.
    replace(opened(folder), num_blocks=4).check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is cut or no manifest"),
        (b"[]", "is cut or no manifest"),
        (b'{"layout": 1}', "is cut or no manifest"),
        (b'{"layout": 99}', r"by a newer chordflow \(layout 99, this one reads 1\)"),
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


@given(
    st.dictionaries(
        st.integers(0, 10**7),
        st.builds(Shard, st.text("0123456789abcdef"), st.integers(0, 2**50)),
        max_size=5,
    ),
    st.integers(1, 10**7),
)
def test_a_manifest_reads_what_it_wrote(shards: dict[int, Shard], num_blocks: int) -> None:
    about = {**ABOUT, "versions": {"torch": "é"}}
    manifest = Manifest(settings(dataset={"repo_id": "é/x"}), about, num_blocks, shards)
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
    with pytest.raises(UserError, match=f"no manifest of couplings .about.settings.{name} is "):
        Manifest.from_json(broken.to_json(), Path("m"))


# ---- Writing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": {"hash": "b"}}, r"made with teacher.hash=a, but now it is b"),
        ({"seed": 8}, r"made with seed=7, but now it is 8"),
        ({"store_context": True}, r"made with store_context=False, but now it is True"),
        ({"more": 1}, r"made with more=None, but now it is 1"),
    ],
)
def test_a_store_of_other_settings_is_not_gone_on_with(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    StoreWriter(tmp_path, settings(), ABOUT, 2).close()
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=message):
        StoreWriter(tmp_path, settings(**changes), ABOUT, 3)
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds other files \(notes.txt\) and no coupling store"):
        StoreWriter(tmp_path, settings(), ABOUT, 2)


def test_a_larger_store_keeps_what_it_has(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=2)
    before = {n: (folder / shard_name(n)).stat().st_mtime_ns for n in range(2)}
    make(folder, teacher, observations, num_blocks=5)
    make(folder, teacher, observations, num_blocks=3)
    assert read_manifest(folder).num_blocks == 5
    assert not read_manifest(folder).missing
    assert {n: (folder / shard_name(n)).stat().st_mtime_ns for n in range(2)} == before
    whole = make(tmp_path / "whole", teacher, observations, num_blocks=5)
    for number in range(5):
        assert (folder / shard_name(number)).read_bytes() == (whole / shard_name(number)).read_bytes()


def test_a_plan_that_was_too_large_is_taken_back(
    tmp_path: Path, teacher: GaussianFlowPolicy, observations: Observations
) -> None:
    folder = make(tmp_path / "store", teacher, observations, num_blocks=2)
    writer = StoreWriter(folder, settings(), ABOUT, 100_000)
    writer.write(next(writer.claims()), [0], SOLVED, None)
    writer.close()
    assert read_manifest(folder).num_blocks == 100_000
    # Nobody has asked: it keeps its own number.
    StoreWriter(folder, settings(), ABOUT, 1, asked=False).close()
    assert read_manifest(folder).num_blocks == 100_000
    # Blocks that are made stay.
    writer = StoreWriter(folder, settings(), ABOUT, 1)
    assert writer.num_blocks == read_manifest(folder).num_blocks == 3
    writer.close()


def test_blocks_that_another_process_makes_are_not_given_up(
    claimed: tuple[Path, multiprocessing.process.BaseProcess],
) -> None:
    folder, process = claimed
    writer = StoreWriter(folder, settings(), ABOUT, 1)
    assert writer.num_blocks == read_manifest(folder).num_blocks == 4
    writer.close()
    writer = StoreWriter(folder, settings(), ABOUT, 2)
    assert writer.num_blocks == read_manifest(folder).num_blocks == 2
    writer.close()
    # Locks of blocks that were given up are not left behind.
    writer = StoreWriter(folder, settings(), ABOUT, 4)
    assert list(writer.claims()) == [2, 3]
    writer.close()
    assert process.is_alive()


SOLVED = Solved(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4))


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(tmp_path, settings(), ABOUT, 3)
    claims = writer.claims()
    writer.write(next(claims), [0], SOLVED, None)
    opened_by = Path.open

    def full(self: Path, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        file = opened_by(self, mode, *arguments, **named)
        if "block-000001" in self.name and mode == "wb":
            file.write(b"half of it")
            file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return file

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(
            UserError, match=r"block-000001.* cannot be written \(No space left on device\); 1 of 3 b"
        ):
            writer.write(next(claims), [0], SOLVED, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", shard_name(0), "manifest.json"]
    writer.close()
    again = StoreWriter(tmp_path, settings(), ABOUT, 3)
    assert list(again.claims()) == [1, 2]
    again.close()


def claim(folder: Path, count: int, pipe: Any) -> None:
    """In a process of its own: claims some blocks, says which, and waits to be killed."""
    writer = StoreWriter(folder, settings(), ABOUT, 4)
    claims = writer.claims()
    pipe.send([next(claims) for _ in range(count)])
    time.sleep(60)


@pytest.fixture
def claimed(tmp_path: Path) -> Iterator[tuple[Path, multiprocessing.process.BaseProcess]]:
    """A store of four blocks of which another process has claimed two."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=claim, args=(tmp_path, 2, theirs))
    process.start()
    assert ours.poll(60)
    assert ours.recv() == [0, 1]
    yield tmp_path, process
    process.kill()
    process.join()


def test_a_block_is_claimed_by_one_process_and_a_killed_ones_is_taken_over(
    claimed: tuple[Path, multiprocessing.process.BaseProcess],
) -> None:
    folder, process = claimed
    # Half of a block, as a kill in the middle of writing leaves it.
    (folder / f".{shard_name(0)}.tmp").write_bytes(b"half")
    writer = StoreWriter(folder, settings(), ABOUT, 4)
    assert list(writer.claims()) == [2, 3]
    assert list(writer.claims()) == []
    writer.write(3, [0], SOLVED, None)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(writer.claims()) == [0, 1]
    for number in (0, 1, 2):
        writer.write(number, [0], SOLVED, None)
    assert not writer.refresh().missing
    assert not [path.name for path in folder.iterdir() if path.suffix == ".tmp"]
    writer.close()


def test_a_claim_of_a_block_that_was_finished_meanwhile_is_given_back(
    claimed: tuple[Path, multiprocessing.process.BaseProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = claimed
    writer = StoreWriter(folder, settings(), ABOUT, 4)
    claims = writer.claims()
    assert next(claims) == 2
    # As another process would, between our look at the manifest and our claim.
    manifest = read_manifest(folder)
    manifest.shards[3] = Shard("0", 0)
    (folder / "manifest.json").write_bytes(manifest.to_json())
    assert list(claims) == []
    assert 4 not in {number + 1 for number in writer._claimed}
    writer.close()


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def none(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with pytest.raises(UserError, match="this file system has no locks"):
        StoreWriter(tmp_path, settings(), ABOUT, 4)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(writing.os, "open", denied)
    with pytest.raises(UserError, match=r"^output_dir=.*: .lock cannot be written \(Permission denied\)"):
        StoreWriter(tmp_path, settings(), ABOUT, 4)
