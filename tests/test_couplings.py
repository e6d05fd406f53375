"""Couplings: whole dimensions, counted evaluations, blocks as pure functions of seed and number."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from chordflow.couplings import (
    BufferConfig,
    CouplingBuffer,
    CouplingConfig,
    DatasetConfig,
    Split,
    memory,
    open_split,
)
from chordflow.couplings.memory import container_limits, free_memory, total_memory
from chordflow.errors import UserError
from chordflow.flow.seeds import derive_seed, generator
from chordflow.flow.solvers import get_solver
from chordflow.policies.smolvla import SmolVLAFlowPolicy

SMALL = BufferConfig(num_observations=12, noises_per_observation=2, uses_per_coupling=1, block_size=4)


@pytest.fixture
def split(tiny_policy: SmolVLAFlowPolicy, dataset_root: Path) -> Split:
    return open_split(DatasetConfig("test/tiny", root=str(dataset_root), eval_split=0.4), tiny_policy)


def make_buffer(policy: SmolVLAFlowPolicy, split: Split, **options: Any) -> CouplingBuffer:
    coupling, config = options.pop("coupling", CouplingConfig(num_steps=2)), options.pop("config", SMALL)
    return CouplingBuffer(policy, split.train, coupling, config, **{"seed": 3, "batch_size": 8, **options})


def filled(policy: SmolVLAFlowPolicy, split: Split, step: int = 0, **options: Any) -> CouplingBuffer:
    buffer = make_buffer(policy, split, **options)
    list(buffer.fill(step))
    return buffer


def test_seeds_tell_purposes_and_types_apart() -> None:
    seeds = {derive_seed(0, "noise", 1), derive_seed(0, "noise", 2), derive_seed(0, "noise", "1"),
             derive_seed(0, "order", 1), derive_seed(1, "noise", 1), derive_seed(0, "noise1")}  # fmt: skip
    assert len(seeds) == 6
    assert derive_seed(5, "a") == derive_seed(5, "a") < 2**63


def test_the_solver_and_the_grid_are_options_of_couplings(
    tiny_policy: SmolVLAFlowPolicy, split: Split
) -> None:
    context = tiny_policy.encode(tiny_policy.preprocess(next(split.train.batches([0, 1], 2))))
    noise = tiny_policy.sample_noise(2, generator(0))
    found = CouplingConfig("adams_bashforth", 4, grid_power=2.0).sampler(tiny_policy)(context, noise)
    with torch.no_grad():
        expected = get_solver("adams_bashforth").integrate(
            lambda x, t: tiny_policy.velocity(x, t, context), noise, 4, grid_power=2.0
        )
    assert torch.equal(found, expected)
    assert not torch.equal(found, CouplingConfig(num_steps=4).sampler(tiny_policy)(context, noise))


def test_couplings_keep_all_padded_dimensions(tiny_policy: SmolVLAFlowPolicy, split: Split) -> None:
    batch = filled(tiny_policy, split, coupling=CouplingConfig("euler", 2, grid_power=1.0)).batch(0)
    assert batch.noise.shape == batch.endpoint.shape == (8, *tiny_policy.chunk.shape)
    padded = slice(tiny_policy.chunk.action_dim, None)
    assert batch.noise[..., padded].std() > 0.5
    assert batch.endpoint[..., padded].abs().min() > 0
    # The policy's own Euler steps carry each noise to the same endpoint.
    x = batch.noise
    with torch.no_grad():
        for step in range(2):
            x = x - 0.5 * tiny_policy.velocity(x, torch.full((8,), 1 - 0.5 * step), batch.context)
    torch.testing.assert_close(x, batch.endpoint, rtol=1e-4, atol=1e-5)


def test_every_observation_is_encoded_once(
    tiny_policy: SmolVLAFlowPolicy, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, encode = [], tiny_policy.encode
    monkeypatch.setattr(
        tiny_policy, "encode", lambda b: encoded.append(len(b["observation.state"])) or encode(b)
    )
    buffer = make_buffer(tiny_policy, split, config=BufferConfig(12, 2, None, 4))
    for step in range(20):
        list(buffer.fill(step))
        buffer.batch(step)
    assert encoded == [4, 4, 4]


def test_a_buffer_at_any_step_is_a_pure_function_of_seed_and_step(
    tiny_policy: SmolVLAFlowPolicy, split: Split
) -> None:
    walked = make_buffer(tiny_policy, split)
    for step in range(5):
        list(walked.fill(step))
    batch, again = walked.batch(4), filled(tiny_policy, split, 4, num_workers=2).batch(4)
    assert walked.window.held(4).start == 4
    pairs = zip(batch.context.tensors(), again.context.tensors(), strict=True)
    for a, b in [(batch.noise, again.noise), (batch.endpoint, again.endpoint), *pairs]:
        assert torch.equal(a, b)
    assert not torch.equal(filled(tiny_policy, split, 4, seed=4).batch(4).noise, again.noise)


def test_every_block_has_noises_of_its_own_and_every_step_draws_anew(
    tiny_policy: SmolVLAFlowPolicy, split: Split
) -> None:
    buffer = filled(tiny_policy, split, config=replace(SMALL, uses_per_coupling=None))
    assert not torch.equal(buffer.noise(0), buffer.noise(1))
    assert not torch.equal(buffer.batch(0).noise, buffer.batch(1).noise)


def test_blocks_walk_through_all_observations(tiny_policy: SmolVLAFlowPolicy, split: Split) -> None:
    buffer = make_buffer(tiny_policy, split)
    count = len(split.train)
    walk = [index for block in range(2 * count) for index in buffer.observation_indices(block)]
    for epoch in range(4):
        assert sorted(walk[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert walk[:count] != walk[count : 2 * count]


def test_an_own_encoder_is_used_where_the_prefix_is_not_shared(
    tiny_policy: SmolVLAFlowPolicy, split: Split
) -> None:
    def nothing(batch: Any) -> Any:
        return tiny_policy.encode(batch).map(lambda x: x * 0)

    context = filled(tiny_policy, split, student_encode=nothing).batch(0).context
    assert all((tensor == 0).all() for tensor in context.tensors())
    trains = filled(tiny_policy, split, student_encode=tiny_policy.encode, student_context=False)
    batch, plain = trains.batch(0), filled(tiny_policy, split).batch(0)
    assert batch.context is None
    with torch.no_grad():
        own = tiny_policy.velocity(batch.noise, torch.ones(8), tiny_policy.encode(batch.batch))
        shared = tiny_policy.velocity(batch.noise, torch.ones(8), plain.context)
    torch.testing.assert_close(own, shared, rtol=1e-4, atol=1e-5)


def test_a_worker_that_dies_is_told_of(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first may die while the second is started.
    monkeypatch.setattr(LeRobotDataset, "__getitem__", lambda self, index: os._exit(1))
    with pytest.raises(UserError, match=r"^num_workers=2: a process that reads observations died"):
        list(split.train.batches(range(4), 2, 2))


def test_a_single_episode_cannot_be_split(tiny_policy: SmolVLAFlowPolicy, dataset_root: Path) -> None:
    with pytest.raises(UserError, match="cannot be split"):
        open_split(DatasetConfig("test/tiny", root=str(dataset_root), episodes=[0]), tiny_policy)


def test_more_noises_go_where_endpoints_spread(tiny_policy: SmolVLAFlowPolicy, split: Split) -> None:
    config = BufferConfig(num_observations=8, noises_per_observation=16, block_size=8, adaptive_share=0.5)
    buffer = filled(tiny_policy, split, config=config)
    block = buffer._blocks[0]
    counts = torch.bincount(block.observation, minlength=8)
    assert config.even_noises == 8
    assert (block.observation[:64] == torch.arange(8).repeat_interleave(8)).all()
    assert 8 <= counts.min() < counts.max()
    assert counts.sum() == 8 * 16
    spread = buffer._spread(block.endpoint[:64].unflatten(0, (8, 8)))
    expected = 8 + 64 * spread / spread.sum()
    assert (counts - expected).abs().max() < 4 * expected.sqrt().max()
    # Every coupling belongs to the observation that it says.
    again = buffer.coupling.sampler(tiny_policy)(block.context.index(block.observation), block.noise)
    torch.testing.assert_close(again, block.endpoint, rtol=1e-4, atol=1e-5)
    plain = filled(tiny_policy, split, config=BufferConfig(8, 16, 1, 8, adaptive_share=0.0))
    assert (torch.bincount(plain._blocks[0].observation) == 16).all()


@pytest.mark.parametrize(
    ("noises", "share", "even"), [(4, 0.5, 2), (2, 0.5, 2), (1, 1.0, 1), (4, 0.1, 4), (2, 0.0, 2)]
)
def test_every_observation_gets_two_noises_or_all_that_there_are(
    noises: int, share: float, even: int
) -> None:
    config = BufferConfig(noises_per_observation=noises, adaptive_share=share)
    assert config.even_noises == even
    assert bool(config.sharing) == (share > 0)


def test_spread_weights_the_observations(tiny_policy: SmolVLAFlowPolicy, split: Split) -> None:
    buffer = make_buffer(tiny_policy, split)
    ends = torch.zeros(3, 4, *tiny_policy.chunk.shape)
    ends[1, :2, :, :2], ends[1, 2:, :, :2] = 1.0, -1.0
    ends[2, :, :, 2:] = torch.randn(4, 8, 4)  # padded dimensions do not count
    spread = buffer._spread(ends)
    assert spread.argmax() == 1
    assert spread[0] == spread[2] == 1e-12
    torch.testing.assert_close(buffer._spread(2 * ends)[1], 2 * spread[1])


def test_a_buffer_that_does_not_fit_is_refused(
    tiny_policy: SmolVLAFlowPolicy, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BufferConfig(32, 2, 1, 4, start_observations=4)
    block = filled(tiny_policy, split, config=config)._blocks[0]

    def refused(blocks: float, **options: Any) -> str:
        available = int(blocks * block.num_bytes / 0.9)
        free = psutil.virtual_memory()._replace(available=available)
        buffer = make_buffer(tiny_policy, split, config=config, **options)
        with monkeypatch.context() as patched:
            patched.setattr(psutil, "virtual_memory", lambda: free)
            with pytest.raises(UserError) as caught:
                next(buffer.fill(0))
        return str(caught.value)

    # The first block is there already; two more fit.
    said = refused(2.5)
    share = f"{block.coupling_bytes / block.num_bytes:.0%}"
    assert said.startswith("buffer.num_observations=32 takes 0.0 GiB (")
    assert (
        f" an observation, {share} of it 2 noises with their endpoints), but 0.0 GiB are free on cpu" in said
    )
    assert said.endswith("; give --buffer.num_observations=12.")
    # A step of 24 couplings needs three blocks.
    assert "give a lower --batch_size (a step draws 24 couplings)" in refused(1.5, batch_size=24)


@pytest.mark.parametrize(("names", "words"), [
    (["num_observations"], r"takes \d+\.\d GiB \(.*; give --buffer.num_observations=\d"),
    (["block_size", "num_observations"], r": the 2\S+ couplings of a block .*; give --buffer.block_size=\d"),
    (["noises_per_observation"], r": the 4\S+ couplings .*; give --buffer.noises_per_observation=\d"),
])  # fmt: skip
def test_absurd_sizes_are_refused_before_anything_is_listed(
    tiny_policy: SmolVLAFlowPolicy, split: Split, names: list[str], words: str
) -> None:
    config = replace(BufferConfig(32, 2, 1, 4), **dict.fromkeys(names, 10**13))
    with pytest.raises(UserError, match=rf"^buffer.{names[0]}=1\d+.*{words}"):
        make_buffer(tiny_policy, split, config=config)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    mount, membership = tmp_path / "cgroup", tmp_path / "membership"
    for place, limit, used, stat in (
        ("pod/own", ("memory.max", "max"), ("memory.current", 5), "anon 5"),
        ("pod", ("memory.max", 1000), ("memory.current", 900), "anon 600\ninactive_file 300"),
        ("pod/x", ("memory.max", 100), ("memory.current", 1), ""),
        ("memory", ("memory.limit_in_bytes", 70), ("memory.usage_in_bytes", 50), "total_inactive_file 20"),
    ):
        (mount / place).mkdir(parents=True, exist_ok=True)
        for name, content in (limit, used, ("memory.stat", stat)):
            (mount / place / name).write_text(f"{content}\n")
    membership.write_text("4:cpu,memory:/of/the/host\n3:cpuset:/\n0::/pod/own\n")
    assert list(container_limits(membership, mount)) == [(70, 30), (1000, 600)]
    assert list(container_limits(tmp_path / "none", mount)) == []


def test_memory_is_the_least_of_machine_and_container(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, cpu = psutil.virtual_memory(), torch.device("cpu")
    limits = [(machine.total * 2, 0), (1000, 600), (700, 750)]
    monkeypatch.setattr(memory, "container_limits", lambda: limits)
    assert (total_memory(cpu), free_memory(cpu)) == (700, 0)
    limits.clear()
    assert total_memory(cpu) == machine.total
    assert free_memory(cpu) > 700


@pytest.mark.parametrize(("solver", "least"), [("euler", 10), ("midpoint", 16), ("adams_bashforth", 16)])
@pytest.mark.parametrize(
    ("asked", "deployed", "steps"), [(None, 100, 100), (None, 10, None), (None, 1, None), (4, 100, 4)]
)
def test_couplings_take_as_many_steps_as_the_teacher_but_at_least_ten_by_euler_and_else_sixteen(
    solver: str, least: int, asked: int | None, deployed: int, steps: int | None
) -> None:
    config, steps = CouplingConfig(solver, asked), steps or least
    assert config.steps == (asked or least)
    config.settle(deployed)
    assert config.num_steps == config.steps == steps
    assert config.nfe == {"euler": steps, "midpoint": 2 * steps, "adams_bashforth": steps + 1}[solver]
    # Once written out it stays.
    config.settle(7)
    assert config.num_steps == steps
