"""The coupling store: bit for bit what the teacher would give now, whole blocks only, damage told by name."""

import copy
import errno
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from chordflow.couplings import BufferConfig, CouplingBuffer, CouplingConfig, Observations, Share
from chordflow.couplings.blocks import Solved
from chordflow.couplings.store import (
    FOR_TRAINING,
    LOCK,
    CouplingStore,
    Manifest,
    begin,
    one_job,
    read_block,
    read_manifest,
    shard_name,
    write_block,
)
from chordflow.errors import UserError
from chordflow.flow.seeds import generator
from chordflow.policies import Role, VelocityModule
from chordflow.training.methods import ReflowMethodConfig
from chordflow.training.objective import UShapedTimes
from gaussian_policy import GaussianFlowPolicy
from gaussian_setup import AffineStudent, make_observations, make_policy

CONFIG = BufferConfig(num_observations=8, noises_per_observation=6, uses_per_coupling=1, block_size=4)
SEED = 7
ABOUT: dict[str, Any] = {"settings": {name: SEED if name == "seed" else {} for name in FOR_TRAINING}}


def settings(**changes: Any) -> dict[str, Any]:
    own = {"buffer": {"block_size": 4}, "seed": SEED, "store_context": False}
    return {"teacher": {"hash": "a"}, **own, **changes}


@dataclass
class Bed:
    """A Gaussian teacher with observations, and a folder for stores of its couplings."""

    folder: Path
    teacher: GaussianFlowPolicy = field(default_factory=lambda: make_policy(num_modes=2))
    observations: Observations = field(default_factory=lambda: make_observations(9))

    def buffer(self, **options: Any) -> CouplingBuffer:
        given = {"seed": SEED, "batch_size": 16, "config": CONFIG, **options}
        coupling, config = CouplingConfig(num_steps=3), given.pop("config")
        return CouplingBuffer(
            self.teacher, given.pop("observations", self.observations), coupling, config, **given
        )

    def filled(self, step: int = 0, **options: Any) -> CouplingBuffer:
        buffer = self.buffer(**options)
        list(buffer.fill(step))
        return buffer

    def make(self, num_blocks: int = 6, *, context: bool = False) -> Path:
        """A store, or what it lacks."""
        self.folder.mkdir(exist_ok=True)
        begin(self.folder, Manifest(settings(store_context=context), ABOUT, num_blocks))
        maker = self.buffer()
        for number in range(num_blocks):
            if not (self.folder / shard_name(number)).exists():
                indices = maker.observation_indices(number)
                items = next(self.observations.batches(indices, len(indices)))
                encoded = self.teacher.encode(self.teacher.preprocess(items))
                solved, _ = maker.solve(number, encoded)
                write_block(self.folder, number, indices, solved, encoded if context else None)
        return self.folder

    def opened(self, *, context: bool = False) -> CouplingStore:
        """The store to train from, with its contexts or without."""
        manifest = read_manifest(self.folder)
        template = self.teacher.encode({"observation.state": torch.zeros(1, 2)}) if context else None
        return CouplingStore(self.folder, manifest, manifest.num_blocks, template)


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path / "store")


def losses(couplings: CouplingBuffer, steps: int) -> list[float]:
    """Of a student that learns meanwhile, so that every step's gradients matter to the next."""
    torch.manual_seed(0)
    student = AffineStudent(copy.deepcopy(couplings.teacher.config))
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


@pytest.mark.parametrize(("config", "context", "last"), [
    # Four blocks were replaced on the way.
    (CONFIG, False, range(4, 6)),
    (CONFIG, True, range(4, 6)),
    # From one block to three.
    (replace(CONFIG, num_observations=16, uses_per_coupling=4, start_observations=1), False, range(3)),
])  # fmt: skip
def test_training_from_a_store_is_training_on_the_fly(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, config: BufferConfig, context: bool, last: range
) -> None:
    bed.make(context=context)
    expected, source = losses(bed.buffer(config=config), 7), bed.opened(context=context)

    def refuse(*arguments: object) -> None:
        raise AssertionError("the teacher was asked for endpoints")

    monkeypatch.setattr(bed.teacher, "velocity", refuse)
    if context:
        monkeypatch.setattr(bed.teacher, "encode", refuse)
        monkeypatch.setattr(bed.observations, "batches", refuse)
    stored = bed.buffer(source=source, config=config)
    assert losses(stored, 7) == expected
    assert stored.held_blocks(6) == list(last)
    assert len(set(expected)) == 7


def test_another_seed_draws_other_batches_of_the_same_couplings(bed: Bed) -> None:
    bed.make()
    once = replace(CONFIG, uses_per_coupling=None)
    first, other = (bed.filled(source=bed.opened(), seed=seed, config=once) for seed in (SEED, 8))
    assert first.num_blocks * first.per_block == 48
    for number in range(2):
        assert torch.equal(first._blocks[number].noise, other._blocks[number].noise)
    assert not torch.equal(first.batch(0).noise, other.batch(0).noise)


@pytest.mark.parametrize("processes", [1, 2])
def test_past_its_end_a_store_begins_again(bed: Bed, processes: int) -> None:
    # Of five blocks, so that of two processes each then holds what was the other's.
    bed.make(num_blocks=5)
    fresh = list(bed.buffer().make(range(5)))
    for index in range(processes):
        stored = bed.buffer(source=bed.opened(), share=Share(index, processes), batch_size=16 // processes)
        for step in range(9):
            list(stored.fill(step))
            for number, block in stored._blocks.items():
                assert torch.equal(block.noise, fresh[number % 5].noise)
                assert torch.equal(block.endpoint, fresh[number % 5].endpoint)
        assert stored.held_blocks(8)[-1] >= 5


def test_of_a_store_whole_blocks_are_taken(bed: Bed) -> None:
    bed.make(num_blocks=1)
    stored = bed.filled(source=bed.opened(), config=replace(CONFIG, num_observations=3), batch_size=8)
    assert (stored.block_size, stored.num_blocks) == (4, 1)
    assert torch.equal(stored._blocks[0].endpoint, bed.filled()._blocks[0].endpoint)


def test_a_student_with_an_encoder_of_its_own_reads_the_observations(bed: Bed) -> None:
    bed.make(context=True)

    def encode(prepared: dict[str, Any]) -> Any:
        return bed.teacher.encode(prepared).map(lambda tensor: tensor * 2)

    store = bed.opened(context=True)
    found = [bed.filled(source=source, student_encode=encode).batch(0).context for source in (None, store)]
    assert torch.equal(*(context.tensors()[0] for context in found))
    trains = bed.filled(source=store, student_encode=encode, student_context=False).batch(0)
    assert trains.context is None
    assert trains.batch is not None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("damage", "message"), [
    (Path.unlink, r"block-000002.safetensors is missing: 5 of 6 blocks are made"),
    (cut, r"block-000002.safetensors is cut or damaged"),
    (flip, r"block-000002.safetensors is damaged \(its checksum"),
])  # fmt: skip
@pytest.mark.parametrize("early", [True, False])
def test_a_damaged_block_is_named(bed: Bed, damage: Any, message: str, early: bool) -> None:
    folder = bed.make()
    damage(folder / shard_name(2))
    resident = bed.buffer(source=bed.opened())
    with pytest.raises(UserError, match=message if early else message.partition(":")[0]) as caught:
        bed.opened().check() if early else list(resident.fill(4))
    assert str(caught.value).startswith(f"couplings.path={folder}: ")
    assert str(caught.value).endswith(f"--config_path={folder / 'manifest.json'}")
    # Of which the whole ones may be used.
    replace(bed.opened(), num_blocks=2).check()


def test_of_a_large_store_sizes_alone_are_looked_at_before_training(bed: Bed) -> None:
    third = bed.make() / shard_name(3)
    flip(third)
    bed.opened().check(max_bytes=10)
    with pytest.raises(UserError, match="block-000003"):
        bed.opened().check()
    cut(third)
    with pytest.raises(UserError, match="is cut or damaged"):
        bed.opened().check(max_bytes=10)


def test_a_block_of_other_observations_or_contexts_of_another_form_is_refused(bed: Bed) -> None:
    bed.make(context=True)
    with pytest.raises(UserError, match=r"block-000000.safetensors was made on other observations"):
        bed.filled(observations=make_observations(10), source=bed.opened())
    store = bed.opened(context=True)
    half = replace(store, template=store.template.map(lambda tensor: tensor.half()))
    with pytest.raises(UserError, match="holds contexts of another form"):
        half.read(0, bed.buffer().observation_indices(0))


def test_a_store_of_the_first_layout_is_read(bed: Bed) -> None:
    """Its blocks carry no checksum: the manifest holds those of the files."""
    folder = bed.make()
    manifest = folder / "manifest.json"
    expected = [read_block(folder, number, read_manifest(folder)) for number in range(6)]
    shards = {}
    for number, tensors in enumerate(expected):
        data = save(tensors)
        (folder / shard_name(number)).write_bytes(data)
        shards[shard_name(number)] = {"sha256": hashlib.sha256(data).hexdigest(), "num_bytes": len(data)}
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"layout": 1, "shards": shards}))
    bed.opened().check()
    for number, tensors in enumerate(expected):
        read = read_block(folder, number, read_manifest(folder))
        assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    flip(folder / shard_name(2))
    with pytest.raises(UserError, match=r"block-000002.safetensors is damaged"):
        bed.opened().check()


@pytest.mark.parametrize(("content", "message"), [
    (b"{", "is cut or no manifest"),
    (b'{"layout": 99}', r"by a newer chordflow \(layout 99, this one reads 2\)"),
    (None, "there is no coupling store"),
])  # fmt: skip
def test_what_is_no_manifest(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match=f"^couplings.path={tmp_path}/absent: there is no folder"):
        read_manifest(tmp_path / "absent")


@pytest.mark.parametrize("broken", [
    Manifest(settings(), {"settings": {**ABOUT["settings"], "seed": "one"}}, 1),
    Manifest(settings(), {"versions": {}}, 1),
    Manifest({"seed": 1, "store_context": False}, ABOUT, 1),
    Manifest(settings(), ABOUT, 0),
])  # fmt: skip
def test_a_manifest_that_lacks_what_is_read_of_it_is_refused(broken: Manifest) -> None:
    with pytest.raises(UserError, match=r"is cut or no manifest of couplings.*; restore it"):
        Manifest.from_json(broken.to_json(), Path("m"))


SOLVED = Solved(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4))


@pytest.mark.parametrize(("changes", "num_blocks", "message"), [
    ({"teacher": {"hash": "b"}}, 2, r"made with teacher.hash=a, but now it is b"),
    ({"more": 1}, 2, r"made with more=None, but now it is 1"),
    ({}, 3, r"num_observations=12: the store in .* is made for 8"),
])  # fmt: skip
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


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin(tmp_path, Manifest(settings(), ABOUT, 3))
    write_block(tmp_path, 0, [0], SOLVED, None)

    def full(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # As a kill in the middle of writing leaves it.
    (tmp_path / f".{shard_name(1)}.tmp").write_bytes(b"half of it")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        words = r"block-000001.* cannot be written \(No space left on device\); 1 of 3 b"
        with pytest.raises(UserError, match=words):
            write_block(tmp_path, 1, [0], SOLVED, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [shard_name(0), "manifest.json"]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(UserError, match=r"^output_dir=.*: .lock cannot be written"), one_job(tmp_path):
        pass
